"""How the kernels are found, selected and run by several threads, and how units are described for them."""

import copy
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import weakref
from ast import Assign, Name, literal_eval, parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmgroupnet import ops
from mmgroupnet.ops import Connection, Residual, kernels
from tests.test_ops import oracle
from tests.test_ops.oracle import PARAMETERS, Block, geometry, random_signs, random_unit

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(shutil.which('g++') is None, reason='there is no g++')


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code], env=os.environ | environment, cwd=ROOT, capture_output=True, text=True
    )


def example(seed: int, size: int = 9) -> tuple[Block, Tensor, Tensor]:
    """A block of two units, an input, and the output of the oracle."""
    torch.manual_seed(seed)
    numbers = [geometry(in_channels=70, out_channels=70, relu=True, residual=Residual(kind)) for kind in (2, 1)]
    block = Block(Connection.SEPARATE, 2, [random_unit(unit, PARAMETERS) for unit in numbers])
    x = oracle.dyadic(1, 140, size, size)
    return block, x, block.run_oracle(x)[0]


class TestSelection:
    def test_best_is_the_default(self, compiled):
        if kernels.ENVIRONMENT_VARIABLE in os.environ:
            pytest.skip(f'{kernels.ENVIRONMENT_VARIABLE} is set')
        assert compiled == [name for name in oracle.KERNEL_SETS if name in compiled]
        assert compiled[0] == 'portable'
        assert ops.selected_kernels() == compiled[-1]

    def test_each_can_be_selected(self, compiled):
        before = ops.selected_kernels()
        try:
            for name in compiled + compiled[::-1]:
                ops.select_kernels(name)
                assert ops.selected_kernels() == name
        finally:
            ops.select_kernels(before)

    def test_unknown_name(self, compiled):
        before = ops.selected_kernels()
        with pytest.raises(ValueError, match=f"name='sse9': this machine has the kernels {', '.join(compiled)}"):
            ops.select_kernels('sse9')
        assert ops.selected_kernels() == before

    def test_other_kernels_take_weights_arranged_anew(self, compiled):
        unit = random_unit(geometry(in_channels=70))
        x, bits = random_signs(1, 140, 5, 5), ops.pack_weight(unit.weight)
        before = ops.selected_kernels()
        try:
            for name in compiled + compiled[::-1]:
                ops.select_kernels(name)
                assert torch.equal(ops.convolve(x, bits, unit.numbers), oracle.convolve(unit, x)), name
        finally:
            ops.select_kernels(before)

    def test_environment_variable(self, compiled):
        code = 'from mmgroupnet import ops; print(ops.selected_kernels())'
        done = run_python(code, MMGROUPNET_KERNEL='portable')
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ['portable']

    def test_a_library_of_another_version(self, compiled):
        code = (
            'from mmgroupnet.ops import kernels\n'
            'kernels.ABI_VERSION = 99\n'
            "kernels._SIGNATURES['mmg_of_tomorrow'] = []\n"
            'kernels.available_kernels()'
        )
        assert 'this code of 99: compile it again' in run_python(code).stderr

    def test_wrong_environment_variable(self, compiled):
        done = run_python('from mmgroupnet import ops; ops.selected_kernels()', MMGROUPNET_KERNEL='sse9')
        assert done.returncode != 0
        assert f'MMGROUPNET_KERNEL=sse9: this machine has the kernels {", ".join(compiled)}' in done.stderr


class TestWithoutKernels:
    @pytest.fixture(autouse=True)
    def nothing_compiled(self, tmp_path, monkeypatch):
        monkeypatch.setattr(kernels, '__file__', str(tmp_path / 'kernels.py'))
        kernels.library.cache_clear()
        kernels.selected_kernels.cache_clear()
        yield
        # The library is loaded again; it still has its previous selection of kernels.
        monkeypatch.undo()
        kernels.library.cache_clear()
        kernels.selected_kernels.cache_clear()

    @pytest.fixture
    def warnings(self, monkeypatch) -> list[str]:
        """The logged warnings."""
        seen = []

        def print_log(message: str, logger: str, level: int) -> None:
            assert level == logging.WARNING
            seen.append(message)

        monkeypatch.setattr(kernels, 'print_log', print_log)
        return seen

    def test_what_cannot_be_loaded_is_said(self, warnings, tmp_path):
        (tmp_path / '_kernels.so').write_text('no library')
        assert ops.selected_kernels() == 'simulated'
        (warning,) = warnings
        assert warning.startswith(f'The packed kernels cannot be loaded ({tmp_path}/_kernels.so: ')
        assert 'apt-get install libgomp1' in warning

    def test_same_results_and_one_warning(self, warnings):
        assert ops.available_kernels() == []
        assert ops.selected_kernels() == 'simulated'
        for seed in range(3):
            block, x, expected = example(seed)
            assert torch.equal(block.run_op(x), expected)
            assert torch.equal(
                ops.connect(x, 2, None, None), torch.cat(oracle.connect(x.split(70, dim=1), None, None), dim=1)
            )
            unit = block.units[0]
            out = ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers)
            assert torch.equal(out, oracle.convolve(unit, x))
            assert ops.sign_pack(x, 2).shape == (1, 9, 9, 2, 2)
        assert len(warnings) == 1
        assert re.search('not compiled.*simulated.*python setup.py build_ext --inplace', warnings[0])

    def test_none_can_be_selected(self, warnings):
        with pytest.raises(ValueError, match="name='portable': this machine has the kernels none"):
            ops.select_kernels('portable')


class TestDescribedUnits:
    """The struct of a unit is cached for its weights until weights or parameters change."""

    def test_weights_changed_in_place(self, kernel_set):
        unit, other = (random_unit(geometry()) for _ in range(2))
        x, bits = random_signs(1, 32, 5, 5), ops.pack_weight(unit.weight)
        assert torch.equal(ops.convolve(x, bits, unit.numbers), oracle.convolve(unit, x))
        bits.copy_(ops.pack_weight(other.weight))
        assert torch.equal(ops.convolve(x, bits, unit.numbers), oracle.convolve(other, x))

    def test_same_weights_in_units_of_other_norms_and_geometry(self, kernel_set):
        """The levels of a pyramid share weights in this way."""
        first = random_unit(geometry(padding_value=0), PARAMETERS)
        bits = ops.pack_weight(first.weight)
        x = oracle.dyadic(1, 32, 7, 6)
        for overrides in (dict(padding_value=0), dict(padding_value=-1), dict(stride=(2, 1)), dict(dilations=2)) * 2:
            unit = random_unit(geometry(**overrides), PARAMETERS)
            unit.weight = first.weight
            block = Block(Connection.SEPARATE, 2, [unit])
            arguments = list(block.arguments)
            arguments[5][0] = bits
            assert torch.equal(ops.run_block(x, *arguments), block.run_oracle(x)[0]), overrides

    def test_other_parameters_in_the_same_place(self, kernel_set):
        block, x, _ = example(0)
        arguments = block.arguments
        ops.run_block(x, *arguments)
        for tensor in arguments[5]:
            if tensor.dtype == torch.float32:
                tensor.mul_(-1)  # also changes the parameters of the oracle
        assert torch.equal(ops.run_block(x, *arguments), block.run_oracle(x)[0])

    def test_too_long_a_sum(self, compiled):
        numbers = geometry(num_bases=1, in_channels=2**21, out_channels=1)
        bits = torch.zeros(1, numbers.row_bits // 8, dtype=torch.uint8)
        x = torch.ones(1, 1, 1, 1).expand(1, 2**21, 1, 1)
        message = r'in_channels=2097152: 18874368 products in one sum, give fewer than 2\*\*24'
        with pytest.raises(ValueError, match=message):
            ops.convolve(x, bits, numbers.encode())

    def test_weights_made_in_inference_mode(self, kernel_set):
        unit = random_unit(geometry())
        x = random_signs(1, 32, 5, 5)
        with torch.inference_mode():
            out = ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers)
        assert torch.equal(out, oracle.convolve(unit, x))

    def test_weights_of_inference_mode_that_change(self, kernel_set):
        """Tensors of inference mode have no version counter."""
        first, second = random_unit(geometry()), random_unit(geometry())
        x = random_signs(1, 32, 5, 5)
        with torch.inference_mode():
            bits = ops.pack_weight(first.weight)
            assert torch.equal(ops.convolve(x, bits, first.numbers), oracle.convolve(first, x))
            bits.copy_(ops.pack_weight(second.weight))
            assert torch.equal(ops.convolve(x, bits, first.numbers), oracle.convolve(second, x))

    def test_levels_with_other_norms_are_described_once_each(self, compiled, monkeypatch):
        unit = random_unit(geometry())
        bits = ops.pack_weight(unit.weight)
        channels = unit.geometry.num_bases * unit.geometry.out_channels
        norms = [[torch.ones(channels), torch.zeros(channels)] for _ in range(3)]
        levels = [[bits, None, None, *norm, None, None] for norm in norms]
        structs = [kernels.describe_unit(unit.geometry, level) for level in levels]
        assert len({struct.norm_scale for struct in structs}) == 3 and len({s.weights for s in structs}) == 1
        monkeypatch.setattr(kernels, 'check_parameters', None)  # must not be called again
        for level, struct in zip(levels, structs, strict=True):
            assert kernels.describe_unit(unit.geometry, level) is struct

    def test_a_tensor_of_another_shape_at_a_known_address_is_checked(self, compiled):
        unit = random_unit(geometry())
        bits = ops.pack_weight(unit.weight)
        channels = unit.geometry.num_bases * unit.geometry.out_channels
        memory = torch.rand(2 * channels)

        def describe(scale: Tensor) -> None:
            kernels.describe_unit(unit.geometry, [bits, scale, *[None] * 5])

        describe(memory[:channels])
        for other in (memory[:3], memory.view(torch.float64)[:channels], memory[::2]):
            with pytest.raises(ValueError, match='scale'):
                describe(other)

    def test_nothing_is_hung_on_weights_or_outlives_them(self, compiled):
        unit = random_unit(geometry())
        count = len(kernels._ARRANGED)
        bits = ops.pack_weight(unit.weight)
        for _ in range(3):
            ops.convolve(random_signs(1, 32, 5, 5), bits, unit.numbers)
        assert vars(bits) == {}
        assert len(kernels._ARRANGED) == count + 1
        del bits
        assert len(kernels._ARRANGED) == count

    def test_copies_and_pickles(self, kernel_set):
        unit = random_unit(geometry())
        x = random_signs(1, 32, 5, 5)
        bits = ops.pack_weight(unit.weight)
        expected = ops.convolve(x, bits, unit.numbers)
        for twin in (copy.deepcopy(bits), pickle.loads(pickle.dumps(bits))):
            assert torch.equal(ops.convolve(x, twin, unit.numbers), expected)

    def test_struct_keeps_its_weights(self, compiled, monkeypatch):
        """A thread may still use a struct that another thread has just replaced."""
        freed = []
        arrange = kernels._arrange_weights

        def watched(*args) -> Tensor:
            arranged = arrange(*args)
            weakref.finalize(arranged, freed.append, True)
            return arranged

        monkeypatch.setattr(kernels, '_arrange_weights', watched)
        unit = random_unit(geometry())
        bits = ops.pack_weight(unit.weight)
        used = kernels.describe_unit(unit.geometry, [bits, *[None] * 6])
        bits.add_(0)  # arranged again
        kernels.describe_unit(unit.geometry, [bits, *[None] * 6])
        assert used.weights and not freed

    def test_a_unit_without_weights_is_refused(self):
        with pytest.raises(ValueError, match='bits=None: a unit needs weights, give them packed'):
            kernels.describe_unit(geometry(), [None] * 7)


class Outputs(Dataset):
    """A data set that runs the op with two threads, in a worker process."""

    def __init__(self, block: Block, x: Tensor) -> None:
        self.arguments, self.x = block.arguments, x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)
        return ops.run_block(self.x, *self.arguments)[0]


class TestThreads:
    def test_any_number_gives_the_same(self, kernel_set):
        block, x, expected = example(0, size=25)
        signs = ops.sign_pack(x, 2)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(block.run_op(x), expected)
            assert torch.equal(ops.sign_pack(x, 2), signs)

    def test_forked_workers(self, compiled):
        """A forked process has none of its parent's threads, so it must not wait for them."""
        # Small enough that torch does not use threads itself; these would not survive a fork.
        block, x, expected = example(0, size=13)
        assert x.numel() < 32768
        torch.set_num_threads(2)
        assert torch.equal(block.run_op(x), expected)
        loader = DataLoader(Outputs(block, x), batch_size=1, num_workers=2, multiprocessing_context='fork', timeout=120)
        outs = list(loader)
        assert len(outs) == 4
        for out in outs:
            assert torch.equal(out, expected)
        assert torch.equal(block.run_op(x), expected)

    def test_calls_from_several_threads(self, compiled):
        torch.set_num_threads(2)
        examples = [example(seed, size=8 + 4 * seed) for seed in range(4)]

        def run(index: int) -> bool:
            torch.set_num_threads(2)
            block, x, expected = examples[index % 4]
            arguments = block.arguments
            return all(torch.equal(ops.run_block(x, *arguments), expected) for _ in range(5))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(16)))

    def test_first_calls_at_the_same_time(self, compiled):
        """The threads all arrange the same weights."""
        unit = random_unit(geometry(in_channels=256, out_channels=256))
        x = random_signs(1, 512, 4, 4)
        expected = oracle.convolve(unit, x)
        together = threading.Barrier(4)

        def run(bits: Tensor) -> bool:
            together.wait()
            return torch.equal(ops.convolve(x, bits, unit.numbers), expected)

        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                assert all(pool.map(run, [ops.pack_weight(unit.weight)] * 4))


def flags_of_build() -> tuple[list[str], dict[str, list[str]]]:
    """Flags of all kernels and of single files, read from the source of setup.py, since importing it would run
    setup()."""
    values = {
        statement.targets[0].id: statement.value
        for statement in parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body
        if isinstance(statement, Assign) and isinstance(statement.targets[0], Name)
    }
    return literal_eval(values['KERNEL_FLAGS']), literal_eval(values['INSTRUCTION_SET_FLAGS'])


def compile_fuzzer(folder: Path) -> Path:
    """Compiles csrc/ and the fuzzer into one program with sanitizers, file by file like setup.py."""
    sanitizers = 'address,undefined'
    common, by_file = flags_of_build()
    common = [flag for flag in common if not flag.startswith('-O')]
    common += ['-O1', '-g', f'-fsanitize={sanitizers}', '-fno-sanitize-recover=all', f'-I{ROOT / "csrc"}']
    x86 = os.uname().machine in ('x86_64', 'amd64')
    objects = []
    for source in [*sorted((ROOT / 'csrc').glob('*.cpp')), ROOT / 'tests' / 'csrc' / 'fuzz_kernels.cpp']:
        objects.append(folder / f'{source.stem}.o')
        flags = [*common, *(by_file.get(source.name, []) if x86 else [])]
        subprocess.run(['g++', *flags, '-c', source, '-o', objects[-1]], check=True)
    program = folder / 'fuzz_kernels'
    subprocess.run(['g++', f'-fsanitize={sanitizers}', '-fopenmp', *objects, '-o', program], check=True)
    return program


def assert_runs(program: Path, rounds: int, seed: int, names: list[str]) -> None:
    done = subprocess.run([program, str(rounds), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == f'{rounds} rounds with the kernels {" ".join(names)}'


@needs_compiler
class TestFuzzer:
    """Runs csrc/ without Python, with buffers of exactly the size that its header states; see
    tests/csrc/fuzz_kernels.cpp."""

    def test_the_compiled_library(self, compiled, tmp_path):
        library = next(Path(kernels.__file__).parent.glob('_kernels*.so'))
        program = tmp_path / 'fuzz_kernels'
        source = ROOT / 'tests' / 'csrc' / 'fuzz_kernels.cpp'
        command = ['g++', '-std=c++20', '-O1', '-Wall', '-Wextra', '-Werror', f'-I{ROOT / "csrc"}', source, library]
        subprocess.run([*command, f'-Wl,-rpath,{library.parent}', '-o', program], check=True)
        assert_runs(program, 100, 0, compiled)

    @pytest.mark.slow
    def test_with_sanitizers(self, compiled, tmp_path):
        program = compile_fuzzer(tmp_path)
        for seed in range(3):
            assert_runs(program, 100, seed, compiled)
