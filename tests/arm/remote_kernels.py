"""A plugin of pytest that runs the tests of tests/test_ops with kernels of another machine.

It replaces ``mmgroupnet.ops.kernels.library()`` by an object with the functions of the C interface. Each of them copies
its inputs to a server process that runs ``kernel_server.cpp``, calls the function there, and copies the outputs back.
The environment variable :data:`SERVER` holds the command of the server.
"""

import ctypes
import json
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache
from math import prod

from mmgroupnet.ops import Connection, kernels
from mmgroupnet.ops.geometry import PARAMETERS, SAME_PADDING, Residual, UnitGeometry

SERVER = 'MMGROUPNET_KERNEL_SERVER'  # a list in JSON

# In the same order as in kernel_server.cpp.
FUNCTIONS = (
    'abi_version failure available_kernels selected_kernels select_kernels arranged_bytes arrange_weights sign_pack '
    'convolve run_block connect pack_weights relu_sums relu_affine gradient_sums affine_gradient branch_signs '
    'sign_gradient connect_gradient max_pool padding_sums '
    'norm_statistics norm_gradients'
).split()
_ARGUMENTS = 12


class Server:
    """The server process and its memory."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _send(self, command: bytes, *numbers: int, data: bytes = b'') -> None:
        packed = struct.pack(f'<{len(numbers)}Q', *(number % 2**64 for number in numbers))
        self._process.stdin.write(command + packed + data)
        self._process.stdin.flush()

    def _receive(self, size: int) -> bytes:
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise RuntimeError(f'the kernel server has ended, with the status {self._process.wait()}')
        return data

    def _receive_number(self) -> int:
        return struct.unpack('<Q', self._receive(8))[0]

    def read(self, address: int, size: int) -> bytes:
        self._send(b'r', address, size)
        return self._receive(size)

    def text(self, address: int) -> bytes:
        self._send(b't', address)
        return self._receive(self._receive_number())

    @contextmanager
    def memory(self, data: bytes) -> Iterator[int]:
        """Address of a copy of some bytes in the server."""
        self._send(b'a', len(data))
        address = self._receive_number()
        self._send(b'w', address, len(data), data=data)
        yield address
        self._send(b'f', address)

    def call(self, name: str, *arguments: int) -> int:
        padded = [*arguments, *[0] * (_ARGUMENTS - len(arguments))]
        self._send(b'c', FUNCTIONS.index(name), *padded)
        return self._receive_number()


class Call:
    """One call, with the memory that it needs in the server until it ends.

    Args:
        server: The server process.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._memory = ExitStack()
        self._outputs: list[tuple[int, int, int]] = []  # address here, address there, size

    def __enter__(self) -> 'Call':
        return self

    def __exit__(self, *error: object) -> None:
        self._memory.close()

    def bytes(self, data: bytes) -> int:
        return self._memory.enter_context(self._server.memory(data))

    def input(self, address: int | None, *shape: int, size: int = 4) -> int:
        """Copies an array of this shape and element size to the server."""
        return self.bytes(ctypes.string_at(address, prod(shape) * size)) if address else 0

    def output(self, address: int | None, *shape: int, size: int = 4) -> int:
        """Allocates an array in the server that is copied back at the end. Its present values are copied to the server
        as well, since kernels may leave parts of it unchanged."""
        there = self.input(address, *shape, size=size)
        if address:
            self._outputs.append((address, there, prod(shape) * size))
        return there

    def copy_back(self) -> None:
        for here, there, size in self._outputs:
            ctypes.memmove(here, self._server.read(there, size), size)

    def unit(self, unit: kernels.Unit) -> bytes:
        """The struct of a unit, whose pointers refer to copies in the server."""
        g = geometry_of(unit)
        there = kernels.Unit.from_buffer_copy(unit)
        dilations = struct.pack(f'<{g.num_bases}i', *g.dilations)
        there.dilations = ctypes.cast(self.bytes(dilations), ctypes.POINTER(ctypes.c_int32))
        rows = g.out_channels * (1 if g.merges or g.shares_weights else g.num_bases)
        columns = g.in_channels * (1 if g.merges or g.shares_weights else g.num_bases)
        sizes = dict(
            scale=g.weight_rows, bias=rows, norm_scale=rows, norm_shift=rows, sign_scale=columns, sign_shift=columns
        )
        for name in PARAMETERS[1:]:
            setattr(there, name, self.input(getattr(unit, name), sizes[name]))
        if unit.weights:
            there.weights = self.input(unit.weights, self.arranged_bytes(unit), size=1)
        return bytes(there)

    def arranged_bytes(self, unit: kernels.Unit) -> int:
        bare = kernels.Unit.from_buffer_copy(unit)
        bare.weights = None
        for name in PARAMETERS[1:]:
            setattr(bare, name, None)
        with Call(self._server) as call:
            size = call.bytes(bytes(8))
            self._server.call('arranged_bytes', call.bytes(call.unit(bare)), size)
            return struct.unpack('<Q', self._server.read(size, 8))[0]


def geometry_of(unit: kernels.Unit) -> UnitGeometry:
    """The geometry in a unit's struct."""
    numbers = {}
    for field in fields(UnitGeometry):
        value = getattr(unit, field.name)
        numbers[field.name] = value if isinstance(value, int) else tuple(value[i] for i in range(2))
    numbers['dilations'] = tuple(unit.dilations[i] for i in range(unit.num_bases))
    numbers['residual'] = Residual(unit.residual)
    if numbers['padding'] == SAME_PADDING:
        numbers['padding'] = None
    return UnitGeometry(**numbers)


def _words(channels: int) -> int:
    return -(-channels // 64)


# For the functions of the C interface: each copies the inputs to the server and returns the arguments for the server.


def _select_kernels(call: Call, name: bytes) -> list[int]:
    return [call.bytes(name + b'\0')]


def _arranged_bytes(call: Call, unit: kernels.Unit, size: ctypes.c_size_t) -> list[int]:
    return [call.bytes(call.unit(unit)), call.output(ctypes.addressof(size), 8, size=1)]


def _arrange_weights(call: Call, unit: kernels.Unit, bits: int, arranged: int) -> list[int]:
    g = geometry_of(unit)
    return [
        call.bytes(call.unit(unit)),
        call.input(bits, g.weight_rows, -(-g.row_bits // 8), size=1),
        call.output(arranged, call.arranged_bytes(unit), size=1),
    ]


def _sign_pack(call: Call, x, nchw, batch, pixels, branches, channels, signs, threads) -> list[int]:
    x = call.input(x, batch, pixels, branches, channels)
    signs = call.output(signs, batch, pixels, branches, _words(channels), size=8)
    return [x, nchw, batch, pixels, branches, channels, signs, threads]


def _convolve(
    call: Call, unit: kernels.Unit, batch, height, width, signs, in_branches, is_short, out, threads
) -> list[int]:
    g = geometry_of(unit)
    signs = call.input(signs, batch, height, width, in_branches, _words(g.in_channels), size=8)
    branches = in_branches if g.shares_weights else g.num_bases
    if out:
        shape = (batch, *g.output_size(height, width), branches, g.out_channels)
        out = call.output(out, *shape, size=2 if is_short else 4)
    return [call.bytes(call.unit(unit)), batch, height, width, signs, in_branches, is_short, out or 0, threads]


def _run_block(call: Call, block: kernels.Block, x, out, threads) -> list[int]:
    there = kernels.Block.from_buffer_copy(block)
    units = [block.units[i] for i in range(block.num_units)]
    K, size = block.num_bases, (block.height, block.width)
    x = call.input(x, block.batch, *size, 1 if block.connection == Connection.BROADCAST else K, units[0].in_channels)
    branches = K if block.connection in (Connection.SEPARATE, Connection.GATED) else 1
    for unit in units:
        branches, size = geometry_of(unit).branches(branches), geometry_of(unit).output_size(*size)
    channels = units[-1].out_channels
    there.merge_scales = call.input(block.merge_scales, K)
    there.gate = call.input(block.gate, K)
    there.shortcut_map = call.input(block.shortcut_map, block.batch, *size, K, channels)
    there.units = _pointer(call.bytes(b''.join(call.unit(unit) for unit in units)))
    if block.shortcut:
        there.shortcut = _pointer(call.bytes(call.unit(block.shortcut.contents)))
    out = call.output(out, block.batch, *size, branches, channels)
    return [call.bytes(bytes(there)), x, out, threads]


def _pointer(address: int) -> ctypes.POINTER(kernels.Unit):
    return ctypes.cast(address, ctypes.POINTER(kernels.Unit))


def _connect(call: Call, x, pixels, branches, channels, scales, gate, out, threads) -> list[int]:
    out = call.output(out, pixels, branches if gate else 1, channels)
    factors = [call.input(factor, branches) for factor in (scales, gate)]
    return [call.input(x, pixels, branches, channels), pixels, branches, channels, *factors, out, threads]


def _pack_weights(call: Call, weights, rows, channels, taps, bits, threads) -> list[int]:
    bits = call.output(bits, rows, -(-channels * taps // 8), size=1)
    return [call.input(weights, rows, channels, taps), rows, channels, taps, bits, threads]


def _relu_sums(call: Call, y, low, pixels, channels, sums, threads) -> list[int]:
    y, sums = call.input(y, pixels, channels, size=2), call.output(sums, 2, channels, size=8)
    return [y, low, pixels, channels, sums, threads]


def _relu_affine(call: Call, y, low, scale, shift, residual, pixels, channels, out, threads) -> list[int]:
    y, scale, shift = call.input(y, pixels, channels, size=2), call.input(scale, channels), call.input(shift, channels)
    residual, out = call.input(residual, pixels, channels), call.output(out, pixels, channels)
    return [y, low, scale, shift, residual, pixels, channels, out, threads]


def _gradient_sums(call: Call, gradient, y, low, pixels, channels, sums, threads) -> list[int]:
    gradient, y = call.input(gradient, pixels, channels), call.input(y, pixels, channels, size=2)
    return [gradient, y, low, pixels, channels, call.output(sums, 2, channels, size=8), threads]


def _affine_gradient(call: Call, gradient, y, low, p, q, s, pixels, folded, first, channels, out, threads) -> list[int]:
    gradient, y = call.input(gradient, pixels, folded), call.input(y, pixels, folded, size=2)
    factors = [call.input(factor, folded) for factor in (p, q, s)]
    return [gradient, y, low, *factors, pixels, folded, first, channels, call.output(out, pixels, channels), threads]


def _branch_signs(call: Call, x, pixels, folded, first, channels, out, threads) -> list[int]:
    return [call.input(x, pixels, folded), pixels, folded, first, channels, call.output(out, pixels, channels), threads]


def _sign_gradient(call: Call, gradient, x, residual, pixels, folded, first, channels, out, threads) -> list[int]:
    gradient, x = call.input(gradient, pixels, channels), call.input(x, pixels, folded)
    residual, out = call.input(residual, pixels, folded), call.output(out, pixels, folded)
    return [gradient, x, residual, pixels, folded, first, channels, out, threads]


def _connect_gradient(
    call: Call, gradient, x, gate, scales, pixels, branches, channels, out, sums, threads
) -> list[int]:
    maps = [call.input(map, pixels, branches, channels) for map in (gradient, x)]
    factors = [call.input(factor, branches) for factor in (gate, scales)]
    out, sums = call.output(out, pixels, branches, channels), call.output(sums, 2, branches, size=8)
    return [*maps, *factors, pixels, branches, channels, out, sums, threads]


def _max_pool(call: Call, x, batch, height, width, channels, window, scale, shift, out, threads) -> list[int]:
    sizes = [
        (height + 2 * window.pad_height - window.height) // window.stride_height + 1,
        (width + 2 * window.pad_width - window.width) // window.stride_width + 1,
    ]
    maps = [call.input(x, batch, height, width, channels), batch, height, width, channels]
    factors = [call.input(factor, channels) for factor in (scale, shift)]
    window = call.bytes(bytes(window))
    return [*maps, window, *factors, call.output(out, batch, *sizes, channels), threads]


def _padding_sums(
    call: Call, gradient, batch, height, width, out_height, out_width, channels, window, rate, sums
) -> list[int]:
    gradient = call.input(gradient, batch, out_height, out_width, channels)
    sums = call.output(sums, channels, window.height, window.width)
    window = call.bytes(bytes(window))
    return [gradient, batch, height, width, out_height, out_width, channels, window, rate, sums]


def _batch_norm(call: Call, norm: kernels.BatchNorm) -> int:
    """Address of a batch norm's struct in the server, whose pointers refer to copies in the server."""
    there = kernels.BatchNorm.from_buffer_copy(norm)
    for name in ('scale', 'weight', 'bias'):
        setattr(there, name, call.input(getattr(norm, name), norm.channels))
    for name in ('running_mean', 'running_var'):
        setattr(there, name, call.output(getattr(norm, name), norm.channels))
    return call.bytes(bytes(there))


def _norm_statistics(call: Call, y, low, pixels, norm, mean, inverse_deviation, vectors, threads) -> list[int]:
    folded = norm.branches * norm.channels
    found = [call.output(values, norm.channels, size=8) for values in (mean, inverse_deviation)]
    y, vectors = call.input(y, pixels, folded, size=2), call.output(vectors, 2, folded)
    return [y, low, pixels, _batch_norm(call, norm), *found, vectors, threads]


def _norm_gradients(
    call: Call, gradient, y, low, pixels, norm, mean, inverse_deviation, of_weight, of_bias, vectors, threads
) -> list[int]:
    folded = norm.branches * norm.channels
    maps = [call.input(gradient, pixels, folded), call.input(y, pixels, folded, size=2)]
    statistics = [call.input(values, norm.channels, size=8) for values in (mean, inverse_deviation)]
    of_norm = [call.output(values, norm.channels) for values in (of_weight, of_bias)]
    norm, vectors = _batch_norm(call, norm), call.output(vectors, 3, folded)
    return [*maps, low, pixels, norm, *statistics, *of_norm, vectors, threads]


class RemoteLibrary:
    """Replaces the library that ctypes loads.

    Args:
        command: The command that runs ``kernel_server.cpp``.
    """

    def __init__(self, command: list[str]) -> None:
        self._server = Server(command)
        self._lock = threading.RLock()

    def __getattr__(self, name: str):
        if not name.startswith('mmg_'):
            raise AttributeError(name)
        name = name.removeprefix('mmg_')
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name: str, arguments: tuple) -> int | bytes:
        with self._lock:
            if name in ('failure', 'available_kernels', 'selected_kernels'):
                return self._server.text(self._server.call(name))
            with Call(self._server) as call:
                status = self._server.call(name, *globals()[f'_{name}'](call, *map(_number, arguments)))
                call.copy_back()
            # A status has 32 bits; the upper bits of the register are undefined.
            kernels._raise_failure(status % 2**32, f'mmg_{name}', self.mmg_failure)
            return status


def _number(argument: object) -> object:
    """Converts None to the address zero and a bool to a number; other arguments stay as they are."""
    return 0 if argument is None else int(argument) if isinstance(argument, bool) else argument


@cache
def remote_library() -> RemoteLibrary:
    library = RemoteLibrary(json.loads(os.environ[SERVER]))
    library.mmg_select_kernels(b'')
    return library


def pytest_configure() -> None:
    kernels.library = remote_library
