"""Draws what quantizers compute, for docs/quantizers.md: ``python docs/plots.py``.

Each plot is made of the outputs and gradients of the class itself. A test compares the committed files with the
classes.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

import torch  # noqa: E402
from matplotlib import rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor  # noqa: E402

from mmgroupnet import quantizers  # noqa: E402
from mmgroupnet.quantizers import SignActivation, SignWeight  # noqa: E402

FOLDER = ROOT / 'docs/images/quantizers'
# The same file every time; letters stay letters, so that the file is small.
STYLE = {'svg.hashsalt': 'mmgroupnet', 'svg.fonttype': 'none', 'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3}


def shifted(num_channels: int) -> SignActivation:
    """A learned threshold, somewhere."""
    activation = quantizers.ShiftedSign(num_channels)
    torch.nn.init.constant_(activation.shift, -0.5)
    return activation


def at_progress(quantizer: quantizers.ErrorDecay, progress: float) -> quantizers.ErrorDecay:
    """A quantizer of IR-Net as it is when that much of the training is done."""
    quantizer.progress = progress
    return quantizer


# The curves of each plot, by their labels.
SIGNS = {
    'PolynomialSign': {'': quantizers.PolynomialSign()},
    'ClippedIdentitySign': {'': quantizers.ClippedIdentitySign()},
    'ShiftedSign': {'β = -0.5': shifted(1)},
    'SwishSign': {f'β = {beta:g}': quantizers.SwishSign(beta) for beta in (5.0, 2.0)},
    'ErrorDecaySign': {
        f'progress {progress:g}': at_progress(quantizers.ErrorDecaySign(), progress) for progress in (0.0, 0.5, 0.75)
    },
}
WEIGHTS = {
    'TensorScaleWeight': quantizers.TensorScaleWeight(),
    'ChannelScaleWeight': quantizers.ChannelScaleWeight(),
    'UnscaledWeight': quantizers.UnscaledWeight(),
    'LearnedScaleWeight': quantizers.LearnedScaleWeight(2),
    'MagnitudeAwareWeight': quantizers.MagnitudeAwareWeight(),
    'BalancedWeight': at_progress(quantizers.BalancedWeight(), 0.5),
}


def curve_of_sign(activation: SignActivation) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(n,)``, outputs and gradients of an activation of one channel."""
    x = torch.linspace(-2, 2, 401, requires_grad=True)
    out = activation(x[:, None])
    out.sum().backward()
    return x.detach(), out.detach().flatten(), x.grad


def example_weights() -> Tensor:
    """Two output channels, normally distributed: one wide, one narrow whose mean is not zero. ``(2, n, 1, 1)``."""
    quantiles = torch.special.ndtri(torch.linspace(0.005, 0.995, 199))
    return torch.stack([0.6 * quantiles, 0.25 + 0.2 * quantiles])[..., None, None]


def curves_of_weight(quantizer: SignWeight) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Weights, binary weights, what the sign sees, and the factor of the gradient there, of each channel ``(n,)``."""
    weight = example_weights()
    quantizer.start(weight)
    latent = quantizer.latent(weight[None])
    curves = [weight, quantizer(weight).detach(), latent[0], quantizer.surrogate_gradient(latent)[0]]
    return list(zip(*(curve.flatten(1) for curve in curves), strict=True))


def two_panels() -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(6.4, 2.2))
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.2, top=0.87)
    return figure, *figure.subplots(1, 2)


def draw_sign(curves: dict[str, SignActivation]) -> Figure:
    """The sign beside its surrogate gradient."""
    figure, left, right = two_panels()
    for index, (label, activation) in enumerate(curves.items()):
        x, out, gradient = curve_of_sign(activation)
        if index == 0:  # The sign is the same in all.
            left.plot(x, out)
        right.plot(x, gradient, label=label)
    left.set(title='output', xlabel='x')
    right.set(title='surrogate gradient', xlabel='x')
    if '' not in curves:
        right.legend(fontsize=8)
    return figure


def draw_weight(quantizer: SignWeight) -> Figure:
    """The binary weights beside the factor of the gradient."""
    figure, left, right = two_panels()
    styles = zip(curves_of_weight(quantizer), ('wide channel', 'narrow channel'), ('-', '--'), strict=True)
    for (weight, out, latent, factor), label, style in styles:
        left.plot(weight, out, style, label=label)
        right.plot(latent, factor, style)
    left.set(title='α sign(u)', xlabel='w')
    right.set(title='factor of the gradient', xlabel='u', ylim=(0, None))
    left.legend(fontsize=8)
    return figure


def draw_all(folder: Path) -> None:
    """Writes every plot into a folder, as ``CLASS.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        for name, drawn in {**SIGNS, **WEIGHTS}.items():
            figure = draw_sign(drawn) if name in SIGNS else draw_weight(drawn)
            figure.savefig(folder / f'{name}.svg', metadata={'Date': None, 'Creator': None})


if __name__ == '__main__':
    draw_all(FOLDER)
