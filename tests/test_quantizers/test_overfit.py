"""A small classifier overfits a few real digits with every quantizer; lean, plain and packed give equal results."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.deploy import pack_and_report
from mmgroupnet.layers import can_run_chain
from mmgroupnet.models import GroupNetResNet
from mmgroupnet.quantizers import ErrorDecay

pytestmark = pytest.mark.usefixtures('simulated_layers')

STEPS = 30
ACTIVATIONS = ['PolynomialSign', 'ClippedIdentitySign', 'ShiftedSign', 'SwishSign', 'ErrorDecaySign']
WEIGHTS = ['ChannelScaleWeight', 'UnscaledWeight', 'LearnedScaleWeight', 'MagnitudeAwareWeight', 'BalancedWeight']
LEARNED = ('activation.shift', 'weight_quantizer.alpha')


class Classifier(nn.Module):
    """A Group-Net with two blocks and two bases, and a linear layer."""

    def __init__(self, **binary_cfg) -> None:
        super().__init__()
        self.backbone = GroupNetResNet(
            depth=18,
            num_bases=2,
            in_channels=1,
            stem='cifar',
            base_channels=8,
            stage_blocks=(1, 1),
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
            binary_cfg=binary_cfg,
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images)[0].mean((2, 3)))


def digits() -> tuple[Tensor, Tensor]:
    """Two images of each digit, ``(20, 1, 8, 8)``, and their labels."""
    data = load_digits()
    return torch.from_numpy(data.images[:20]).unsqueeze(1) / 8 - 1, torch.from_numpy(data.target[:20]).long()


def build(is_lean: bool, options: dict) -> Classifier:
    torch.manual_seed(0)
    return Classifier(memory_efficient=is_lean, **options).double().train()


def train(model: Classifier) -> list[float]:
    """Trains on all digits in one batch and returns the loss of each step."""
    images, labels = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for step in range(STEPS):
        for module in model.modules():
            if isinstance(module, ErrorDecay):
                module.progress = step / (STEPS - 1)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    'options',
    [dict(activation=dict(type=f'mmgroupnet.{name}')) for name in ACTIVATIONS]
    + [dict(weight=dict(type=f'mmgroupnet.{name}')) for name in WEIGHTS],
    ids=ACTIVATIONS + WEIGHTS,
)
def test_overfits_lean_plain_and_packed(options):
    model = build(True, options)
    block, images = model.backbone.stages[0][0], digits()[0]
    assert can_run_chain(block.chain(), model.backbone.stem(images), block)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = train(model)
    assert losses == pytest.approx(train(build(False, options)), rel=1e-6)
    assert losses[-1] < losses[0] / 3

    learned = {name: value for name, value in model.named_parameters() if name.endswith(LEARNED)}
    assert bool(learned) == any(name in str(options) for name in ('ShiftedSign', 'LearnedScaleWeight'))
    for name, value in learned.items():
        assert (value - before[name]).abs().max() > 0.01, name

    model, images = model.float().eval(), images.float()
    packed, layers = pack_and_report(model)
    assert len(layers) == 5 and not any(layer.problem for layer in layers)
    with torch.no_grad():
        assert_close(packed(images), model(images), rtol=1e-4, atol=1e-4)
