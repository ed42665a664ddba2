"""Two processes with synchronised norms and the shipped hooks: both issue the same collectives, and they train like one
process."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close

from mmgroupnet.engine.configs import read_config_file
from mmgroupnet.layers import BinaryConv2d, can_run_chain
from mmgroupnet.models import GroupNetResNet
from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryTower
from mmgroupnet.registry import HOOKS
from tests.processes import noted_collectives, run_in_two_processes

ROOT = Path(__file__).parents[3]
RUNTIMES = ('default_runtime', 'segmentation_runtime')
# For each network, the numbers of images in the first and in the second process.
SHARES = {
    'soft_gate': (1, 3),
    'lbd': (1, 3),
    'recomputed, full-precision shortcuts': (2, 2),
    'tower': (1, 3),
    'blocks': (0, 3),
}
STEPS = 3


class Tower(nn.Module):
    """A tower of one level as a network, without the norms of its input: these run in torch, which synchronises norms
    only on GPUs."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.tower = BinaryTower(6, 6, 2, 1, 2, True, dict(type=norm), {})
        self.tower.input_norms[0] = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.tower((self.stem(x), 0))]


class Blocks(nn.Module):
    """The blocks of a network without its stem, which does not run lean."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        options = dict(depth=18, num_bases=2, base_channels=3, stage_blocks=(1, 2), norm_cfg=dict(type=norm))
        network = GroupNetResNet(**options)
        self.blocks = nn.ModuleList(block for stage in network.stages for block in stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        merge = None
        for block in self.blocks:
            assert can_run_chain(block.chain(), x, block)
            x, merge = block(x, merge), block.merge
        return [merge(x)]


def build(name: str, norm: str) -> nn.Module:
    torch.manual_seed(0)
    if name == 'blocks':
        return Blocks(norm).double().train()
    if name == 'tower':
        return Tower(norm).double().train()
    options = dict(depth=18, num_bases=2, base_channels=4, stage_blocks=(1, 2), norm_cfg=dict(type=norm))
    # With other scales a sum that should be zero becomes a rounding error, and its sign decides what the ReLU passes.
    if name == 'lbd':
        options.update(binary_cfg=dict(weight=dict(type='mmgroupnet.UnscaledWeight')))
    if name.startswith('recomputed'):
        options.update(with_cp=True, binary_downsample=False, avg_down=True)
        name = 'soft_gate'
    network = GroupNetResNet(decomposition=name, **options)
    network.stem[-1] = nn.Identity()  # the stem's norm runs in torch, which synchronises norms only on GPUs
    return network.double().train()


def images() -> Tensor:
    return torch.randn(STEPS, 4, 3, 20, 28, generator=torch.Generator().manual_seed(1)).double()


def loss_of(outs: list[Tensor], share: slice) -> Tensor:
    """A sum over the images, so that the gradients of the two processes add up to those of one process."""
    generator = torch.Generator().manual_seed(2)
    return sum(
        (out * torch.randn(4, *out.shape[1:], generator=generator, dtype=out.dtype)[share]).sum() for out in outs
    )


def train(name: str, norm: str, work_dir: str, share: slice, hook_configs: list[dict]) -> tuple[nn.Module, list[int]]:
    """Trains for some steps like the Runner, with hooks, on a share of the images. Returns the network and, for each
    step, the number of observed layers."""
    observed = []
    network = build(name, norm)
    hooks = [HOOKS.build(config) for config in hook_configs]
    runner = SimpleNamespace(model=network, logger=logging.getLogger('collectives'), work_dir=work_dir, epoch=0, iter=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def call(place: str, *args: object) -> None:
        for hook in hooks:
            getattr(hook, place)(runner, *args)

    call('before_train')
    for step, batch in enumerate(images()):
        call('before_train_iter', step, None)
        observed.append(sum(getattr(module, 'sign_observer', None) is not None for module in network.modules()))
        optimizer.zero_grad()
        loss_of(network(batch[share]), share).backward()
        if distributed.is_initialized():
            for parameter in network.parameters():
                distributed.all_reduce(parameter.grad)
        optimizer.step()
        call('after_train_iter', step, None, None)
    call('after_train_epoch')
    return network, observed


def train_in_process(rank: int, work_dir: str, hook_configs: list[dict]) -> dict[str, dict]:
    found = {}
    for name, (first, second) in SHARES.items():
        share = slice(0, first) if rank == 0 else slice(first, first + second)
        with noted_collectives() as collectives:
            network, observed = train(name, 'SyncBN', work_dir, share, hook_configs)
        found[name] = dict(
            observed=observed,
            collectives=[(kind, str(dtype), list(shape)) for kind, dtype, shape in collectives],
            state=network.state_dict(),
        )
    return found


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> list[dict[str, dict]]:
    """Results of training in two processes, most with different numbers of images, with the hook of the shipped
    configs."""
    configs = [read_config_file(ROOT / f'configs/_base_/{runtime}.py') for runtime in RUNTIMES]
    hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]
    assert all(config.custom_hooks == hooks for config in configs)
    folder = tmp_path_factory.mktemp('processes')
    found = run_in_two_processes(folder, train_in_process, str(folder), hooks)
    assert (folder / 'binary_statistics.jsonl').read_text()
    return found


@pytest.mark.parametrize('name', SHARES)
class TestTwoProcesses:
    def test_issue_the_same_collectives(self, trained, name):
        first, second = (each[name]['collectives'] for each in trained)
        assert first == second
        norms = sum(isinstance(module, nn.SyncBatchNorm) for module in build(name, 'SyncBN').modules())
        assert len(first) == STEPS * (2 * norms + len(list(build(name, 'BN').parameters())))

    def test_observe_alike(self, trained, name):
        layers = sum(isinstance(module, BinaryConv2d) for module in build(name, 'BN').modules())
        for each in trained:
            assert each[name]['observed'] == [layers] + [0] * (STEPS - 1)  # the first iteration is sampled

    def test_train_as_one_with_the_whole_batch(self, trained, name, tmp_path):
        network, _ = train(name, 'BN', str(tmp_path), slice(0, sum(SHARES[name])), [])
        expected = network.state_dict()
        for each in trained:
            state = each[name]['state']
            assert state.keys() == expected.keys()
            for key, value in expected.items():
                assert_close(state[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f'{key}: {text}')
