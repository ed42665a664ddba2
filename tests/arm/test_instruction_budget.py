"""Instruction counts of the blocks of a ResNet-18 at 224x224, see resnet18.cpp. The counts depend only on the code and
the compiler, not on the machine."""

import subprocess
from pathlib import Path

import pytest

from tests.arm import machine

pytestmark = pytest.mark.arm

FOLDER = Path(__file__).parent
# Counts with GCC 12.2, in millions: all instructions, and SIMD instructions. Lower them when kernels become faster.
COMPILER_VERSION = '12.2.0'
BUDGET = {
    ('cortex-a53', 1): (55.9, 37.6),
    ('cortex-a53', 4): (229.0, 153.4),
    ('cortex-a72', 1): (63.7, 45.4),
    ('cortex-a72', 4): (262.7, 184.7),
}
# Allocators of different C libraries execute slightly different numbers of instructions.
TOLERANCE = 0.01


@pytest.fixture(scope='module')
def plugin(tmp_path_factory) -> Path:
    return machine.compile_counter(tmp_path_factory.mktemp('plugin'))


@pytest.fixture(scope='module')
def network(kernels, tmp_path_factory) -> Path:
    return machine.link_program(FOLDER / 'resnet18.cpp', kernels, tmp_path_factory.mktemp('network'))


def run(network: Path, plugin: Path, cpu: str, num_bases: int, passes: int, *kernels: str) -> tuple[list[int], str]:
    """Returns the instruction counts and the program's output."""
    counts = network.parent / 'counts.txt'
    command = [*machine.emulator(cpu), '-plugin', f'{plugin},out={counts}', network, str(num_bases), str(passes)]
    done = subprocess.run([*command, *kernels], check=True, capture_output=True, text=True)
    return [int(count) for count in counts.read_text().split()], done.stdout


@pytest.mark.parametrize('cpu, num_bases', BUDGET)
def test_instructions_of_a_pass(network, plugin, cpu, num_bases):
    version = subprocess.run([machine.compiler(), '-dumpfullversion'], capture_output=True, text=True).stdout.strip()
    if version != COMPILER_VERSION:
        pytest.skip(f'{machine.COMPILER} is version {version}: the budget is for {COMPILER_VERSION}')
    once, twice = (run(network, plugin, cpu, num_bases, passes)[0] for passes in (1, 2))
    found = [(after - before) / 1e6 for before, after in zip(once, twice, strict=True)]
    print(f'{cpu}, K = {num_bases}: {found[0]:.1f} M instructions, SIMD {found[1]:.1f}, load/store {found[3]:.1f}')
    for name, count, budget in zip(('all', 'SIMD'), found, BUDGET[cpu, num_bases], strict=False):
        assert count <= budget * (1 + TOLERANCE), f'{name}: {count:.2f} M instructions, the budget is {budget} M'
        assert count >= budget * (1 - 5 * TOLERANCE), f'{name}: {count:.2f} M instructions, lower the budget to it'


def test_the_counted_network_gives_what_the_portable_kernels_give(network, plugin):
    words = [run(network, plugin, 'cortex-a53', 1, 1, name)[1].split() for name in ('portable', 'neon')]
    assert [word[0] for word in words] == ['portable', 'neon']
    assert words[0][1] == words[1][1]


def test_classes_of_instructions(plugin, tmp_path):
    """A program without libraries. Each round of its loop has 6 instructions: one vector addition, two multiply-adds,
    one load, and two that control the loop."""
    source = tmp_path / 'loop.S'
    source.write_text(
        '.global _start\n_start:\n mov x1, #1000\n adr x2, _start\n'
        'again:\n ldr x3, [x2]\n add v0.4s, v0.4s, v1.4s\n fmla v2.4s, v0.4s, v1.4s\n fmla v2.4s, v0.4s, v1.s[2]\n'
        ' subs x1, x1, #1\n b.ne again\n'
        ' mov x0, #0\n mov x8, #94\n svc #0\n'
    )
    program = tmp_path / 'loop'
    subprocess.run([machine.compiler(), '-nostdlib', '-static', source, '-o', program], check=True)
    counts = tmp_path / 'counts.txt'
    subprocess.run([*machine.emulator('cortex-a53'), '-plugin', f'{plugin},out={counts}', program], check=True)
    assert counts.read_text().split() == ['6005', '3000', '2000', '1000']
