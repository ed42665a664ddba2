"""Models in eval mode through ``torch.export.export`` and ``torch.jit.trace``: in any grad mode, frozen or not."""

import itertools
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from mmengine.runner import load_state_dict
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import mmgroupnet
from mmgroupnet.engine.configs import load_config
from mmgroupnet.models import GroupNetResNet
from tests.lean_comparison import randomise
from tests.liveness import estimate_statistics
from tests.programs import Maps, export, trace
from tests.test_converters.test_binarize import POLICY, retinanet

ROOT = Path(__file__).parents[1]
IMAGE = (1, 3, 64, 96)


class BackboneAndNeck(nn.Module):
    """Returns the input maps of a detector's head as one tuple."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(x)))


def flagship() -> nn.Module:
    model = load_config(str(ROOT / 'configs/fcos_groupnet_r50_coco.py')).model
    return BackboneAndNeck(MODELS.build(model.backbone), MODELS.build(model.neck))


# Blocks with a projection in the shortcut and blocks without.
SHALLOW = dict(depth=18, num_bases=2, base_channels=8, stage_blocks=(1, 2, 1, 1))
MODELS_OF = dict(
    resnet18=lambda: GroupNetResNet(**SHALLOW),
    resnet50=lambda: GroupNetResNet(**SHALLOW | dict(depth=50)),
    recomputed=lambda: GroupNetResNet(**SHALLOW, with_cp=True),
    binarised_retinanet=lambda: Maps(mmgroupnet.binarize(retinanet(), POLICY)),
)
# The mode decides between lean and plain in each layer, regardless of the model. So one model is tested in all modes;
# the others are tested as after training (with gradients) and as deployed (frozen, without gradients).
MODES = [
    pytest.param(name, grad, frozen, marks=() if name == 'resnet18' else pytest.mark.slow)
    for name, grad, frozen in itertools.product(MODELS_OF, (True, False), (True, False))
    if name == 'resnet18' or grad != frozen
]
FULL_SIZE = dict(
    resnet18=lambda: GroupNetResNet(depth=18, num_bases=5),
    resnet50=lambda: GroupNetResNet(depth=50, num_bases=5),
    flagship=flagship,
)


def assert_programs_agree(model: nn.Module, x: Tensor) -> None:
    """Compares the programs with the plain model, since programs run plain. Lean layers round differently, which could
    flip a sign."""
    model, x = model.double(), x.double()
    estimate_statistics(randomise(model), lambda: model(x))
    model.eval()
    with torch.no_grad():
        expected = tree_leaves(model(x))
    for way in (export, trace):
        found = tree_leaves(way(model, x, reload=True)(x))
        assert len(found) == len(expected)
        for out, wanted in zip(found, expected, strict=True):
            assert_close(out, wanted)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
class TestPrograms:
    @pytest.mark.parametrize(('name', 'grad', 'frozen'), MODES)
    def test_agree_in_any_mode(self, name, grad, frozen):
        torch.manual_seed(0)
        model = MODELS_OF[name]().requires_grad_(not frozen)
        with torch.set_grad_enabled(grad):
            assert_programs_agree(model, torch.randn(IMAGE))

    @pytest.mark.slow
    @pytest.mark.parametrize('name', FULL_SIZE)
    def test_agree_in_full_size(self, name):
        torch.manual_seed(0)
        # At this size the coarsest map has two pixels; its norms need at least two for their statistics.
        assert_programs_agree(FULL_SIZE[name](), torch.randn(1, 3, 128, 192))


@pytest.mark.parametrize('stem', ['imagenet', 'cifar'])
def test_efficient_conv_bn_eval_of_mmengine(stem):
    """mmengine traces the model with torch.fx. Binary blocks are single nodes that run as before: lean in training."""
    torch.manual_seed(0)
    model, expected = (GroupNetResNet(depth=18, num_bases=2, base_channels=8, stem=stem).double() for _ in range(2))
    load_state_dict(expected, model.state_dict(), strict=True)
    x = torch.randn(2, 3, 48, 64).double()
    turn_on_efficient_conv_bn_eval_for_single_model(model)
    for training in (True, False):
        outs, wanted = model.train(training)(x), expected.train(training)(x)
        for out, other in zip(outs, wanted, strict=True):
            assert_close(out, other)
        sum(out.sum() for out in outs).backward()
        sum(other.sum() for other in wanted).backward()
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(parameter.grad, other.grad)


def test_efficient_conv_bn_eval_of_a_binarised_backbone():
    torch.manual_seed(0)
    model = mmgroupnet.binarize(retinanet(), POLICY).backbone.double()
    model.eval()
    x = torch.randn(1, 3, 64, 64).double()
    expected = model(x)
    turn_on_efficient_conv_bn_eval_for_single_model(model)
    for out, wanted in zip(model(x), expected, strict=True):
        assert_close(out, wanted)
