"""Common parts of the benchmarks: interleaved timing, the description of the machine, tables."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mmgroupnet import ops

PACKAGES = ('mmgroupnet', 'torch', 'torchvision', 'mmdet', 'onnxruntime', 'openvino', 'nncf')


class Spread(NamedTuple):
    """Median of some measurements, and their 10th and 90th percentiles.

    Attributes:
        median, low, high: In the unit of the measurement.
        count: Number of measurements.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """The spread of some values."""
        low, median, high = np.percentile(values, [10, 50, 90])
        return cls(float(median), float(low), float(high), len(values))


def stopwatch(run: Callable[[], object], min_seconds: float = 0.02) -> Callable[[], float]:
    """Makes a measurement of a function: seconds of one call.

    Each measurement first calls the function once untimed, since another contestant has run before and left its data in
    the caches and its threads awake. Then it calls the function as often as needed to fill ``min_seconds``.

    Args:
        run: The function.
        min_seconds: Duration of one measurement, at least one call.
    """
    run()  # work that is done only on the first call

    def measure() -> float:
        run()
        calls = 0
        began = time.perf_counter()
        while True:
            run()
            calls += 1
            elapsed = time.perf_counter() - began
            if elapsed >= min_seconds:
                return elapsed / calls

    return measure


def interleave(
    contestants: Mapping[str, Callable[[], float]], rounds: int, few: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Measures contestants in turns, so a temporary slowdown of the machine affects all of them.

    Args:
        contestants: Measurements by name. Each round starts with another one.
        rounds: Measurements of each.
        few: Contestants that take part in fewer rounds, with their numbers. Default: None.

    Returns:
        The values of each contestant, round by round.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            if index < (few or {}).get(name, rounds):
                values[name].append(contestants[name]())
    return values


def _processor() -> str:
    information = Path('/proc/cpuinfo')
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine(threads: int) -> dict:
    """Processor, instruction sets in use, threads and versions, for a file of results."""
    versions = {package: _version(package) for package in PACKAGES}
    return dict(
        processor=_processor(),
        cores=os.cpu_count(),
        threads=threads,
        packed_kernels=ops.selected_kernels(),
        available_kernels=ops.available_kernels(),
        torch_kernels=torch.backends.cpu.get_cpu_capability(),
        system=platform.platform(),
        python=platform.python_version(),
        versions={package: found for package, found in versions.items() if found is not None},
    )


def write_json(path: Path, results: dict) -> None:
    """Writes results as readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + '\n')


def format_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ['---'] * len(columns), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
