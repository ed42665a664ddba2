import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmpretrain.models.utils import LayerNorm2d
from torch import nn
from torch.testing import assert_close

from mmgroupnet.errors import UserError
from mmgroupnet.layers import (
    InPlaceMerge,
    MeanMerge,
    RealValuedSkip,
    ScaledMerge,
    SoftGate,
    broadcast,
    build_branch_norm,
    build_merge,
    share,
    soft_connect,
    split,
)
from mmgroupnet.layers.packed import find_twin, simulated
from tests.references import assert_same_gradients
from tests.strategies import seeds

NUM_BASES = [1, 2, 3, 5]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_branches(num_bases: int, channels: int = 3, memory_format=torch.contiguous_format) -> torch.Tensor:
    x = torch.randn(2, num_bases * channels, 4, 5, dtype=torch.float64)
    return x.to(memory_format=memory_format).requires_grad_()


def rows(x: torch.Tensor, num_bases: int) -> list[torch.Tensor]:
    """The branches by index: in the folded layout they follow each other along the channels."""
    size = x.shape[1] // num_bases
    return [x[:, branch * size : (branch + 1) * size] for branch in range(num_bases)]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
@pytest.mark.parametrize('num_bases', NUM_BASES)
class TestLayout:
    def test_broadcast(self, num_bases, memory_format):
        x = random_branches(1, memory_format=memory_format)
        assert_same_gradients(broadcast(x, num_bases), torch.cat([x] * num_bases, dim=1), [x])

    def test_split(self, num_bases, memory_format):
        x = random_branches(num_bases, memory_format=memory_format)
        branches = split(x, num_bases)
        assert len(branches) == num_bases
        for branch, expected in zip(branches, rows(x, num_bases), strict=True):
            assert_same_gradients(branch, expected, [x])

    def test_split_inverts_broadcast(self, num_bases, memory_format):
        x = random_branches(1, memory_format=memory_format)
        for branch in split(broadcast(x, num_bases), num_bases):
            assert torch.equal(branch, x)

    def test_share_a_conv(self, num_bases, memory_format):
        conv = nn.Conv2d(3, 2, 3, stride=2, padding=1).double()
        x = random_branches(num_bases, memory_format=memory_format)
        expected = torch.cat([conv(branch) for branch in rows(x, num_bases)], dim=1)
        assert_same_gradients(share(conv, x, num_bases), expected, [x, *conv.parameters()])

    def test_share_a_norm_takes_joint_statistics(self, num_bases, memory_format):
        norm = nn.BatchNorm2d(3).double()
        x = random_branches(num_bases, memory_format=memory_format)
        branches = torch.stack(rows(x, num_bases))
        mean, var = branches.mean(dim=(0, 1, 3, 4)), branches.var(dim=(0, 1, 3, 4), unbiased=False)
        normed = (branches - mean.view(3, 1, 1)) / (var + norm.eps).sqrt().view(3, 1, 1)
        assert_same_gradients(share(norm, x, num_bases), torch.cat(list(normed), dim=1), [x])
        assert_close(norm.running_mean, 0.1 * mean)
        assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize('num_bases', NUM_BASES)
class TestMerge:
    @pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
    def test_mean(self, num_bases, memory_format):
        x = random_branches(num_bases, memory_format=memory_format)
        expected = sum(rows(x, num_bases)) / num_bases
        assert_same_gradients(MeanMerge(num_bases)(x), expected, [x])

    @pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
    def test_scaled(self, num_bases, memory_format):
        merge = ScaledMerge(num_bases).double()
        x = random_branches(num_bases, memory_format=memory_format)
        expected = sum(merge.scales[i] * branch for i, branch in enumerate(rows(x, num_bases)))
        assert_same_gradients(merge(x), expected, [x, merge.scales])

    @pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
    def test_in_place(self, num_bases, memory_format):
        merge = InPlaceMerge(num_bases)
        x = random_branches(num_bases, memory_format=memory_format)
        first, *others = rows(x, num_bases)
        total = sum(others, first)
        handed_on = merge.outputs_for_next(x)
        assert_same_gradients(handed_on, torch.cat([total, *others], dim=1), [x])
        assert_same_gradients(merge(handed_on), total / num_bases, [x])
        weights = merge.weights(x)
        assert weights.dtype == torch.float64 and weights.tolist() == [1 / num_bases] + [0.0] * (num_bases - 1)

    def test_others_return_their_input(self, num_bases):
        x = random_branches(num_bases)
        assert all(build_merge(num_bases, scaled).outputs_for_next(x) is x for scaled in (False, True))

    @pytest.mark.parametrize('shape', [(4,), (4, 3, 3), (4, 2, 3, 3)])
    def test_any_number_of_axes(self, num_bases, shape):
        x = torch.randn(2, num_bases * shape[0], *shape[1:], dtype=torch.float64)
        merge = ScaledMerge(num_bases).double()
        assert_close(MeanMerge(num_bases)(x), sum(rows(x, num_bases)) / num_bases)
        assert_close(merge(x), sum(merge.scales[i] * branch for i, branch in enumerate(rows(x, num_bases))))

    def test_scales_start_between_zero_and_one(self, num_bases):
        scales = torch.cat([ScaledMerge(num_bases).scales.detach() for _ in range(400)])
        assert 0 <= scales.min() and scales.max() < 1
        assert abs(scales.mean() - 0.5) < 0.06 and abs(scales.var() - 1 / 12) < 0.02

    def test_build(self, num_bases):
        mean, scaled = build_merge(num_bases, learned_scales=False), build_merge(num_bases, learned_scales=True)
        assert type(mean) is MeanMerge and not list(mean.parameters())
        assert type(scaled) is ScaledMerge and [p.shape for p in scaled.parameters()] == [(num_bases,)]
        assert mean.num_bases == scaled.num_bases == num_bases


def test_a_sum_in_place_is_noted_in_the_state():
    plain, in_place = MeanMerge(2), InPlaceMerge(2)
    assert list(in_place.half().double().state_dict().values()) == [torch.tensor(1)]
    for merge, other in ((plain, in_place), (in_place, plain)):
        with pytest.raises(RuntimeError, match='sums_in_place'):
            merge.load_state_dict(other.state_dict())


def test_one_branch_is_its_own_mean():
    x = random_branches(1)
    assert torch.equal(MeanMerge(1)(x), x)


class TestSoftConnect:
    @staticmethod
    def loop(x, theta, merge):
        """``c * branch + (1 - c) * merged``, branch by branch."""
        branches = rows(x, merge.num_bases)
        scales = getattr(merge, 'scales', torch.full((merge.num_bases,), 1 / merge.num_bases, dtype=x.dtype))
        merged = sum(scale * branch for scale, branch in zip(scales, branches, strict=True))
        gates = torch.sigmoid(theta).expand(merge.num_bases)
        return torch.cat([c * branch + (1 - c) * merged for c, branch in zip(gates, branches, strict=True)], dim=1)

    @settings(deadline=None, max_examples=40)
    @given(st.sampled_from(NUM_BASES), st.booleans(), st.booleans(), st.booleans(), seeds())
    def test_loop(self, num_bases, per_branch, learned_scales, channels_last, seed):
        torch.manual_seed(seed)
        merge = build_merge(num_bases, learned_scales).double()
        theta = torch.randn(num_bases if per_branch else 1, dtype=torch.float64, requires_grad=True)
        x = random_branches(num_bases, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        leaves = [x, theta, *merge.parameters()]
        assert_same_gradients(soft_connect(x, theta, merge), self.loop(x, theta, merge), leaves)

    @pytest.mark.parametrize('learned_scales', [False, True])
    @pytest.mark.parametrize('num_bases', NUM_BASES)
    def test_closed_gates_pass_the_merged_map(self, num_bases, learned_scales):
        merge = build_merge(num_bases, learned_scales).double()
        x = random_branches(num_bases)
        out = soft_connect(x, torch.tensor([-torch.inf]).double(), merge)
        assert_same_gradients(out, broadcast(merge(x), num_bases), [x, *merge.parameters()])

    @pytest.mark.parametrize('learned_scales', [False, True])
    @pytest.mark.parametrize('num_bases', NUM_BASES)
    def test_open_gates_leave_the_branches_apart(self, num_bases, learned_scales):
        merge = build_merge(num_bases, learned_scales).double()
        x = random_branches(num_bases)
        assert_same_gradients(soft_connect(x, torch.tensor([torch.inf]).double(), merge), x.clone(), [x])

    def test_one_gate_per_branch_in_the_order_of_the_branches(self):
        x = torch.tensor([1.0, 3.0, 8.0]).view(1, 3, 1, 1)
        out = soft_connect(x, torch.tensor([-torch.inf, 0.0, torch.inf]), MeanMerge(3))
        assert out.flatten().tolist() == [4.0, 3.5, 8.0]

    @pytest.mark.parametrize('num_gates', [1, 3])
    def test_module(self, num_gates):
        gate, merge = SoftGate(num_gates).double(), ScaledMerge(3).double()
        assert gate.theta.shape == (num_gates,)
        x = random_branches(3)
        assert_same_gradients(gate(x, merge), self.loop(x, gate.theta, merge), [x, gate.theta, merge.scales])

    def test_theta_starts_between_zero_and_one(self):
        theta = torch.cat([SoftGate(5).theta.detach() for _ in range(200)])
        assert 0 <= theta.min() and theta.max() < 1
        assert abs(theta.mean() - 0.5) < 0.06 and abs(theta.var() - 1 / 12) < 0.02


class TestRealValuedSkip:
    def build(self):
        return RealValuedSkip(ConvModule(3, 3, 1, norm_cfg=dict(type='BN'), act_cfg=None))

    def test_adds_the_input(self):
        skip, x = self.build(), torch.randn(2, 3, 4, 5)
        assert torch.equal(skip(x), skip.module(x) + x)

    def test_attributes_are_those_of_the_module(self):
        skip = self.build()
        assert skip.conv is skip.module.conv and skip.norm is skip.module.norm
        assert skip.in_channels == 3 and skip.with_norm and not skip.with_activation
        assert not hasattr(skip, 'stride_of_nothing')
        with pytest.raises(AttributeError, match='no attribute .stride_of_nothing'):
            _ = skip.stride_of_nothing

    def test_private_names_are_its_own(self):
        """Otherwise a copy of the skip would call the ``__deepcopy__`` of its module and return only the module."""

        class Copied(nn.Identity):
            def __deepcopy__(self, memo):
                return self

        assert isinstance(copy.deepcopy(RealValuedSkip(Copied())), RealValuedSkip)

    @pytest.mark.parametrize('duplicate', [copy.copy, copy.deepcopy, lambda skip: pickle.loads(pickle.dumps(skip))])
    def test_copies(self, duplicate):
        skip, x = self.build().eval(), torch.randn(2, 3, 4, 5)
        twin = duplicate(skip)
        assert torch.equal(twin(x), skip(x)) and twin.conv is twin.module.conv

    def test_names_in_checkpoints_and_traces(self):
        skip, x = self.build().eval(), torch.randn(2, 3, 4, 5)
        assert {name.split('.')[0] for name in skip.state_dict()} == {'module'}
        assert [name for name, _ in skip.named_children()] == ['module']
        assert_close(torch.jit.trace(skip, x)(x), skip(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('num_bases', [1, 2, 3, 5])
def test_half_precision_merges_the_same(num_bases, dtype):
    """In half precision, and on GPUs, the branches are added up in another way."""
    x = torch.randn(2, num_bases * 3, 4, 5).to(dtype).requires_grad_()
    reference = x.detach().double().requires_grad_()
    for merge in (MeanMerge(num_bases), ScaledMerge(num_bases).to(dtype)):
        out, expected = merge(x), merge.double()(reference)
        assert out.dtype == dtype
        assert_close(out.double(), expected, rtol=0.02, atol=0.02)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        (wanted,) = torch.autograd.grad(expected.sum(), reference)
        assert_close(gradient.double(), wanted, rtol=0.02, atol=0.02)


def test_the_scale_of_a_single_branch():
    merge, x = ScaledMerge(1).eval(), torch.randn(2, 4, 5, 6)
    nn.init.constant_(merge.scales, 0.3)
    with torch.no_grad():
        assert find_twin(merge, x) is not None
        assert_close(merge(x), 0.3 * x)
        with simulated():
            assert_close(merge(x), 0.3 * x)


@pytest.mark.parametrize('cfg', [dict(type='BN'), dict(type='GN', num_groups=2), dict(type='IN', affine=True)], ids=str)
def test_a_norm_of_branches_is_that_of_each(cfg):
    x = torch.randn(2, 3 * 4, 5, 6)
    alone = build_branch_norm(cfg, 1, 4)
    expected = torch.cat([alone(branch) for branch in split(x, 3)], dim=1)
    assert_close(build_branch_norm(cfg, 3, 4)(x), expected)


@pytest.mark.parametrize('kind', ['LN', LayerNorm2d])
def test_a_norm_over_the_channels_is_for_one_branch(kind):
    with pytest.raises(UserError, match=r'takes the mean over the channels of all 3 branches: give one of each'):
        build_branch_norm(dict(type=kind), 3, 4)
    assert build_branch_norm(dict(type=kind), 1, 4).normalized_shape == (4,)
