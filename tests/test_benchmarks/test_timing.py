"""The benchmarks' stopwatch and the order in which they run the contestants."""

import json
import time

from benchmarks.timing import Spread, describe_machine, format_table, interleave, stopwatch, write_json
from mmgroupnet import ops


def test_spread_is_the_median_between_two_percentiles():
    assert Spread.of([float(value) for value in range(100, -1, -1)]) == Spread(50.0, 10.0, 90.0, 101)


def test_a_measurement_is_the_time_of_one_call():
    seconds = stopwatch(lambda: time.sleep(0.005), min_seconds=0.02)()
    assert seconds >= 0.005


def test_each_measurement_calls_once_untimed_and_then_until_it_is_long_enough(monkeypatch):
    now, calls = [0.0], []

    def run() -> None:
        calls.append(now[0])
        now[0] += 0.25

    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    measure = stopwatch(run, min_seconds=1.0)
    calls.clear()
    assert measure() == 0.25
    assert len(calls) == 1 + 4


def test_contestants_take_turns_and_each_round_starts_with_another():
    order = []

    def contestant(name):
        return lambda: order.append(name) or float(len(order))

    values = interleave({name: contestant(name) for name in 'abc'}, rounds=3, few={'c': 1})
    assert ''.join(order) == 'abc' + 'ba' + 'ab'
    assert values == {'a': [1.0, 5.0, 6.0], 'b': [2.0, 4.0, 7.0], 'c': [3.0]}


def test_the_machine_is_described_with_the_kernels_in_use(tmp_path):
    machine = describe_machine(threads=3)
    assert machine['threads'] == 3
    assert machine['packed_kernels'] == ops.selected_kernels()
    assert {'torch', 'torchvision'} <= machine['versions'].keys()
    write_json(tmp_path / 'new' / 'results.json', dict(machine=machine))
    assert json.loads((tmp_path / 'new' / 'results.json').read_text()) == dict(machine=machine)


def test_a_table_is_markdown():
    assert format_table(['a', 'b'], [[1, '2 ms']]) == '| a | b |\n| --- | --- |\n| 1 | 2 ms |'
