"""2-D convolution over the active channels alone in Triton, as implicit GEMMs (twin of
:mod:`sca_kernels.reference.channel_conv`).

Activations are channels_last: a position is a row, a channel a column. They are read and written where they lie: at
the active width, or at full width through the index lists, without a gathered copy. The active block of the weight is
packed per call, one matrix per tap.

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

from ..channels import Channels, Geometry, bias_gradient, memory_format, output_size, scatter
from . import INTERPRETED

_ACCESS_BYTES = 16
_SCATTERED_BELOW = 8  # bytes of an access
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
_PACK_TILE = Tile(16, 64, 1, 4, 1)


def _tile(tiles: dict[int, tuple[Tile, ...]], element_size: int, columns: int, scattered: bool) -> Tile:
    """The first (narrowest) tile that takes all columns, else the widest. Scattered elements have an address each:
    fewer of them, spread over more threads, spare the registers."""
    known = tiles[element_size]
    tile = next((tile for tile in known if tile.columns >= columns), known[-1])
    return tile._replace(rows=min(tile.rows, 64), inner=32, num_warps=8, num_stages=2) if scattered else tile


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
def _listed(index, column, exists):
    """Channels that columns stand for: themselves where there is no list."""
    if index is None:
        return column
    else:
        return tl.load(index + column, mask=exists, other=0)


@triton.jit
def _product(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """acc + a @ b. WIDEN: the interpreter's product takes bfloat16 for integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


_LISTS = ["source_index", "target_index", "row_index", "column_index", "grad_index", "x_index"]


def _unspecialised(kernel):
    """triton.jit that compiles nothing for another size: no integer is specialised, nor the alignment of a list."""
    names = kernel.__annotations__
    sizes = [name for name, kind in names.items() if kind is tl.int64]
    lists = [name for name in kernel.__code__.co_varnames[: kernel.__code__.co_argcount] if name in _LISTS]
    return triton.jit(kernel, do_not_specialize=sizes, do_not_specialize_on_alignment=lists)


@_unspecialised
def pack_weight_kernel(
    weight,
    packed,
    row_index,
    column_index,
    rows: tl.int64,
    columns: tl.int64,
    padded: tl.int64,
    taps: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    tap_stride: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """packed[tap, row, column]: the active block of a weight, its columns padded with zeros to whole accesses."""
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(padded, COLUMNS)
    row = (program // column_tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    tap = row // rows
    exists = row < taps * rows
    from_row = _listed(row_index, row % rows, exists) * row_stride + tap * tap_stride
    from_column = _listed(column_index, column, column < columns) * column_stride
    active = tl.load(
        weight + from_row[:, None] + from_column[None, :],
        mask=exists[:, None] & (column < columns)[None, :],
        other=0.0,
    )
    to = packed + (row * padded)[:, None] + column[None, :]
    tl.store(to, active, mask=exists[:, None] & (column < padded)[None, :])


@_unspecialised
def correlate_kernel(
    source,
    weight,
    bias,
    target,
    source_index,
    target_index,
    rows: tl.int64,
    height: tl.int64,
    width: tl.int64,
    source_height: tl.int64,
    source_width: tl.int64,
    inputs: tl.int64,
    outputs: tl.int64,
    padded: tl.int64,
    source_row: tl.int64,
    target_row: tl.int64,
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
    SOURCE_ALIGN: tl.constexpr,
    TARGET_ALIGN: tl.constexpr,
    PADDED_ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """target[row, column] = bias[column] + sum over taps and k of source[shifted row, k] * weight[tap, k, column]; k in
    ``inner_tiles`` tiles (one, where depthwise k is the column)."""
    inputs *= SOURCE_ALIGN
    source_row *= SOURCE_ALIGN
    outputs *= TARGET_ALIGN
    target_row *= TARGET_ALIGN
    padded *= PADDED_ALIGN
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
        at = ((m * source_height + at_h) * source_width + at_w) * source_row
        if DEPTHWISE:
            from_source = source + at[:, None] + _listed(source_index, column, column_exists)[None, :]
            a = tl.load(from_source, mask=there[:, None] & column_exists[None, :], other=0.0)
            b = tl.load(weight + tap * padded + column, mask=column < padded, other=0.0)
            acc += a.to(tl.float32) * b.to(tl.float32)[None, :]
        else:
            k = (step % inner_tiles).to(tl.int64) * INNER + tl.arange(0, INNER)
            from_source = source + at[:, None] + _listed(source_index, k, k < inputs)[None, :]
            a = tl.load(from_source, mask=there[:, None] & (k < inputs)[None, :], other=0.0)
            b = tl.load(
                weight + ((tap * inputs + k) * padded)[:, None] + column[None, :],
                mask=(k < inputs)[:, None] & (column < padded)[None, :],
                other=0.0,
            )
            acc = _product(a, b, acc, PRECISION, WIDEN)
    if bias is not None:
        acc += tl.load(bias + column, mask=column_exists, other=0.0).to(tl.float32)[None, :]
    channel = _listed(target_index, column, column_exists)
    tl.store(
        target + (row * target_row)[:, None] + channel[None, :],
        acc.to(target.dtype.element_ty),
        mask=row_exists[:, None] & column_exists[None, :],
    )


@_unspecialised
def weight_gradient_kernel(
    grad,
    x,
    partials,
    grad_index,
    x_index,
    rows: tl.int64,
    height: tl.int64,
    width: tl.int64,
    x_height: tl.int64,
    x_width: tl.int64,
    inputs: tl.int64,
    outputs: tl.int64,
    grad_row: tl.int64,
    x_row: tl.int64,
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
    GRAD_ALIGN: tl.constexpr,
    X_ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """partials[split, tap, output, input] = sum over the split's positions of grad[position, output] * x[shifted
    position, input]; depthwise, where output and input are one, [split, tap, 0, input]."""
    outputs *= GRAD_ALIGN
    grad_row *= GRAD_ALIGN
    inputs *= X_ALIGN
    x_row *= X_ALIGN
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
    x_channel = _listed(x_index, column, column_exists)
    if DEPTHWISE:
        grad_channel = _listed(grad_index, column, column_exists)
        acc = tl.zeros([INNER, COLUMNS], tl.float32)
    else:
        grad_channel = _listed(grad_index, output, output_exists)
        acc = tl.zeros([ROWS, COLUMNS], tl.float32)
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
        at = ((m * x_height + at_h) * x_width + at_w) * x_row
        b = tl.load(x + at[:, None] + x_channel[None, :], mask=there[:, None] & column_exists[None, :], other=0.0)
        from_grad = grad + (row * grad_row)[:, None] + grad_channel[None, :]
        if DEPTHWISE:
            a = tl.load(from_grad, mask=there[:, None] & column_exists[None, :], other=0.0)
            acc += a.to(tl.float32) * b.to(tl.float32)
        else:
            a = tl.load(from_grad, mask=there[:, None] & output_exists[None, :], other=0.0)
            acc = _product(tl.trans(a), b, acc, PRECISION, WIDEN)
    matrix = split * TAPS + tap
    if DEPTHWISE:
        tl.store(partials + matrix * inputs + column, tl.sum(acc, 0), mask=column_exists)
    else:
        to = partials + ((matrix * outputs + output) * inputs)[:, None] + column[None, :]
        tl.store(to, acc, mask=output_exists[:, None] & column_exists[None, :])


class _Columns(NamedTuple):
    """The active channels of an activation: how many, at which columns (None: side by side), of rows how long; count
    and row in units of ``align`` elements, a whole access where the widths permit. Scattered: moved one or two at a
    time, through a list or at a width with few factors of two."""

    index: Tensor | None
    count: int
    row: int
    align: int
    scattered: bool

    @classmethod
    def of(cls, z: Tensor, index: Tensor | None) -> "_Columns":
        """Of z [M, C, H, W], at full width or at the active width."""
        width = z.shape[1]
        if index is not None and index.numel() < width:
            return cls(index, index.numel(), width, 1, True)
        align = _ACCESS_BYTES // z.element_size()
        while width % align:
            align //= 2
        return cls(None, width // align, width // align, align, align * z.element_size() < _SCATTERED_BELOW)

    @property
    def listed(self) -> bool:
        return self.index is not None

    @property
    def channels(self) -> int:
        return self.count * self.align


def _launch(kernel, programs: int, on: Tensor, tile: Tile, **arguments) -> None:
    """Start a kernel on the device of a tensor. Unlike in front of a threshold, multiply-adds may be fused."""
    names = {"ROWS": tile.rows, "COLUMNS": tile.columns, "num_warps": tile.num_warps, "num_stages": tile.num_stages}
    if kernel is not pack_weight_kernel:
        names["INNER"] = tile.inner
    with torch.cuda.device_of(on):
        kernel[(programs,)](**arguments, **names, enable_fp_fusion=True)


def _modes(weight: Tensor, geometry: Geometry) -> dict:
    """What is compiled in: a layer's geometry, and how products are taken."""
    tf32 = weight.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    sizes = {
        f"{name.upper()}_{axis}": value
        for name in ("stride", "padding", "dilation")
        for axis, value in zip("HW", getattr(geometry, name), strict=True)
    }
    return {
        **sizes,
        "TAPS": weight.shape[2] * weight.shape[3],
        "KERNEL_W": weight.shape[3],
        "DEPTHWISE": geometry.groups > 1,
        "PRECISION": "tf32" if tf32 else "ieee",
        "WIDEN": INTERPRETED and weight.dtype == torch.bfloat16,
    }


def _packed(weight: Tensor, channels: Channels, transposed: bool, depthwise: bool) -> tuple[Tensor, int]:
    """Matrices [taps, inputs, outputs] of the active channels (transposed: [taps, outputs, inputs]; depthwise: [taps,
    1, channels]), and the width of their rows, padded to whole accesses."""
    weight = weight.contiguous(memory_format=memory_format(weight))
    taps = weight.shape[2] * weight.shape[3]
    sides = [(channels.input, weight.shape[1], weight.stride(1)), (channels.output, weight.shape[0], weight.stride(0))]
    if depthwise:
        sides[0] = (None, 1, 0)
    elif transposed:
        sides.reverse()
    (row_index, rows, row_stride), (column_index, columns, column_stride) = sides
    rows = rows if row_index is None else row_index.numel()
    columns = columns if column_index is None else column_index.numel()
    align = _ACCESS_BYTES // weight.element_size()
    padded = triton.cdiv(columns, align) * align
    packed = weight.new_empty(taps, rows, padded)
    _launch(
        pack_weight_kernel,
        triton.cdiv(taps * rows, _PACK_TILE.rows) * triton.cdiv(padded, _PACK_TILE.columns),
        weight,
        _PACK_TILE,
        weight=weight,
        packed=packed,
        row_index=row_index,
        column_index=column_index,
        rows=rows,
        columns=columns,
        padded=padded,
        taps=taps,
        row_stride=row_stride,
        column_stride=column_stride,
        tap_stride=weight.stride(3),
    )
    return packed, padded


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
    from_list, to_list = reversed(channels) if transposed else channels
    at_source, at_target = _Columns.of(source, from_list), _Columns.of(target, to_list)
    rows = target.numel() // target.shape[1]
    if at_target.listed:
        target.zero_()
    if rows == 0:
        return target
    tile = (
        _DEPTHWISE_TILE
        if depthwise
        else _tile(_TILES, source.element_size(), at_target.channels, at_source.scattered or at_target.scattered)
    )
    packed, padded = _packed(weight, channels, transposed, depthwise)
    align = _ACCESS_BYTES // weight.element_size()
    _launch(
        correlate_kernel,
        triton.cdiv(rows, tile.rows) * triton.cdiv(at_target.channels, tile.columns),
        source,
        tile,
        source=source,
        weight=packed,
        bias=bias,
        target=target,
        source_index=at_source.index,
        target_index=at_target.index,
        rows=rows,
        height=target.shape[2],
        width=target.shape[3],
        source_height=source.shape[2],
        source_width=source.shape[3],
        inputs=at_source.count,
        outputs=at_target.count,
        padded=padded // align,
        source_row=at_source.row,
        target_row=at_target.row,
        inner_tiles=1 if depthwise else triton.cdiv(at_source.channels, tile.inner),
        TRANSPOSED=transposed,
        SOURCE_ALIGN=at_source.align,
        TARGET_ALIGN=at_target.align,
        PADDED_ALIGN=align,
        **_modes(weight, geometry),
    )
    return target


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, channels: Channels) -> Tensor:
    """Full size, in the layout and dtype of the weight, zero for dormant channels."""
    depthwise = geometry.groups > 1
    at_grad, at_x = _Columns.of(grad, channels.output), _Columns.of(x, channels.input)
    outputs, inputs, taps = 1 if depthwise else at_grad.channels, at_x.channels, weight.shape[2] * weight.shape[3]
    scattered = at_grad.scattered or at_x.scattered
    widest = min(max(outputs, inputs), 64) if scattered else max(outputs, inputs)
    tile = _DEPTHWISE_TILE if depthwise else _tile(_WEIGHT_TILES, x.element_size(), widest, scattered)
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
        grad_index=at_grad.index,
        x_index=at_x.index,
        rows=rows,
        height=grad.shape[2],
        width=grad.shape[3],
        x_height=x.shape[2],
        x_width=x.shape[3],
        inputs=at_x.count,
        outputs=at_grad.count,
        grad_row=at_grad.row,
        x_row=at_x.row,
        steps=steps,
        GRAD_ALIGN=at_grad.align,
        X_ALIGN=at_x.align,
        **_modes(weight, geometry),
    )
    block = partials.sum(0).permute(2, 1, 0) if depthwise else partials.sum(0).permute(1, 2, 0)
    block = block.unflatten(2, weight.shape[2:]).to(weight.dtype).contiguous(memory_format=memory_format(weight))
    return scatter(block, weight, channels._replace(input=None) if depthwise else channels)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, channels: Channels, full_output: bool
) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.channel_conv2d`; x channels_last, groups 1 or depthwise."""
    height, width = output_size(x.shape, weight.shape, geometry)
    out = weight.shape[0] if full_output or channels.output is None else channels.output.numel()
    y = torch.empty((x.shape[0], out, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if bias is not None and channels.output is not None:
        bias = bias.index_select(0, channels.output)
    return _correlate(x, weight, bias, y, geometry, channels, False)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, channels: Channels, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :meth:`sca_kernels.backends.base.Backend.channel_conv2d_backward`; the gradient of x is as wide as x."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    g_x = g_weight = g_bias = None
    if needed[0]:
        g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _correlate(grad, weight, None, g_x, geometry, channels, True)
    if needed[1]:
        g_weight = _weight_gradient(grad, x, weight, geometry, channels)
    if needed[2]:
        g_bias = bias_gradient(grad, channels, weight.shape[0])
    return g_x, g_weight, g_bias
