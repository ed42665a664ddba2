"""Passes of memory-lean training over the integers of binary convolutions: kernels on the CPU, plain torch elsewhere.

Integers ``y`` are int16 ``(N, K*C, H, W)``; torch takes floats as well. With ``relu``, r = max(y, 0), else r = y;
scales and shifts are per folded channel. Nothing here is seen by autograd.
"""

import torch
from torch import Tensor

from mmgroupnet.ops import kernels
from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.kernels import nhwc

_NO_RELU = -32768
# Sums that fit 16 bits.
MAX_LENGTH = 32767


def uses_kernels(x: Tensor) -> bool:
    """Whether kernels compute on such a tensor."""
    return x.device.type == 'cpu' and x.dtype == torch.float32 and kernels.library() is not None


def _channels(vector: Tensor, like: Tensor) -> Tensor:
    """A vector over the channels, as it broadcasts to maps of the dtype of ``like``."""
    return vector.to(like.dtype).view(-1, 1, 1)


def _low(relu: bool) -> int:
    return 0 if relu else _NO_RELU


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _is_integer(y: Tensor) -> bool:
    is_ours = y.dtype == torch.int16 and y.is_contiguous(memory_format=torch.channels_last)
    return is_ours and y.device.type == 'cpu' and kernels.library() is not None


def _rectified(y: Tensor, dtype: torch.dtype, relu: bool) -> Tensor:
    y = y.to(dtype)
    return y.clamp(min=0) if relu else y


def convolve(x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
    """The integers of a binary convolution.

    Args:
        x: ``(N, B * in_channels, H, W)``, float32 on the CPU; only its signs count.
        weight: Latent weights ``(rows, in_channels/groups, kh, kw)``; only their signs count.
        geometry: The unit, of at most :data:`MAX_LENGTH` products in a sum.

    Returns:
        ``(N, B' * out_channels, H', W')``, int16, channels_last.
    """
    library, threads = kernels.library(), torch.get_num_threads()
    rows, channels, height, width = weight.shape
    bits = torch.empty(rows, -(-geometry.row_bits // 8), dtype=torch.uint8)
    weight = weight.detach().contiguous()
    library.mmg_pack_weights(weight.data_ptr(), rows, channels, height * width, bits.data_ptr(), threads)
    unit = kernels.describe_unit(geometry, [bits, *[None] * 6])
    x = nhwc(x)
    batch, folded, height, width = x.shape
    given = folded // geometry.in_channels
    words = torch.empty(_pixels(x) * given * -(-geometry.in_channels // 64), dtype=torch.int64)
    library.mmg_sign_pack(
        x.data_ptr(), False, batch, height * width, given, geometry.in_channels, words.data_ptr(), threads
    )
    size = geometry.output_size(height, width)
    out_channels = geometry.branches(given) * geometry.out_channels
    out = torch.empty(batch, out_channels, *size, dtype=torch.int16, memory_format=torch.channels_last)
    library.mmg_convolve(unit, batch, height, width, words.data_ptr(), given, True, out.data_ptr(), threads)
    return out


def scaled_signs(weight: Tensor, scale: Tensor) -> Tensor:
    """Signs of latent weights ``(C_out, C_in/groups, kh, kw)`` times a scale for each output channel, ``(C_out,)``."""
    if not (uses_kernels(weight) and weight.is_contiguous()):
        scale = scale.to(weight.dtype).view(-1, 1, 1, 1)
        return torch.where(weight >= 0, scale, -scale)
    scale = scale.float().contiguous()
    out = torch.empty_like(weight)
    kernels.library().mmg_scaled_signs(
        weight.data_ptr(),
        scale.data_ptr(),
        len(weight),
        weight[0].numel(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def relu_sums(y: Tensor, relu: bool) -> Tensor:
    """Sums of r and of r * r over all pixels, ``(2, K*C)`` float64."""
    if not _is_integer(y):
        r = _rectified(y, torch.float64 if y.dtype == torch.float64 else torch.float32, relu)
        return torch.stack([r.sum((0, 2, 3), dtype=torch.float64), r.square().sum((0, 2, 3), dtype=torch.float64)])
    sums = torch.empty(2, y.shape[1], dtype=torch.float64)
    kernels.library().mmg_relu_sums(
        y.data_ptr(), _low(relu), _pixels(y), y.shape[1], sums.data_ptr(), torch.get_num_threads()
    )
    return sums


def relu_affine(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool, like: Tensor) -> Tensor:
    """``scale * r + shift + residual``, in the dtype of ``like``."""
    if not (_is_integer(y) and like.dtype == torch.float32):
        out = torch.addcmul(_channels(shift, like), _rectified(y, like.dtype, relu), _channels(scale, like))
        return out if residual is None else out.add_(residual)
    scale, shift = scale.float(), shift.float()
    residual = None if residual is None else nhwc(residual.float())
    out = torch.empty_like(y, dtype=torch.float32)
    kernels.library().mmg_relu_affine(
        y.data_ptr(),
        _low(relu),
        scale.data_ptr(),
        shift.data_ptr(),
        kernels.pointer(residual),
        _pixels(y),
        y.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gradient_sums(gradient: Tensor, y: Tensor, relu: bool) -> Tensor:
    """Sums of the gradient and of gradient * r over all pixels, ``(2, K*C)`` float64."""
    if not (_is_integer(y) and gradient.dtype == torch.float32):
        product = gradient * _rectified(y, gradient.dtype, relu)
        return torch.stack([value.sum((0, 2, 3), dtype=torch.float64) for value in (gradient, product)])
    gradient = nhwc(gradient)
    sums = torch.empty(2, y.shape[1], dtype=torch.float64)
    kernels.library().mmg_gradient_sums(
        gradient.data_ptr(),
        y.data_ptr(),
        _low(relu),
        _pixels(y),
        y.shape[1],
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return sums


class AffineGradient:
    """``p * gradient + q * r + s`` where y > 0 (everywhere without ReLU), one branch at a time.

    Args:
        gradient: ``(N, K*C, H, W)``.
        y: The same.
        p, q, s: Per folded channel.
        branches: Number K.
        relu: Whether r is y after a ReLU.
    """

    def __init__(
        self, gradient: Tensor, y: Tensor, p: Tensor, q: Tensor, s: Tensor, branches: int, relu: bool
    ) -> None:
        self.uses_kernels = _is_integer(y) and gradient.device.type == 'cpu' and gradient.dtype == torch.float32
        self.gradient = nhwc(gradient) if self.uses_kernels else gradient
        self.y, self.relu = y, relu
        self.channels = y.shape[1] // branches
        self.vectors = [vector.to(gradient.dtype).contiguous() for vector in (p, q, s)]
        self.out: Tensor | None = None

    def branch(self, k: int, reuse: bool = False) -> tuple[Tensor, Tensor]:
        """That of a branch, ``(N, C, H, W)``, and its sum over all pixels, ``(C,)``; with ``reuse`` it may lie where
        that of the last branch lay."""
        first = k * self.channels
        if not self.uses_kernels:
            g, y = (value.narrow(1, first, self.channels) for value in (self.gradient, self.y))
            p, q, s = (_channels(vector.narrow(0, first, self.channels), g) for vector in self.vectors)
            out = (p * g).addcmul_(y.to(g.dtype), q).add_(s)
            out = out.mul_(y > 0) if self.relu else out
            return out, out.sum((0, 2, 3))
        out = self.out if reuse and self.out is not None else _empty_branch(self.y, self.channels)
        self.out = out
        sums = torch.empty(self.channels, dtype=torch.float64)
        kernels.library().mmg_affine_gradient(
            self.gradient.data_ptr(),
            self.y.data_ptr(),
            _low(self.relu),
            *(vector.data_ptr() for vector in self.vectors),
            _pixels(self.y),
            self.y.shape[1],
            first,
            self.channels,
            out.data_ptr(),
            sums.data_ptr(),
            torch.get_num_threads(),
        )
        return out.permute(0, 3, 1, 2), sums.float()


def _empty_branch(like: Tensor, channels: int) -> Tensor:
    batch, _, height, width = like.shape
    return torch.empty(batch, height, width, channels)


def padded_signs(x: Tensor, padding_value: int, k: int, branches: int) -> Tensor:
    """Signs of a branch minus ``padding_value``, ``(N, C, H, W)``: where the signs are padded with it, these are padded
    with 0."""
    channels = x.shape[1] // branches
    if not uses_kernels(x):
        x = x.narrow(1, k * channels, channels)
        return torch.where(x >= 0, 1.0 - padding_value, -1.0 - padding_value).to(x.dtype)
    x = nhwc(x)
    out = _empty_branch(x, channels)
    kernels.library().mmg_padded_signs(
        x.data_ptr(),
        padding_value,
        _pixels(x),
        x.shape[1],
        k * channels,
        channels,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out.permute(0, 3, 1, 2)


def add_polynomial_sign_gradient(
    gradient: Tensor, x: Tensor, residual: Tensor | None, k: int, branches: int, out: Tensor
) -> None:
    """Writes ``max(0, 2 - 2|x|) * gradient + residual`` of a branch into ``out``.

    Args:
        gradient: Of the signs of the branch, ``(N, C, H, W)``.
        x, residual, out: Of all branches, ``(N, K*C, H, W)``, float32, channels_last.
        k: The branch.
        branches: Number K.
    """
    gradient = nhwc(gradient.float())
    channels = x.shape[1] // branches
    kernels.library().mmg_sign_gradient(
        gradient.data_ptr(),
        x.data_ptr(),
        kernels.pointer(residual),
        _pixels(x),
        x.shape[1],
        k * channels,
        channels,
        out.data_ptr(),
        torch.get_num_threads(),
    )


def connect(x: Tensor, gate: Tensor, scales: Tensor) -> Tensor:
    """``m + gate[i] * (x_i - m)`` of all branches, with ``m = sum_j scales[j] * x_j``."""
    num_bases = len(gate)
    if not uses_kernels(x):
        branches = x.unflatten(1, (num_bases, -1))
        merged = (branches * scales.view(-1, 1, 1, 1)).sum(dim=1, keepdim=True)
        return (merged + gate.view(-1, 1, 1, 1) * (branches - merged)).flatten(1, 2)
    x = nhwc(x)
    out = torch.empty_like(x)
    kernels.library().mmg_connect(
        x.data_ptr(),
        _pixels(x),
        num_bases,
        x.shape[1] // num_bases,
        scales.data_ptr(),
        gate.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def connect_gradient(gradient: Tensor, x: Tensor, gate: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`connect` in ``x``, ``gate`` and ``scales``."""
    num_bases = len(gate)
    if not uses_kernels(x):
        g, branches = (value.unflatten(1, (num_bases, -1)) for value in (gradient, x))
        gates, lambdas = (value.view(-1, 1, 1, 1) for value in (gate, scales))
        merged = (branches * lambdas).sum(dim=1, keepdim=True)
        merged_gradient = ((1 - gates) * g).sum(dim=1, keepdim=True)
        out = (gates * g + lambdas * merged_gradient).flatten(1, 2)
        dims = (0, 2, 3, 4)
        return out, (g * (branches - merged)).sum(dims), (merged_gradient * branches).sum(dims)
    gradient, x = nhwc(gradient.float()), nhwc(x)
    out = torch.empty_like(x)
    sums = torch.empty(2, num_bases, dtype=torch.float64)
    kernels.library().mmg_connect_gradient(
        gradient.data_ptr(),
        x.data_ptr(),
        gate.data_ptr(),
        scales.data_ptr(),
        _pixels(x),
        num_bases,
        x.shape[1] // num_bases,
        out.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return (out, *sums.to(gate.dtype))
