"""The error decay estimator of IR-Net, for activations and for weights."""

from torch import Tensor, nn

from mmgroupnet.errors import UserError


class ErrorDecay(nn.Module):
    r"""Surrogate gradient that changes from the identity's to the sign's as training proceeds.

    .. math::
        \frac{\partial q}{\partial x} \approx k t \bigl(1 - \tanh^2(t x)\bigr), \qquad
        t = t_{min} \Bigl(\frac{t_{max}}{t_{min}}\Bigr)^{progress}, \qquad k = \max(1/t, 1)

    ``progress`` goes from 0 to 1. ``ErrorDecayHook`` sets it at the start of every epoch, so resumed training has the
    right value. Without the hook it stays 0.

    Args:
        t_min: Sharpness at the start, above 0. Default: 0.1.
        t_max: Sharpness at the end, at least ``t_min``. Default: 10.

    Source: Qin et al., Forward and Backward Information Retention for Accurate Binary Neural Networks (IR-Net), CVPR
    2020, section 3.3 (there :math:`T_{min} = 10^{-1}`, :math:`T_{max} = 10^1`).

    Raises:
        UserError: If not ``0 < t_min <= t_max``.
    """

    def __init__(self, t_min: float = 0.1, t_max: float = 10.0) -> None:
        super().__init__()
        if not 0 < t_min <= t_max:
            raise UserError(f't_min={t_min}, t_max={t_max}: give two numbers with 0 < t_min <= t_max')
        self.t_min, self.t_max = t_min, t_max
        self.progress = 0.0

    @property
    def sharpness(self) -> float:
        """The sharpness t at the current progress."""
        return self.t_min * (self.t_max / self.t_min) ** self.progress

    def surrogate_gradient(self, x: Tensor) -> Tensor:
        """The gradient at ``x``, in its shape."""
        t = self.sharpness
        return max(1.0, t) * (1 - (t * x).tanh().square())  # k * t = max(1, t)

    def extra_repr(self) -> str:
        return f't_min={self.t_min}, t_max={self.t_max}, progress={self.progress:.3g}'
