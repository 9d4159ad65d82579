"""How activations are cut into tiles, one kind of tile for all layouts, and how per-channel sums leave the programs.

A tile is ROWS x COLUMNS elements, with all their time steps. Columns run along the innermost dimension:

* interleaved: channels_last and [T, N, C] (a column is a channel, a row a position (n, s)), and contiguous maps whose
  rows would fill no memory transaction, or no access (a column is one of the C * S elements of a sample, ``fold`` = S
  of them per channel; a row is a sample).
* planes: contiguous maps; one program stays in one channel, a row is a sample, a column a position.

Tiles one above the other are a *stripe* (the columns of a tile; or a channel), which ``splits`` programs share, as in
split-K: each owns ``tiles`` consecutive tiles of it and writes each of its sums once, as float64, to ``partials``
[quantity, split, slot]. A stripe has as many *slots* as it can have channels. The last program of a ``group`` of splits
adds them up, to one more row of partials where there are several groups; the last of these finishes the stripe. Where
channels are folded, and may lie in two stripes, the very last finishes all. Each sum has one order, whoever comes last.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import layout
from ..layout import (
    collapse,
    dense_strides,
    empty_activation,
    in_layout_of,
    is_channels_last,
    spatial_size,
)

_ACCESS_BYTES = 16
_FOLD_BELOW = 32  # positions: shorter rows of a plane would waste most of a memory transaction
_FOLD_ODD_BELOW = 1024  # positions of planes that 16-byte accesses don't divide; in a row of planes they may
_COLUMNS = 16, 64  # narrower tiles waste rows of short maps; 64 columns fill whole memory transactions
_MAX_PROGRAMS = 8192  # several waves on any GPU; more would only lengthen the sum over partials
_MAX_TERMS = 64  # steps x tiles that a float32 accumulator takes in before it is widened
_GROUPED_ABOVE = 32  # splits, of which one program adds up the sums in a few microseconds


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


class TileStrides(NamedTuple):
    """Strides of a tensor in units of ``align`` elements: per step, per row (split into two where rows are not evenly
    spaced) and per stripe."""

    t: int = 0
    outer: int = 0
    inner: int = 0
    stripe: int = 0


class Tiles(NamedTuple):
    """The tiles of one kernel launch; sizes in elements.

    Attributes:
        rows, columns: of all tiles of a stripe together.
        inner: positions per sample, where rows are not evenly spaced.
        fold: columns per channel.
        stripes, splits, group, tiles, slots: see the module.
        interleaved, uneven: whether rows cross all channels, and whether they are not evenly spaced.
        align: elements of an access; all strides are multiples of it.
        tile_rows, tile_columns: of a tile, powers of two.
    """

    rows: int
    columns: int
    inner: int
    fold: int
    stripes: int
    splits: int
    group: int
    tiles: int
    slots: int
    interleaved: bool
    uneven: bool
    align: int
    tile_rows: int
    tile_columns: int

    @property
    def programs(self) -> int:
        """Size of the launch grid; 0 for an empty tensor."""
        return self.stripes * self.splits

    @property
    def groups(self) -> int:
        return ceil_div(self.splits, self.group)

    @property
    def partial_rows(self) -> int:
        """Rows of partials per quantity: of the splits, and of their groups where there are several."""
        return self.splits + (self.groups if self.groups > 1 else 0)

    @property
    def counters(self) -> int:
        """How many counters the programs of a launch arrive at."""
        return self.stripes * (self.groups + 1) + 1


class Plan:
    """A launch over x [T or 1, N, C, *S], whose layout decides, and tensors that go with it.

    Args:
        tile_size: of the kernels that will run, see :class:`~sca_kernels.gpu.launcher.Launcher`.
        x: the input.
        time_steps: T.
        grad_spikes: [T, N, C, *S] or None.
        dense: by name, potentials [N, C, *S], or [T, N, C, *S], or None.

    Attributes:
        tensors: x, grad_spikes and the dense ones by name; where a kernel can't address one as it is, a dense copy,
            these in the layout of x.
        strides: of x and grad_spikes.
        narrow: whether an access moves less than 16 bytes.
    """

    def __init__(
        self,
        tile_size: Callable[[int, int, int], int],
        x: Tensor,
        time_steps: int,
        grad_spikes: Tensor | None = None,
        **dense: Tensor | None,
    ) -> None:
        x = in_layout_of(x, x)
        positions, strides = spatial_size(x), collapse(x)
        vector = _ACCESS_BYTES // x.element_size()
        innermost = is_channels_last(x) or (positions == 1 and (x.shape[2] == 1 or strides.c == 1))
        odd = positions % vector and positions < _FOLD_ODD_BELOW and x.shape[2] * positions % vector == 0
        folded = not innermost and strides.c == positions and (positions < _FOLD_BELOW or bool(odd))

        if grad_spikes is not None and not _addressable(grad_spikes, innermost, folded):
            grad_spikes = empty_activation(x, time_steps, grad_spikes.dtype).copy_(grad_spikes)
        self.x, self.time_steps = x, time_steps
        self.tensors: dict[str, Tensor | None] = {"x": x, "grad_spikes": grad_spikes}
        self.tensors |= {name: _dense(z, x, time_steps) for name, z in dense.items()}
        self.tiles = _tiles(
            (x.shape[1], x.shape[2], positions),
            time_steps,
            x.element_size(),
            innermost,
            folded,
            (strides, None if grad_spikes is None else collapse(grad_spikes)),
            all(z is None or z.data_ptr() % _ACCESS_BYTES == 0 for z in self.tensors.values()),
            tile_size,
        )
        self.strides = {name: self._in_units(self.tensors[name]) for name in ("x", "grad_spikes")}
        self.narrow = self.tiles.align * x.element_size() < _ACCESS_BYTES

    def _in_units(self, z: Tensor | None) -> TileStrides:
        if z is None:
            return TileStrides()
        strides = _tile_strides(collapse(z), self.tiles.inner, self.tiles.uneven, self.tiles.interleaved)
        if z.shape[0] != self.time_steps:  # one step stands for all
            strides = strides._replace(t=0)
        return TileStrides(*(stride // self.tiles.align for stride in strides))

    @property
    def channels(self) -> int:
        return self.x.shape[2]

    @property
    def repeats(self) -> bool:
        """Whether a single step of x is presented many times."""
        return self.x.shape[0] != self.time_steps

    def partials(self, quantities: int) -> Tensor:
        """Room for the sums of all programs, float64."""
        shape = (quantities, self.tiles.partial_rows, self.tiles.stripes * self.tiles.slots)
        return torch.empty(shape, dtype=torch.float64, device=self.x.device)

    def counters(self) -> Tensor:
        """Zeros that programs arrive at, and that the last ones leave as zeros."""
        return _counters(self.x.device, self.tiles.counters)


def _addressable(z: Tensor, innermost: bool, folded: bool) -> bool:
    """Whether tiles of a kind can address z as it is."""
    strides, positions = collapse(z), spatial_size(z)
    if strides is None:
        return False
    if innermost:
        return z.shape[2] == 1 or strides.c == 1
    return (positions == 1 or strides.s == 1) and (not folded or strides.c == positions)


def _dense(z: Tensor | None, x: Tensor, time_steps: int) -> Tensor | None:
    """z [N, C, *S] or [T, N, C, *S] as it is where dense in the layout of x, else a dense copy."""
    if z is None:
        return None
    strides = dense_strides((time_steps, *x.shape[1:]), is_channels_last(x))[-z.dim() :]
    if z.stride() == strides:
        return z
    return torch.empty_strided(z.shape, strides, dtype=z.dtype, device=z.device).copy_(z)


def _tile_strides(z: layout.Strides, inner: int, uneven: bool, interleaved: bool) -> TileStrides:
    per_position = inner > 1 and not uneven
    return TileStrides(z.t, z.s if per_position else z.n, z.s if uneven else 0, 0 if interleaved else z.c)


@functools.lru_cache(maxsize=4096)
def _tiles(
    shape: tuple[int, int, int],
    time_steps: int,
    element_size: int,
    innermost: bool,
    folded: bool,
    collapsed: tuple[layout.Strides | None, ...],
    aligned: bool,
    tile_size_of: Callable[[int, int, int], int],
) -> Tiles:
    n, c, s = shape
    interleaved = innermost or folded
    inner = s if innermost else 1
    rows, columns = n * inner, c if innermost else c * s if folded else s
    uneven = n > 1 and inner > 1 and any(z.n != s * z.s for z in collapsed if z)
    strides = [_tile_strides(z, inner, uneven, interleaved) for z in collapsed if z]
    widest = _ACCESS_BYTES // element_size
    align = math.gcd(widest, columns, *(stride for z in strides for stride in z)) if aligned else 1

    tile_size = tile_size_of(element_size, align, time_steps)
    tile_columns = min(max(_power_of_two(columns), _COLUMNS[0]), _COLUMNS[1])
    if not interleaved and s >= tile_size:
        tile_columns = tile_size
    tile_rows = tile_size // tile_columns
    row_tiles, column_tiles = ceil_div(rows, tile_rows), ceil_div(columns, tile_columns)
    stripes, in_stripe = (column_tiles, row_tiles) if interleaved else (c, row_tiles * column_tiles)
    tiles = max(1, min(ceil_div(stripes * in_stripe, _MAX_PROGRAMS), _MAX_TERMS // time_steps))
    splits = ceil_div(in_stripe, tiles)
    fold = s if folded else 1
    # Two columns or more per channel, of which the first stripe's and the last's may be incomplete.
    slots = tile_columns // 2 if fold > 1 else tile_columns if interleaved else 1
    return Tiles(
        rows=rows,
        columns=columns,
        inner=max(inner, 1),
        fold=max(fold, 1),
        stripes=stripes,
        splits=splits,
        group=max(splits, 1) if splits <= _GROUPED_ABOVE else _power_of_two(math.isqrt(splits)),
        tiles=tiles,
        slots=slots,
        interleaved=interleaved,
        uneven=uneven,
        align=align,
        tile_rows=tile_rows,
        tile_columns=tile_columns,
    )


def _is_capturing(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


_counted = threading.local()
_LEAST_COUNTERS = 1 << 14


def _counters(device: torch.device, count: int) -> Tensor:
    """int32 zeros. Kernels leave them as they found them, so that those of a stream serve all of its launches; a graph
    that is being captured may run beside anything and has its own, and so has whatever is interpreted, which an
    exception may interrupt."""
    if device.type != "cuda" or _is_capturing(device):
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    known: dict[tuple[torch.device, int], Tensor] = vars(_counted).setdefault("by_stream", {})
    found = known.get((device, stream))
    if found is None or found.numel() < count:
        size = max(count, _LEAST_COUNTERS)
        with torch.inference_mode(False):
            found = known[device, stream] = torch.zeros(size, dtype=torch.int32, device=device)
    return found
