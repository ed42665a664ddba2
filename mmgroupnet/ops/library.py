"""The packed kernels as torch ops: :func:`sign_pack`, :func:`convolve`, :func:`connect` and :func:`run_block`.

They are registered with ``torch.library`` and have shape functions, so ``torch.compile`` and ``torch.export`` can
handle them. They run only on the CPU and have no gradients: other devices, and inputs that need a gradient, are refused
with a one-line error. If the kernels were not compiled, the ops run simulated.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mmgroupnet.ops import kernels, simulation
from mmgroupnet.ops.float_convolution import signs_of
from mmgroupnet.ops.geometry import PARAMETERS, Connection, Residual, UnitGeometry
from mmgroupnet.ops.kernels import nhwc
from mmgroupnet.ops.packing import pack_bits


def _check(x: Tensor, *parameters: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f'input of shape {tuple(x.shape)}: packed ops take (N, C, H, W)')
    if x.dtype != torch.float32:
        raise ValueError(f'input of {x.dtype}: packed ops compute in float32')
    for tensor in (x, *parameters):
        if tensor is not None and tensor.device.type not in ('cpu', 'meta'):
            raise RuntimeError(f'a tensor is on {tensor.device}: packed ops run only on the CPU')


def _count_branches(x: Tensor, channels: int, branches: Sequence[int]) -> int:
    """Number of branches of a map; it must be one of ``branches``."""
    given, rest = divmod(x.shape[1], channels)
    if rest or given not in branches:
        allowed = ' or '.join(f'{count} * {channels}' for count in sorted(set(branches)))
        raise ValueError(f'input of shape {tuple(x.shape)}: the op takes (N, {allowed}, H, W)')
    return given


def _empty(batch: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    return torch.empty(
        batch, channels, height, width, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@torch.library.custom_op('mmgroupnet::sign_pack', mutates_args=())
def sign_pack(x: Tensor, branches: int) -> Tensor:
    """Packs the signs of a map, 0 for +1 (zeros included) and 1 for -1.

    Args:
        x: ``(N, branches * C, H, W)``, float32, contiguous or channels_last.
        branches: Number of branches that are folded into the channels.

    Returns:
        ``(N, H, W, branches, ceil(C / 64))``, int64: channel c is bit c % 64 of word c // 64; unused bits are 0.
    """
    _check(x)
    channels = x.shape[1] // branches
    _count_branches(x, channels, [branches])
    batch, _, height, width = x.shape
    nchw = x.is_contiguous()
    x = x if nchw else nhwc(x)
    words = x.new_empty(batch, height, width, branches, -(-channels // 64), dtype=torch.int64)
    library = kernels.library()
    if library is None:
        negative = ~(x >= 0).permute(0, 2, 3, 1).reshape(-1, channels)
        packed = torch.zeros(len(negative), words.shape[-1] * 8, dtype=torch.uint8)
        packed[:, : -(-channels // 8)] = pack_bits(negative)
        return packed.view(torch.int64).view_as(words)
    library.mmg_sign_pack(
        x.data_ptr(), nchw, batch, height * width, branches, channels, words.data_ptr(), torch.get_num_threads()
    )
    return words


@sign_pack.register_fake
def _(x: Tensor, branches: int) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, height, width, branches, -(-(channels // branches) // 64), dtype=torch.int64)


@torch.library.custom_op('mmgroupnet::convolve', mutates_args=())
def convolve(x: Tensor, bits: Tensor, geometry: Sequence[int]) -> Tensor:
    """Convolves the signs of a map with packed weights and returns the exact integers; nothing is fused.

    Args:
        x: ``(N, B * in_channels, H, W)``, float32; B is K, or 1 if all branches read the same map.
        bits: Packed weights, see :func:`pack_weight`.
        geometry: :meth:`UnitGeometry.encode` of one unit; merging, ReLU and residual are ignored.

    Returns:
        ``(N, K * out_channels, H', W')``, int32, channels_last.
    """
    (unit,) = UnitGeometry.decode(tuple(geometry))
    _check(x, bits)
    parameters = [bits, *[None] * (len(PARAMETERS) - 1)]
    given = _count_branches(x, unit.in_channels, [1, unit.num_bases])
    batch, _, height, width = x.shape
    branches = given if unit.shares_weights else unit.num_bases
    out = _empty(batch, branches * unit.out_channels, *unit.output_size(height, width), like=x).to(torch.int32)
    library = kernels.library()
    if library is None:
        kernels.check_parameters(unit, parameters)
        return nhwc(simulation.convolve(unit, signs_of(x), bits).to(torch.int32))
    described = kernels.describe_unit(unit, parameters)
    words = sign_pack(x, given)
    library.mmg_convolve(
        described, batch, height, width, words.data_ptr(), given, False, out.data_ptr(), torch.get_num_threads()
    )
    return out


@convolve.register_fake
def _(x: Tensor, bits: Tensor, geometry: Sequence[int]) -> Tensor:
    (unit,) = UnitGeometry.decode(tuple(geometry))
    branches = x.shape[1] // unit.in_channels if unit.shares_weights else unit.num_bases
    size = unit.output_size(*x.shape[2:])
    return _empty(x.shape[0], branches * unit.out_channels, *size, like=x).to(torch.int32)


@torch.library.custom_op('mmgroupnet::connect', mutates_args=())
def connect(x: Tensor, num_bases: int, merge_scales: Tensor | None, gate: Tensor | None) -> Tensor:
    """Merges K branches, and gates them: ``gate * branch + (1 - gate) * merged``.

    Args:
        x: ``(N, K*C, H, W)``, float32.
        num_bases: Number K of branches.
        merge_scales: ``(K,)``, a scale per branch; None for the mean.
        gate: ``(K,)``, in (0, 1); None to return only the merged map.

    Returns:
        ``(N, K*C, H, W)``, or ``(N, C, H, W)`` without a gate; channels_last.
    """
    _check(x, merge_scales, gate)
    kernels.check_tensor('merge_scales', merge_scales, (num_bases,))
    kernels.check_tensor('gate', gate, (num_bases,))
    channels = x.shape[1] // num_bases
    _count_branches(x, channels, [num_bases])
    library = kernels.library()
    if library is None:
        return nhwc(simulation.connect(x, num_bases, merge_scales, gate))
    batch, folded, height, width = x.shape
    x = nhwc(x)
    out = _empty(batch, folded if gate is not None else channels, height, width, like=x)
    library.mmg_connect(
        x.data_ptr(),
        batch * height * width,
        num_bases,
        channels,
        kernels.pointer(merge_scales),
        kernels.pointer(gate),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@connect.register_fake
def _(x: Tensor, num_bases: int, merge_scales: Tensor | None, gate: Tensor | None) -> Tensor:
    batch, folded, height, width = x.shape
    return _empty(batch, folded if gate is not None else folded // num_bases, height, width, like=x)


@torch.library.custom_op('mmgroupnet::max_pool', mutates_args=())
def max_pool(x: Tensor, window: Sequence[int], scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Max pooling with the scale and shift of a batch norm behind it, ``scale * max_pool(x) + shift``.

    Args:
        x: ``(N, C, H, W)``, float32.
        window: Size, stride and padding of the window, each as height and width.
        scale, shift: ``(C,)``; None for neither.

    Returns:
        ``(N, C, H', W')``, sizes rounded down; channels_last. If a window holds NaN and numbers, the result may be a
        number.
    """
    _check(x, scale, shift)
    batch, channels, height, width = x.shape
    kernels.check_tensor('scale', scale, (channels,))
    kernels.check_tensor('shift', shift, (channels,))
    if (scale is None) != (shift is None):
        raise ValueError('scale and shift: give both or neither')
    out = _empty(batch, channels, *_pooled_size(height, width, window), like=x)
    library = kernels.library()
    if library is None:
        return nhwc(simulation.max_pool(x, window, scale, shift))
    x = nhwc(x)
    library.mmg_max_pool(
        x.data_ptr(),
        *(batch, height, width, channels),
        kernels.Window(*window),
        kernels.pointer(scale),
        kernels.pointer(shift),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _pooled_size(height: int, width: int, window: Sequence[int]) -> tuple[int, int]:
    """Size of a pooled map.

    Raises:
        ValueError: If the window does not fit, or a padding is wider than half of it.
    """
    size, stride, padding = window[:2], window[2:4], window[4:]
    is_window = min(stride) >= 1 and all(0 <= 2 * p <= k for p, k in zip(padding, size, strict=True))
    reach = [given + 2 * p - k for given, p, k in zip((height, width), padding, size, strict=True)]
    if not is_window or min(reach) < 0:
        raise ValueError(
            f'window={list(window)} (size, stride, padding) of a map of {height}x{width}: it has to fit, with strides '
            'of at least 1 and paddings of at most half its size'
        )
    return reach[0] // stride[0] + 1, reach[1] // stride[1] + 1


@max_pool.register_fake
def _(x: Tensor, window: Sequence[int], scale: Tensor | None, shift: Tensor | None) -> Tensor:
    batch, channels, height, width = x.shape
    return _empty(batch, channels, *_pooled_size(height, width, window), like=x)


def _units(
    geometry: Sequence[int], parameters: Sequence[Tensor], places: Sequence[int]
) -> list[tuple[UnitGeometry, list[Tensor | None]]]:
    """Each unit with its seven parameters; None for missing ones."""
    units, per_unit = UnitGeometry.decode(tuple(geometry)), len(PARAMETERS)
    slots: list[Tensor | None] = [None] * (per_unit * len(units))
    if len(set(places)) != len(parameters) or not all(0 <= place < len(slots) for place in places):
        raise ValueError(
            f'places={list(places)} for {len(units)} units and {len(parameters)} parameters: give the place of each '
            f'among the {per_unit} of every unit'
        )
    for place, parameter in zip(places, parameters, strict=True):
        slots[place] = parameter
    return [(unit, slots[i * per_unit :][:per_unit]) for i, unit in enumerate(units)]


@torch.library.custom_op('mmgroupnet::run_block', mutates_args=())
def run_block(
    x: Tensor,
    connection: int,
    num_bases: int,
    merge_scales: Tensor | None,
    gate: Tensor | None,
    geometry: Sequence[int],
    parameters: Sequence[Tensor],
    places: Sequence[int],
    has_shortcut: bool,
    shortcut_map: Tensor | None,
) -> Tensor:
    """Connects K branches and runs a chain of units on them, each
    ``norm(relu(scale * conv(sign(x), weights) + bias)) + residual``: a Group-Net block in one call.

    Args:
        x: ``(N, K*C, H, W)``, or ``(N, C, H, W)`` for a ``BROADCAST`` connection; float32.
        connection: A :class:`Connection`.
        num_bases: Number K of branches.
        merge_scales, gate: As for :func:`connect`.
        geometry: :meth:`UnitGeometry.encode` of the units, concatenated; the shortcut unit, if there is one, comes
            first.
        parameters: ``bits, scale, bias, norm_scale, norm_shift, sign_scale, sign_shift`` of each unit, without those
            that a unit does not have (``torch.jit`` cannot trace a list that contains None). The last two have one
            value per folded channel of the input, the others per folded channel of the output; a scale of merged bases
            has one value per base and channel.
        places: The place of each parameter, ``7 * i + j`` for the j-th name of unit i.
        has_shortcut: Whether the first unit computes the shortcut from the connected input.
        shortcut_map: The shortcut if another module computes it, ``(N, K*C', H', W')``, float32; not together with a
            shortcut unit. With neither, the shortcut is the connected input.

    Returns:
        ``(N, K*C', H', W')``, float32, channels_last.
    """
    units = _units(geometry, parameters, places)
    _check(x, merge_scales, gate, shortcut_map, *parameters)
    kernels.check_tensor('merge_scales', merge_scales, (num_bases,))
    kernels.check_tensor('gate', gate, (num_bases,))
    if (gate is None) == (connection == Connection.GATED):
        given = 'no gate' if gate is None else 'a gate'
        raise ValueError(f'{Connection(connection).name} connection, {given}: a GATED one has a gate, others have none')
    if shortcut_map is not None and shortcut_map.dtype != torch.float32:
        raise ValueError(f'shortcut_map of {shortcut_map.dtype}: packed ops compute in float32')
    shape = _block_shape(
        tuple(x.shape),
        connection,
        num_bases,
        tuple(unit for unit, _ in units),
        has_shortcut,
        None if shortcut_map is None else tuple(shortcut_map.shape),
    )
    shortcut = units.pop(0) if has_shortcut else None
    library = kernels.library()
    if library is None:
        for unit, tensors in units if shortcut is None else [shortcut, *units]:
            kernels.check_parameters(unit, tensors)
        return nhwc(
            simulation.run_block(
                x, Connection(connection), num_bases, merge_scales, gate, units, shortcut, shortcut_map
            )
        )
    described = [kernels.describe_unit(unit, tensors) for unit, tensors in units]
    batch, _, height, width = x.shape
    x = nhwc(x)
    shortcut_map = None if shortcut_map is None else nhwc(shortcut_map)
    block = kernels.Block(
        batch,
        height,
        width,
        num_bases,
        connection,
        kernels.pointer(merge_scales),
        kernels.pointer(gate),
        kernels.pointer(shortcut_map),
        None if shortcut is None else ctypes.pointer(kernels.describe_unit(*shortcut)),
        (kernels.Unit * len(described))(*described),
        len(described),
    )
    out = _empty(*shape, like=x)
    library.mmg_run_block(block, x.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


@lru_cache(maxsize=4096)
def _block_shape(
    shape: tuple[int, int, int, int],
    connection: int,
    num_bases: int,
    units: tuple[UnitGeometry, ...],
    has_shortcut: bool,
    shortcut_shape: tuple[int, int, int, int] | None,
) -> tuple[int, int, int, int]:
    """Shape of a block's output.

    Raises:
        ValueError: If the maps of a chain do not fit each other.
    """
    batch, folded, height, width = shape
    shortcut, chain = (units[0], units[1:]) if has_shortcut else (None, units)
    if has_shortcut and shortcut_shape is not None:
        raise ValueError('has_shortcut=True and a shortcut_map: give one of them')
    given = 1 if connection == Connection.BROADCAST else num_bases
    if folded != given * chain[0].in_channels:
        raise ValueError(f'input of shape {shape}: the op takes (N, {given} * {chain[0].in_channels}, H, W)')
    branches = 1 if connection in (Connection.BROADCAST, Connection.MERGED) else num_bases
    connected = (branches, chain[0].in_channels, height, width)

    def run(unit: UnitGeometry, given: tuple[int, int, int, int], is_first: bool) -> tuple[int, int, int, int]:
        """Branches, channels, height and width of a unit's output."""
        branches, channels, height, width = given
        read = unit.branches(branches)
        # The branches of the first unit may read the same map; each later unit reads the output of the unit before it.
        if channels != unit.in_channels or not (read == branches or (is_first and branches == 1)):
            raise ValueError(
                f'{branches} branches of {channels} channels for a unit that reads {read} of {unit.in_channels}'
            )
        if unit.shares_weights and not is_first:
            raise ValueError('shares_weights=True: only the shortcut and the first unit can share their weights')
        if unit.shares_weights and unit.merges:
            raise ValueError('shares_weights=True and merges=True: merged bases have weights of their own')
        if unit.merges and len(set(unit.dilations)) > 1:
            raise ValueError(f'dilations={unit.dilations} and merges=True: merged bases read the same pixels')
        return (unit.branches(branches), unit.out_channels, *unit.output_size(height, width))

    if shortcut is not None:
        shortcut_map = run(shortcut, connected, True)
    elif shortcut_shape is not None:
        shortcut_map = (num_bases, shortcut_shape[1] // num_bases, *shortcut_shape[2:])
    else:
        shortcut_map = connected
    current = connected
    for index, unit in enumerate(chain):
        out = run(unit, current, index == 0)
        for kind, residual in ((Residual.INPUT, current), (Residual.SHORTCUT, shortcut_map)):
            if unit.residual == kind and (residual[1:] != out[1:] or residual[0] not in (1, out[0])):
                raise ValueError(
                    f'residual={kind.name}: {residual} (branches, channels, height, width) cannot be added to {out}'
                )
        current = out
    branches, channels, height, width = current
    out_shape = (batch, branches * channels, height, width)
    if shortcut_shape is not None and shortcut_shape != out_shape:
        raise ValueError(f'shortcut_map of shape {shortcut_shape}: give the shape of the output, {out_shape}')
    return out_shape


@run_block.register_fake
def _(x, connection, num_bases, merge_scales, gate, geometry, parameters, places, has_shortcut, shortcut_map) -> Tensor:
    units = UnitGeometry.decode(tuple(geometry))
    shortcut_shape = None if shortcut_map is None else tuple(shortcut_map.shape)
    shape = _block_shape.__wrapped__(tuple(x.shape), connection, num_bases, units, has_shortcut, shortcut_shape)
    return _empty(*shape, like=x)
