"""Memory, time and launches of a training step on a GPU: ``python benchmarks/train_step.py --device cuda``.

The contestants are those of benchmarks/train_step.py, with ours in each backend of :mod:`mmgroupnet.ops.passes`, and
*plain loop, compiled* by ``torch.compile``. A step is forward, backward and the clearing of gradients. The script
measures the milliseconds between two events of the GPU, in turns; the peak of allocated memory above that of the
resting process; and, by torch's profiler, the kernels that the GPU runs. Maps are channels_last; float32 multiplies in
TF32.
"""

import gc
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.timing import Spread, format_table, interleave, write_json
from benchmarks.train_step import (
    CHECKPOINTED,
    FLAGSHIP,
    FLOAT,
    OURS,
    OURS_CP,
    PLAIN,
    Maps,
    Setting,
    build,
    flagship,
    images,
)
from mmgroupnet.ops.passes.choice import ENVIRONMENT_VARIABLE

COMPILED = 'plain loop, compiled'
AUTOCAST = {'float32': None, 'float16': torch.float16}
# Number of steps before the measured ones, for compilation and the choice of algorithms.
_WARM_UP = 3
_MIB = 2**20


class Contestant(NamedTuple):
    """A contestant.

    Attributes:
        name: Its name in tables.
        base: The contestant of benchmarks/train_step.py that it is based on.
        passes: The backend of lean training.
        is_compiled: Whether ``torch.compile`` compiles it.
    """

    name: str
    base: str
    passes: str = 'torch'
    is_compiled: bool = False


OF_NETWORKS = (
    Contestant(FLOAT, FLOAT),
    Contestant(PLAIN, PLAIN),
    Contestant(CHECKPOINTED, CHECKPOINTED),
    Contestant(COMPILED, PLAIN, is_compiled=True),
    *(Contestant(f'{name}, {passes}', name, passes) for passes in ('torch', 'triton') for name in (OURS, OURS_CP)),
)
OF_THE_FLAGSHIP = (
    Contestant('plain autograd', 'plain autograd'),
    *(Contestant(f'{name}, {passes}', name, passes) for passes in ('torch', 'triton') for name in (OURS, OURS_CP)),
)
SETTINGS = [
    *(Setting(18, num_bases, 224, 32) for num_bases in (1, 3, 5)),
    *(Setting(50, num_bases, 224, 32) for num_bases in (1, 3, 5)),
    Setting(18, 5, 640, 4),
    Setting(50, 5, 640, 4),
]


def make(contestant: Contestant, setting: Setting | None) -> tuple[nn.Module, Tensor]:
    """A contestant and its images; without a setting it is the flagship detector at 800x1333, batch 2."""
    if setting is None:
        torch.manual_seed(0)
        model = Maps(flagship(contestant.base != 'plain autograd', contestant.base == OURS_CP)).train()
        x = torch.randn(2, 3, 800, 1344, generator=torch.Generator().manual_seed(0))
    else:
        model, x = build(contestant.base, setting), images(setting)
    return (torch.compile(model) if contestant.is_compiled else model), x


def step(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    """One training step without an optimizer, under autocast of a dtype."""
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        outs = model(x)
    loss = sum(out.float().square().mean() for out in ((outs,) if isinstance(outs, Tensor) else outs))
    (loss * 2.0**10).backward()  # as in a GradScaler
    model.zero_grad(set_to_none=True)


def with_passes(contestant: Contestant) -> AbstractContextManager:
    """A context with the backend of a contestant."""
    return mock.patch.dict(os.environ, {ENVIRONMENT_VARIABLE: contestant.passes})


def _milliseconds(contestant: Contestant, run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with with_passes(contestant):
        begin.record()
        run()
        end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _peak(run: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - resting


def _kernels(run: Callable[[], None]) -> int:
    """Number of kernels that the GPU runs, without copies and fills of memory."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(('Memcpy', 'Memset')) for name in names)


def measure(setting: Setting | None, contestants: Sequence[Contestant], dtype: str, rounds: int) -> list[dict]:
    """Measures contestants in a setting; one that does not fit the memory of the GPU gets a row that says so."""
    rows, runs = {}, {}
    for contestant in contestants:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            model, x = make(contestant, setting)
            model = model.to('cuda', memory_format=torch.channels_last)
            run = partial(step, model, x.to('cuda', memory_format=torch.channels_last), AUTOCAST[dtype])
            with with_passes(contestant):
                for _ in range(_WARM_UP):
                    run()
                rows[contestant] = dict(name=contestant.name, peak_bytes=_peak(run), kernels=_kernels(run))
            runs[contestant] = partial(_milliseconds, contestant, run)
        except torch.cuda.OutOfMemoryError:
            rows[contestant] = dict(name=contestant.name, peak_bytes=None, kernels=None, ms=None)
    for contestant, values in interleave(runs, rounds).items():
        rows[contestant]['ms'] = Spread.of(values)
    return [rows[contestant] for contestant in contestants]


def print_table(title: str, rows: Sequence[dict]) -> None:
    """Prints the rows of a setting as Markdown, with their ratios to the plain contestant."""
    plain = next((row for row in rows if row['name'] in (PLAIN, 'plain autograd') and row['ms'] is not None), None)
    cells = []
    for row in rows:
        if row['ms'] is None:
            cells.append([row['name'], 'out of memory', *[''] * 4])
            continue
        ratios = ['', '']
        if plain is not None:
            ratios = [
                f'{row["peak_bytes"] / plain["peak_bytes"]:.2f}',
                f'{row["ms"].median / plain["ms"].median:.2f}',
            ]
        ms = row['ms']
        cells.append(
            [
                row['name'],
                f'{row["peak_bytes"] / _MIB:.0f}',
                ratios[0],
                f'{ms.median:.1f} ({ms.low:.1f}..{ms.high:.1f})',
                ratios[1],
                str(row['kernels']),
            ]
        )
    print(f'\n{title}\n')
    print(format_table(['', 'peak, MiB', 'of plain', 'ms (10th..90th)', 'of plain', 'kernels'], cells), flush=True)


def run_all(setting: Setting | None, rounds: int, out: Path) -> None:
    """Measures one setting, or all of them and the flagship, and writes a file after each."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    results = dict(machine=dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__), settings=[])
    for each in [setting] if setting is not None else [*SETTINGS, None]:
        for dtype in AUTOCAST:
            title = f'{each or f"{FLAGSHIP}, 2 x 800x1333"}, {dtype}'
            rows = measure(each, OF_NETWORKS if each is not None else OF_THE_FLAGSHIP, dtype, rounds)
            print_table(title, rows)
            results['settings'].append(dict(title=title, contestants=rows))
            write_json(out, results)
