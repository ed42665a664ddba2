"""Packed models through ``torch.export.export`` and ``torch.jit.trace``: the programs give what the models give."""

import io

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mmgroupnet
from mmgroupnet.deploy import pack
from tests.liveness import estimate_statistics
from tests.test_converters.test_binarize import POLICY, retinanet
from tests.test_deploy.test_packing import as_trained, build_backbone, pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS, build


class Maps(nn.Module):
    """All maps that a model gives, as one tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(x)))


class FeaturesOf(nn.Module):
    """A neck behind one map, which it sees in four sizes."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.mean(dim=1, keepdim=True)
        return self.neck(tuple(x[:, :, ::size, ::size].expand(-1, 8 * size, -1, -1) for size in (1, 2, 4, 8)))


def binarized_retinanet() -> nn.Module:
    return mmgroupnet.binarize(retinanet(), POLICY)


MODELS_OF = dict(
    resnet18=lambda: build_backbone(num_bases=2, base_channels=8),
    resnet50=lambda: build_backbone(num_bases=2, base_channels=8, depth=50),
    layerwise=lambda: build_backbone(num_bases=2, base_channels=8, decomposition='lbd'),
    float_shortcuts=lambda: build_backbone(
        num_bases=2, base_channels=8, in_place_sum=True, binary_downsample=False, avg_down=True
    ),
    fpn=lambda: FeaturesOf(MODELS.build(NECKS['binary'])),
    fcos=lambda: build(BACKBONES['binary'], NECKS['binary'], HEADS['binary']),
    retinanet=binarized_retinanet,
)


@pytest.fixture(scope='module', params=MODELS_OF)
def packed(request) -> Maps:
    torch.manual_seed(0)
    model = Maps(MODELS_OF[request.param]())
    estimate_statistics(model, lambda: model(pictures()))
    return pack(as_trained(model))


def trace(model: nn.Module, x: Tensor) -> nn.Module:
    """The traced program, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


def export(model: nn.Module, x: Tensor) -> nn.Module:
    """The exported program, saved and loaded."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(('grad', 'frozen'), [(True, False), (False, True)], ids=['grad', 'frozen'])
@pytest.mark.parametrize('way', [trace, export], ids=lambda way: way.__name__)
def test_the_program_gives_what_the_model_gives(packed, way, grad, frozen):
    packed.requires_grad_(not frozen)
    x = pictures()
    with torch.set_grad_enabled(grad):
        program = way(packed, x)
        for given in (x, x.flip(3)):
            expected = packed(given)
            found = program(given)
            assert len(found) == len(expected)
            for out, wanted in zip(found, expected, strict=True):
                assert torch.equal(out, wanted)
