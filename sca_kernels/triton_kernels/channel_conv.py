"""2-D convolution over the active channels alone in Triton, as implicit GEMMs (twin of
:mod:`sca_kernels.reference.channel_conv`).

Activations are channels_last, at the active width: a position is a row, a channel a column. Rows are whole accesses of
16 bytes (:func:`sca_kernels.paths.possible` refuses others). The active block of the weight is packed per call, one
matrix per tap.

* y and dL/dx are one kernel: a row of the target is the sum over taps of a row of the source times that tap's matrix.
* dL/dweight is the product of dL/dy and x over positions, per tap; its programs split the positions and write float32
  partial sums, which are added up in a fixed order: two runs agree bit for bit.

Depthwise, the matrices are diagonal, and products of columns take the place of the GEMMs. Sums are float32. float32
operands are multiplied as torch's own convolution multiplies them on CUDA devices: as tf32 where
``torch.backends.cudnn`` allows it (its default), else exactly (``ieee``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..channels import (
    Channels,
    Geometry,
    active_widths,
    block_shape,
    gather_bias,
    narrow,
    output_size,
    scatter_bias,
    widen,
)
from ..paths import per_access
from . import INTERPRETED, weights
from .weights import unspecialised

_MAX_POSITIONS = 2**30  # of a program, which counts them in 32 bits
_PROGRAMS = 512  # of a weight gradient at least, where there are positions enough: a few waves on any GPU


class Tile(NamedTuple):
    """Rows x columns of the target that a program computes, ``inner`` terms of its sums at a time."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


_TILES = {
    2: (Tile(128, 32, 64, 8, 4), Tile(128, 64, 64, 8, 4), Tile(128, 128, 64, 8, 3)),
    4: (Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
}
_WEIGHT_TILES = {
    2: (Tile(32, 32, 64, 4, 4), Tile(64, 64, 64, 8, 4), Tile(128, 128, 64, 8, 3)),
    4: (Tile(32, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
}
_DEPTHWISE_TILE = Tile(64, 32, 64, 4, 2)


def _tile(tiles: dict[int, tuple[Tile, ...]], element_size: int, columns: int) -> Tile:
    """The first (narrowest) tile that takes all columns, else the widest."""
    known = tiles[element_size]
    return next((tile for tile in known if tile.columns >= columns), known[-1])


@triton.jit
def _shifted(
    h,
    w,
    tap,
    height,
    width,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Where in the plane [height, width] a tap of the output position (h, w) lies, and whether it does; TRANSPOSED: of
    which output the input position (h, w) is that tap."""
    tap_h = (tap // KERNEL_W) * DILATION_H
    tap_w = (tap % KERNEL_W) * DILATION_W
    if TRANSPOSED:
        h += PADDING_H - tap_h
        w += PADDING_W - tap_w
        there = (h >= 0) & (h % STRIDE_H == 0) & (w >= 0) & (w % STRIDE_W == 0)
        h //= STRIDE_H
        w //= STRIDE_W
    else:
        h = h * STRIDE_H - PADDING_H + tap_h
        w = w * STRIDE_W - PADDING_W + tap_w
        there = (h >= 0) & (w >= 0)
    return h, w, there & (h < height) & (w < width)


@triton.jit
def _position(m, after, height, width):
    """Sample, row and column of the positions that come ``after`` the first of sample m. (Divided in 32 bits: 64 take a
    subroutine.)"""
    at = after.to(tl.int32)
    plane = (height * width).to(tl.int32)
    width = width.to(tl.int32)
    m += (at // plane).to(tl.int64)
    at = at % plane
    return m, (at // width).to(tl.int64), (at % width).to(tl.int64)


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a @ b. WIDEN: the interpreter's product takes bfloat16 for integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@unspecialised
def correlate_kernel(
    source,
    weight,
    bias,
    target,
    rows: tl.int64,
    height: tl.int64,
    width: tl.int64,
    source_height: tl.int64,
    source_width: tl.int64,
    inputs: tl.int64,
    outputs: tl.int64,
    inner_tiles: tl.int64,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """target[row, column] = bias[column] + sum over taps and k of source[shifted row, k] * weight[tap, k, column]; k in
    ``inner_tiles`` tiles (one, where depthwise k is the column). Inputs and outputs count accesses."""
    inputs *= ALIGN
    outputs *= ALIGN
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(outputs, COLUMNS)
    first = (program // column_tiles) * ROWS
    row = first + tl.arange(0, ROWS)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    m = first // (height * width)
    m, h, w = _position(m, row - m * (height * width), height, width)
    row_exists = row < rows
    column_exists = column < outputs
    steps = (TAPS * inner_tiles).to(tl.int32)
    inner_tiles = inner_tiles.to(tl.int32)

    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(steps):
        tap = (step // inner_tiles).to(tl.int64)
        at_h, at_w, there = _shifted(
            h,
            w,
            tap,
            source_height,
            source_width,
            KERNEL_W,
            STRIDE_H,
            STRIDE_W,
            PADDING_H,
            PADDING_W,
            DILATION_H,
            DILATION_W,
            TRANSPOSED,
        )
        there &= row_exists
        at = ((m * source_height + at_h) * source_width + at_w) * inputs
        if DEPTHWISE:
            a = tl.load(source + at[:, None] + column[None, :], mask=there[:, None] & column_exists[None, :], other=0.0)
            b = tl.load(weight + tap * outputs + column, mask=column_exists, other=0.0)
            acc += a.to(tl.float32) * b.to(tl.float32)[None, :]
        else:
            k = (step % inner_tiles).to(tl.int64) * INNER + tl.arange(0, INNER)
            a = tl.load(source + at[:, None] + k[None, :], mask=there[:, None] & (k < inputs)[None, :], other=0.0)
            b = tl.load(
                weight + ((tap * inputs + k) * outputs)[:, None] + column[None, :],
                mask=(k < inputs)[:, None] & column_exists[None, :],
                other=0.0,
            )
            acc = _product(a, b, acc, PRECISION, WIDEN)
    if bias is not None:
        acc += tl.load(bias + column, mask=column_exists, other=0.0).to(tl.float32)[None, :]
    tl.store(
        target + (row * outputs)[:, None] + column[None, :],
        acc.to(target.dtype.element_ty),
        mask=row_exists[:, None] & column_exists[None, :],
    )


@unspecialised
def weight_gradient_kernel(
    grad,
    x,
    partials,
    rows: tl.int64,
    height: tl.int64,
    width: tl.int64,
    x_height: tl.int64,
    x_width: tl.int64,
    inputs: tl.int64,
    outputs: tl.int64,
    steps: tl.int64,
    TAPS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partials[split, tap, output, input] = sum over the split's positions of grad[position, output] * x[shifted
    position, input]; depthwise, where output and input are one, [split, tap, 0, input]."""
    outputs *= ALIGN
    inputs *= ALIGN
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(inputs, COLUMNS)
    row_tiles = 1 if DEPTHWISE else tl.cdiv(outputs, ROWS)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    program //= column_tiles
    output = (program % row_tiles) * ROWS + tl.arange(0, ROWS)
    program //= row_tiles
    tap = program % TAPS
    split = program // TAPS

    column_exists = column < inputs
    output_exists = output < outputs
    acc = tl.zeros([INNER, COLUMNS], tl.float32) if DEPTHWISE else tl.zeros([ROWS, COLUMNS], tl.float32)
    first_m = split * steps * INNER // (height * width)
    for step in range(steps.to(tl.int32)):
        row = (split * steps + step) * INNER + tl.arange(0, INNER)
        m, h, w = _position(first_m, row - first_m * (height * width), height, width)
        at_h, at_w, there = _shifted(
            h,
            w,
            tap,
            x_height,
            x_width,
            KERNEL_W,
            STRIDE_H,
            STRIDE_W,
            PADDING_H,
            PADDING_W,
            DILATION_H,
            DILATION_W,
            False,
        )
        there &= row < rows
        at = ((m * x_height + at_h) * x_width + at_w) * inputs
        b = tl.load(x + at[:, None] + column[None, :], mask=there[:, None] & column_exists[None, :], other=0.0)
        from_grad = grad + (row * outputs)[:, None]
        if DEPTHWISE:
            a = tl.load(from_grad + column[None, :], mask=there[:, None] & column_exists[None, :], other=0.0)
            acc += a.to(tl.float32) * b.to(tl.float32)
        else:
            a = tl.load(from_grad + output[None, :], mask=there[:, None] & output_exists[None, :], other=0.0)
            acc = _product(tl.trans(a), b, acc, PRECISION, WIDEN)
    matrix = split * TAPS + tap
    if DEPTHWISE:
        tl.store(partials + matrix * inputs + column, tl.sum(acc, 0), mask=column_exists)
    else:
        to = partials + ((matrix * outputs + output) * inputs)[:, None] + column[None, :]
        tl.store(to, acc, mask=output_exists[:, None] & column_exists[None, :])


def _launch(kernel, programs: int, on: Tensor, tile: Tile, **arguments) -> None:
    """Start a kernel on the device of a tensor. Unlike in front of a threshold, multiply-adds may be fused."""
    tiles = {"ROWS": tile.rows, "COLUMNS": tile.columns, "INNER": tile.inner}
    warps = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    with torch.cuda.device_of(on):
        kernel[(programs,)](**arguments, **tiles, **warps, enable_fp_fusion=True)


def _modes(x: Tensor, weight: Tensor, geometry: Geometry) -> dict:
    """What is compiled in: a layer's geometry, and how products are taken."""
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    sizes = {
        f"{name.upper()}_{axis}": value
        for name in ("stride", "padding", "dilation")
        for axis, value in zip("HW", getattr(geometry, name), strict=True)
    }
    return {
        **sizes,
        "ALIGN": per_access(x.dtype),
        "TAPS": weight.shape[2] * weight.shape[3],
        "KERNEL_W": weight.shape[3],
        "DEPTHWISE": geometry.groups > 1,
        "PRECISION": "tf32" if tf32 else "ieee",
        "WIDEN": INTERPRETED and x.dtype == torch.bfloat16,
    }


def _packed(weight: Tensor, channels: Channels, transposed: bool, depthwise: bool, dtype: torch.dtype) -> Tensor:
    """Matrices [taps, inputs, outputs] of the active channels (transposed: [taps, outputs, inputs]; depthwise: [taps,
    1, channels]) in a dtype."""
    source = weights.collapsible(weight)
    outputs, inputs, taps = weights.axes(source, block_shape(weight.shape, channels), channels)
    if not depthwise and transposed:
        outputs, inputs = inputs, outputs
    packed = weight.new_empty(taps.size, inputs.size, outputs.size, dtype=dtype)
    weights.start(weights.gather_kernel, source, packed, (taps, inputs, outputs))
    return packed


def _correlate(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    geometry: Geometry,
    channels: Channels,
    transposed: bool,
) -> Tensor:
    """Fill the target [M, C, H, W] from the source; transposed: an input's gradient from an output's."""
    depthwise = geometry.groups > 1
    inputs, outputs, align = source.shape[1], target.shape[1], per_access(source.dtype)
    rows = target.numel() // outputs
    if rows == 0:
        return target
    tile = _DEPTHWISE_TILE if depthwise else _tile(_TILES, source.element_size(), outputs)
    _launch(
        correlate_kernel,
        triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.columns),
        source,
        tile,
        source=source,
        weight=_packed(weight, channels, transposed, depthwise, source.dtype),
        bias=bias,
        target=target,
        rows=rows,
        height=target.shape[2],
        width=target.shape[3],
        source_height=source.shape[2],
        source_width=source.shape[3],
        inputs=inputs // align,
        outputs=outputs // align,
        inner_tiles=1 if depthwise else triton.cdiv(inputs, tile.inner),
        TRANSPOSED=transposed,
        **_modes(source, weight, geometry),
    )
    return target


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Of the active block [B, A, kh, kw], in float32."""
    depthwise = geometry.groups > 1
    outputs, inputs, align = 1 if depthwise else grad.shape[1], x.shape[1], per_access(x.dtype)
    taps = weight.shape[2] * weight.shape[3]
    tile = _DEPTHWISE_TILE if depthwise else _tile(_WEIGHT_TILES, x.element_size(), max(outputs, inputs))
    rows = grad.numel() // grad.shape[1]
    tiles = taps * triton.cdiv(outputs, tile.rows) * triton.cdiv(inputs, tile.columns)
    all_steps = triton.cdiv(rows, tile.inner)
    steps = min(triton.cdiv(all_steps, triton.cdiv(_PROGRAMS, tiles)), _MAX_POSITIONS // tile.inner)
    splits = triton.cdiv(all_steps, steps) if steps else 1
    partials = torch.empty((splits, taps, outputs, inputs), dtype=torch.float32, device=x.device)
    _launch(
        weight_gradient_kernel,
        splits * tiles,
        x,
        tile,
        grad=grad,
        x=x,
        partials=partials,
        rows=rows,
        height=grad.shape[2],
        width=grad.shape[3],
        x_height=x.shape[2],
        x_width=x.shape[3],
        inputs=inputs // align,
        outputs=grad.shape[1] // align,
        steps=steps,
        **_modes(x, weight, geometry),
    )
    block = partials[0] if splits == 1 else partials.sum(0)
    return block.permute((2, 1, 0) if depthwise else (1, 2, 0)).unflatten(2, weight.shape[2:])


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, channels: Channels, full_output: bool
) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.channel_conv2d`, y alone; x channels_last, groups 1 or depthwise."""
    out = active_widths(weight.shape, geometry.groups, channels)[1]
    size = output_size(x.shape, weight.shape, geometry)
    y = torch.empty((x.shape[0], out, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    bias = None if bias is None else gather_bias(bias, channels, x.dtype)
    _correlate(x, weight, bias, y, geometry, _of_weight(channels, geometry), False)
    return widen(y, channels.output, weight.shape[0]) if full_output else y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, channels: Channels, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :meth:`sca_kernels.backends.base.Backend.channel_conv2d_backward`."""
    grad = narrow(grad, channels.output).contiguous(memory_format=torch.channels_last)
    channels = _of_weight(channels, geometry)
    g_x = None
    if needed[0]:
        g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _correlate(grad, weight, None, g_x, geometry, channels, True)
    g_bias = grad.sum((0, 2, 3)) if needed[2] else None
    if not needed[1]:
        return g_x, None, None if g_bias is None else scatter_bias(g_bias, weight, channels)
    return g_x, *weights.scatter(_weight_gradient(grad, x, weight, geometry), g_bias, weight, channels)


def _of_weight(channels: Channels, geometry: Geometry) -> Channels:
    """The lists as a weight has them: a depthwise one has a single input."""
    return channels if geometry.groups == 1 else channels._replace(input=None)
