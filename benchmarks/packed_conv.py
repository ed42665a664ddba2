"""Times packed 3x3 convolutions of ResNet-18, the machine's limit, and float32: ``python benchmarks/packed_conv.py``.

It measures in one process, in turns, with the same number of threads:

- the ceiling: a loop of xor, popcount and add on registers only, in the instruction set of the kernels. The kernels of
  AVX2 (a table of counts) and AVX-512 (a full adder) need fewer instructions per product, and may be faster than that
  loop;
- our convolution of K branches as it runs inside a block, with norm, ReLU, residual and the packing of the signs that
  the next convolution reads. A chain of LONG units and one of SHORT are timed in the same round, and the difference is
  divided, so the packing of the first input and the call itself cancel. Each unit has its own weights, so that they
  come from the same level of memory as in a network;
- torch's float32 convolution of one branch, channels_last, without anything behind it: a chain of LONG - SHORT
  convolutions, each with its own weights, divided.

It prints a table, and writes benchmarks/results/packed_conv.json with a plot beside it. ``MMGROUPNET_KERNEL=portable``
selects other kernels.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import Spread, describe_machine, format_table, interleave, stopwatch, write_json  # noqa: E402
from mmgroupnet.ops import Connection, Residual, UnitGeometry, kernels, pack_weight  # noqa: E402

SHAPES = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
NUM_BASES = (1, 4)
LONG, SHORT = 9, 1
CEILING_SECONDS = 0.05
KERNEL_SIZE = 3


class Shape(NamedTuple):
    """Channels of one branch, and the map's size; the convolutions keep them."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.channels}x{self.height}x{self.width}'

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one branch's convolution."""
        return self.channels**2 * KERNEL_SIZE**2 * self.height * self.width


class PackedConvs:
    """A chain of equal packed convolutions with all fused operations, called without torch.

    Args:
        shape: Shape of one branch.
        num_bases: Number K of branches.
        length: Number of convolutions.
        seed: Seed of the random weights.
    """

    def __init__(self, shape: Shape, num_bases: int, length: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        channels, folded = shape.channels, num_bases * shape.channels
        self.shape, self.num_bases = shape, num_bases
        self.geometry = UnitGeometry(
            num_bases,
            channels,
            channels,
            1,
            (KERNEL_SIZE, KERNEL_SIZE),
            (1, 1),
            None,
            1,
            (1,) * num_bases,
            relu=True,
            residual=Residual.INPUT,
        )
        self.x = torch.randn(1, folded, shape.height, shape.width, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        # The packed form of a conv, a ReLU and a norm: bits, and one scale and shift per channel.
        self.parameters: list[list[Tensor | None]] = []
        for _ in range(length):
            weight = torch.randn(folded, channels, KERNEL_SIZE, KERNEL_SIZE, generator=generator)
            scale = (torch.rand(folded, generator=generator) + 0.5) / (KERNEL_SIZE * channels**0.5)
            shift = torch.randn(folded, generator=generator) - 0.5
            self.parameters.append([pack_weight(weight), None, None, scale, shift, None, None])
        self.units = (kernels.Unit * length)(
            *(kernels.describe_unit(self.geometry, parameters) for parameters in self.parameters)
        )
        self._block = kernels.Block(
            1, shape.height, shape.width, num_bases, Connection.SEPARATE, None, None, None, None, self.units, length
        )
        self.out = torch.empty_like(self.x)
        self._arguments = (ctypes.byref(self._block), self.x.data_ptr(), self.out.data_ptr(), torch.get_num_threads())
        self._function = kernels.library().mmg_run_block

    def __call__(self) -> Tensor:
        self._function(*self._arguments)
        return self.out


class FloatConvs:
    """A chain of equal float32 convolutions in torch, channels_last; arguments as for :class:`PackedConvs`."""

    def __init__(self, shape: Shape, length: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        convs = [
            nn.Conv2d(shape.channels, shape.channels, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False)
            for _ in range(length)
        ]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity='linear')
        self.convs = nn.Sequential(*convs).to(memory_format=torch.channels_last)
        self.x = torch.randn(1, *shape).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        return self.convs(self.x)


def ceiling(threads: int) -> float:
    """Binary MACs per second of the ceiling loop, on `threads` threads together."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(kernels.ceiling, [CEILING_SECONDS] * threads))


def packed_stopwatch(shape: Shape, num_bases: int) -> Callable[[], float]:
    """Measures one packed convolution inside a chain, in seconds."""
    long, short = (stopwatch(PackedConvs(shape, num_bases, length)) for length in (LONG, SHORT))
    return lambda: (long() - short()) / (LONG - SHORT)


def float_stopwatch(shape: Shape) -> Callable[[], float]:
    """Measures one float convolution inside a chain, in seconds."""
    run = stopwatch(FloatConvs(shape, LONG - SHORT))
    return lambda: run() / (LONG - SHORT)


def measure(shapes: Sequence[Shape], num_bases: Sequence[int], rounds: int, threads: int) -> dict:
    """Measures all contestants.

    Args:
        shapes: Shapes of one branch.
        num_bases: Numbers K of branches.
        rounds: Measurements of each contestant.
        threads: Threads of all of them.

    Returns:
        The results, as they are written to the JSON file: times in ms, rates in 10^9 binary MACs per second, each as
        ``[median, 10th percentile, 90th percentile, count]``.
    """
    torch.set_num_threads(threads)
    contestants = {'ceiling': lambda: ceiling(threads)}
    for shape in shapes:
        contestants[f'{shape} float'] = float_stopwatch(shape)
        for bases in num_bases:
            contestants[f'{shape} K={bases}'] = packed_stopwatch(shape, bases)
    values = interleave(contestants, rounds)
    limit = Spread.of(values['ceiling'])
    convs = []
    for shape in shapes:
        float_seconds = values[f'{shape} float']
        for bases in num_bases:
            seconds = values[f'{shape} K={bases}']
            rate = Spread.of([bases * shape.macs / value / 1e9 for value in seconds])
            convs.append(
                dict(
                    shape=list(shape),
                    num_bases=bases,
                    ms=Spread.of([value * 1e3 for value in seconds]),
                    rate=rate,
                    share_of_ceiling=rate.median * 1e9 / limit.median,
                    float_ms=Spread.of([value * 1e3 for value in float_seconds]),
                    speedup=Spread.of([slow / fast for slow, fast in zip(float_seconds, seconds, strict=True)]),
                )
            )
    return dict(
        machine=describe_machine(threads),
        rounds=rounds,
        ceiling=Spread.of([value / 1e9 for value in values['ceiling']]),
        convs=convs,
    )


def results_table(results: dict) -> str:
    """The convolutions as Markdown."""
    columns = ['shape', 'K', 'ms (10th..90th)', 'G binary MAC/s', 'of the ceiling', 'torch float32, ms', 'times faster']
    rows = []
    for conv in results['convs']:
        ms, float_ms = Spread(*conv['ms']), Spread(*conv['float_ms'])
        rows.append(
            [
                Shape(*conv['shape']),
                conv['num_bases'],
                f'{ms.median:.3f} ({ms.low:.3f}..{ms.high:.3f})',
                f'{Spread(*conv["rate"]).median:.0f}',
                f'{conv["share_of_ceiling"]:.0%}',
                f'{float_ms.median:.3f} ({float_ms.low:.3f}..{float_ms.high:.3f})',
                f'{Spread(*conv["speedup"]).median:.1f}',
            ]
        )
    return format_table(columns, rows)


def plot(results: dict, path: Path) -> None:
    """Draws the rates of all convolutions under the ceiling."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    convs = results['convs']
    labels = [f'{Shape(*conv["shape"])}\nK = {conv["num_bases"]}' for conv in convs]
    rates = [conv['rate'] for conv in convs]
    errors = [[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]]
    figure, axes = plt.subplots(figsize=(1.1 * len(convs) + 1.5, 4.5), layout='constrained')
    bars = axes.bar(labels, [rate.median for rate in rates], yerr=errors, capsize=3, color='tab:blue')
    axes.bar_label(bars, [f'{conv["speedup"].median:.1f}x float' for conv in convs], label_type='center', color='white')
    limit = results['ceiling'].median
    axes.axhline(limit, color='tab:red', linestyle='--', label=f'ceiling, {limit:.0f}')
    axes.set_ylabel('G binary MAC/s')
    machine = results['machine']
    axes.set_title(f'{machine["processor"]}, {machine["packed_kernels"]}, {machine["threads"]} thread(s)')
    axes.tick_params(axis='x', labelsize=8)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1, help='threads of all contestants (default: 1)')
    parser.add_argument('--rounds', type=int, default=30, help='measurements of each contestant (default: 30)')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/packed_conv.json')
    args = parser.parse_args(arguments)
    if kernels.library() is None:
        parser.error('the packed kernels were not compiled: python setup.py build_ext --inplace')
    results = measure([Shape(*shape) for shape in SHAPES], NUM_BASES, args.rounds, args.threads)
    machine, limit = results['machine'], results['ceiling']
    print(f'{machine["processor"]}, {machine["packed_kernels"]}, {machine["threads"]} thread(s)')
    print(f'ceiling {limit.median:.0f} ({limit.low:.0f} to {limit.high:.0f}) G binary MAC/s\n')
    print(results_table(results))
    write_json(args.out, results)
    plot(results, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
