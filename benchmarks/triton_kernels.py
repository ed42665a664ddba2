"""Compiles the Triton kernels of lean training, without a GPU: ``python benchmarks/triton_kernels.py``.

It compiles each kernel for GPUs of compute capability 8.0 (A100), 8.6 (RTX 30), 8.9 (L4, RTX 40) and 9.0 (H100, H200),
in the types that training uses, and prints a table:

- the registers per thread, for each kind of GPU;
- the bytes of spilled stores and loads, and the bytes of the widest load of a thread, at best 16;
- the bytes that the kernel reads and writes per element of a map of all branches, and the least possible bytes, which
  read or write each map once. They differ if a kernel reads a tile twice, the second time from the cache.

It writes benchmarks/results/triton_kernels.json.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from benchmarks.timing import format_table, write_json  # noqa: E402
from mmgroupnet.ops import UnitGeometry  # noqa: E402
from mmgroupnet.ops.passes import UnitGradients, triton_launch, triton_passes  # noqa: E402
from mmgroupnet.ops.passes.protocol import Formula, KnownSurrogate, Running  # noqa: E402

CAPABILITIES = (80, 86, 89, 90)
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
_TYPES = {
    torch.float16: 'fp16',
    torch.bfloat16: 'bf16',
    torch.float32: 'fp32',
    torch.int16: 'i16',
    torch.int64: 'i64',
}
_NUM_BASES = 5


class Launch(NamedTuple):
    """A launch of a kernel in training.

    Attributes:
        kernel: The kernel.
        arguments: Its arguments; only their types matter.
        constants: Arguments for whose values a separate kernel is compiled.
        num_warps: Number of warps of a program.
        bytes_moved: Bytes per element of a map of all branches; None for kernels over weights and vectors.
        least_bytes: The least possible bytes.
    """

    kernel: object
    arguments: tuple
    constants: dict
    num_warps: int
    bytes_moved: float | None
    least_bytes: float | None

    @property
    def kernel_name(self) -> str:
        """Of the kernel."""
        return self.kernel.__name__.removesuffix('_kernel')

    @property
    def name(self) -> str:
        """What it makes, for tables."""
        name = self.kernel_name
        if name in ('signs', 'weight_signs'):
            return f'{name} in {str(self.arguments[1].dtype).removeprefix("torch.")}'
        if self.constants.get('HAS_SIGNS'):
            return f'{name} with signs'
        if 'SURROGATE' in self.constants:
            formulas = 'POLYNOMIAL', 'CLIPPED_IDENTITY', 'SWISH', 'TANH', 'GIVEN'
            (formula,) = (
                each for each in formulas if getattr(triton_passes.kernels, each) == self.constants['SURROGATE']
            )
            return f'{name}, {formula.lower()}'
        return name


def launches_of_training(dtype: torch.dtype, channels: int = 64) -> list[Launch]:
    """The launches of a unit of five branches, for maps of a dtype, without running them.

    Args:
        dtype: Dtype of the maps.
        channels: Channels of a branch.
    """
    found: list[tuple] = []

    def record(
        kernel: object, grid: tuple[int, ...], *arguments: object, num_warps: int = 4, **constants: object
    ) -> None:
        found.append((kernel, arguments, constants, num_warps))

    geometry = UnitGeometry(_NUM_BASES, channels, channels, 1, (3, 3), (1, 1), (1, 1), 1, (1,) * _NUM_BASES)
    x = torch.zeros(2, _NUM_BASES * channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    y = x.half()
    weight = torch.zeros(_NUM_BASES * channels, channels, 3, 3)
    vector, gate = torch.zeros(_NUM_BASES * channels), torch.zeros(_NUM_BASES)
    running = Running(vector, vector, torch.zeros((), dtype=torch.int64), 0.1, True)
    passes = triton_passes.TritonPasses(dtype)
    with mock.patch.object(triton_launch, 'launch', record):
        passes.connect(x, gate, gate)
        passes.connect(x, gate, gate, geometry)
        passes.convolve(x, weight, geometry)
        passes.norms.statistics(y, True, 1, vector, vector, vector, running, 1e-5, True)
        passes.affine(y, vector, vector, x, True, dtype)
        passes.affine(y, vector, vector, x, True, dtype, geometry)
        passes.norms.gradients(x, y, True, 1, (vector, vector), vector, vector, True)
        gradient_of = passes.affine_gradient(x, y, vector, vector, vector, _NUM_BASES, True)
        for surrogate in (None, KnownSurrogate(Formula.SWISH, torch.cos, 5.0), torch.cos):
            passes.unit_gradients(
                UnitGradients(
                    geometry=geometry,
                    branches=_NUM_BASES,
                    shares_weights=False,
                    gradient_of=gradient_of,
                    x=x,
                    weight=weight,
                    scale=vector,
                    residual=x,
                    surrogate=lambda k, given=surrogate: given,
                    needs_x=True,
                    needs_weight=True,
                )
            )
        passes.connect_gradient(x, x, gate, gate)
    launches: dict[tuple, Launch] = {}
    for kernel, arguments, constants, num_warps in found:
        launch = Launch(kernel, arguments, constants, num_warps, *_bytes_moved(kernel, arguments, constants))
        launches.setdefault((launch.name, str(_signature(launch)), str(constants)), launch)
    return list(launches.values())


def _bytes_moved(kernel: object, arguments: Sequence, constants: dict) -> tuple[float | None, float | None]:
    """Bytes per element that a kernel reads and writes, and the least possible bytes, which count each map once. In a
    tuple, each map has the elements of one branch."""
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    maps = {}
    for name, value in given.items():
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, Tensor) and value.dim() >= 4 and not kernel.__name__.startswith('weight'):
            maps[name] = value.element_size()
    if not constants.get('HAS_RESIDUAL', True):
        del maps['residual']
    if not constants.get('HAS_SIGNS', True):
        del maps['signs']
    if constants.get('SURROGATE', triton_passes.kernels.GIVEN) != triton_passes.kernels.GIVEN:
        del maps['factors']
    if not maps:
        return None, None
    twice = ('x', 'gradient') if kernel.__name__.startswith('connect') else ()
    return sum(size * (2 if name in twice else 1) for name, size in maps.items()), sum(maps.values())


def _signature(launch: Launch) -> dict[str, object]:
    """Types of the arguments by name."""

    def type_of(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(type_of(each) for each in value)
        if isinstance(value, Tensor):
            return f'*{_TYPES[value.dtype]}'
        return 'fp32' if isinstance(value, float) else 'i32'

    signature = dict(zip(launch.kernel.arg_names, map(type_of, launch.arguments), strict=False))
    return signature | dict.fromkeys(launch.constants, 'constexpr')


def _attributes(launch: Launch) -> dict[tuple[int, ...], list]:
    """The arguments for which Triton compiles a separate kernel: addresses and numbers that are multiples of 16."""
    found = {}
    multiple = [['tt.divisibility', 16]]
    for index, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments, strict=False)):
        if isinstance(value, tuple):
            found |= {(index, k): multiple for k in range(len(value))}
        elif isinstance(value, Tensor) and not parameter.do_not_specialize_on_alignment:
            found[(index,)] = multiple
        elif isinstance(value, int) and not parameter.do_not_specialize and value % 16 == 0:
            found[(index,)] = multiple
    return found


class Compiled(NamedTuple):
    """Properties of a compiled kernel.

    Attributes:
        registers: Registers of a thread.
        spilled: Bytes of spill stores and loads.
        shared: Bytes of shared memory.
        widest_load: Largest number of bytes that a thread reads at once.
        has_double: Whether it computes in float64.
    """

    registers: int
    spilled: int
    shared: int
    widest_load: int
    has_double: bool


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compiles the kernel of a launch for a compute capability, such as 80."""
    source = ASTSource(launch.kernel, _signature(launch), dict(launch.constants), _attributes(launch))
    binary = triton.compile(source, GPUTarget('cuda', capability, 32), dict(num_warps=launch.num_warps))
    assembly = binary.asm['ptx']
    architecture = re.search(r'\.target (\S+)', assembly)[1]
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(assembly)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, '-v', f'--gpu-name={architecture}', file.name, '-o', '/dev/null']
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r'(\d+) bytes spill', said)))
    widths = [
        int(bits) // 8 * int(count or 1)
        for count, bits in re.findall(r'ld\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)', assembly)
    ]
    return Compiled(
        int(re.search(r'Used (\d+) registers', said)[1]),
        spilled,
        binary.metadata.shared,
        max(widths),
        re.search(r'\b(add|mul|fma|div|cvt)\S*\.f64', assembly) is not None,
    )


def results_table(rows: Sequence[dict]) -> str:
    """The properties of the compiled kernels as Markdown."""
    cells = []
    for row in rows:
        compiled = row['compiled'].values()
        cells.append(
            [
                row['name'],
                row['maps'],
                *(each['registers'] for each in compiled),
                max(each['spilled'] for each in compiled),
                min(each['widest_load'] for each in compiled),
                *('' if row[key] is None else f'{row[key]:g}' for key in ('bytes_moved', 'least_bytes')),
            ]
        )
    capabilities = [f'sm_{each}' for each in rows[0]['compiled']]
    return format_table(['kernel', 'maps', *capabilities, 'spilled', 'load', 'moved', 'least'], cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES), help='of the maps (default: all)')
    parser.add_argument('--capabilities', nargs='+', type=int, default=CAPABILITIES, help='such as 80')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/triton_kernels.json')
    args = parser.parse_args(arguments)
    rows = [
        dict(
            kernel=launch.kernel_name,
            name=launch.name,
            maps=dtype,
            bytes_moved=launch.bytes_moved,
            least_bytes=launch.least_bytes,
            compiled={str(each): compile_for(launch, each)._asdict() for each in args.capabilities},
        )
        for dtype in args.dtypes
        for launch in launches_of_training(DTYPES[dtype])
    ]
    print(results_table(rows))
    write_json(args.out, dict(triton=triton.__version__, kernels=rows))


if __name__ == '__main__':
    main()
