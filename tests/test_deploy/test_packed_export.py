"""Packed models through ``torch.export.export`` and ``torch.jit.trace``: the saved and loaded programs give the outputs
of the models."""

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

import mmgroupnet
from mmgroupnet.deploy import pack
from tests.liveness import estimate_statistics
from tests.programs import Maps, export, trace
from tests.test_converters.test_binarize import POLICY, retinanet
from tests.test_deploy.test_packing import as_trained, build_backbone, pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS, build


class FeaturesOf(nn.Module):
    """A neck that takes its four levels from one map by subsampling."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.mean(dim=1, keepdim=True)
        return self.neck(tuple(x[:, :, ::size, ::size].expand(-1, 8 * size, -1, -1) for size in (1, 2, 4, 8)))


def binarized_retinanet() -> nn.Module:
    return mmgroupnet.binarize(retinanet(), POLICY)


# Blocks with a projection in the shortcut and blocks without.
BLOCKS = (1, 2, 1, 1)
SHALLOW = dict(num_bases=2, base_channels=8, stage_blocks=BLOCKS)
MODELS_OF = dict(
    resnet18=lambda: build_backbone(**SHALLOW),
    resnet50=lambda: build_backbone(**SHALLOW, depth=50),
    layerwise=lambda: build_backbone(**SHALLOW, decomposition='lbd'),
    float_shortcuts=lambda: build_backbone(**SHALLOW, in_place_sum=True, binary_downsample=False, avg_down=True),
    fpn=lambda: FeaturesOf(MODELS.build(NECKS['binary'])),
    fcos=lambda: build(dict(BACKBONES['binary'], stage_blocks=BLOCKS), NECKS['binary'], HEADS['binary']),
    retinanet=binarized_retinanet,
)


@pytest.fixture(scope='module', params=MODELS_OF)
def packed(request) -> Maps:
    torch.manual_seed(0)
    model = Maps(MODELS_OF[request.param]())
    estimate_statistics(model, lambda: model(pictures()))
    return pack(as_trained(model))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(('grad', 'frozen'), [(True, False), (False, True)], ids=['grad', 'frozen'])
@pytest.mark.parametrize('way', [trace, export], ids=lambda way: way.__name__)
def test_the_program_gives_what_the_model_gives(packed, way, grad, frozen):
    packed.requires_grad_(not frozen)
    x = pictures()
    with torch.set_grad_enabled(grad):
        program = way(packed, x, reload=True)
        for given in (x, x.flip(3)):
            expected = packed(given)
            found = program(given)
            assert len(found) == len(expected)
            for out, wanted in zip(found, expected, strict=True):
                assert torch.equal(out, wanted)
