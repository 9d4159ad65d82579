"""How activations are cut among blocks and threads, and how per-channel sums are finished; ``csrc/cuda/walk.h`` has the
reading.

All of it follows from shapes, strides and dtype alone, not from the device, so sums have the same order everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layout import collapse, empty_activation, in_layout_of, is_channels_last, spatial_size
from .parameters import Launch, Strided, SumsParameters, Walk, address

THREADS = 128
NAMES = {torch.float32: "float", torch.bfloat16: "sca::bfloat16", torch.float16: "sca::float16"}
"""C++ name of each dtype that the kernels take."""

_FOLD_BELOW = 32  # positions: shorter rows of a plane would waste most of a memory transaction
_FOLD_ODD_BELOW = 1024  # positions of planes that 16-byte accesses don't divide; in a row of planes they may
_MOST_LANES = 32
_BLOCKS = 1024, 4096  # several waves on any GPU; more would only lengthen the sum over partials
_MOST_TERMS = 256  # that a thread's float32 sum takes in
_CHANNEL_THREADS, _CHANNELS_PER_BLOCK = 512, 4  # of kernels over channels


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Tiling:
    """A walk over x [T or 1, N, C, *S] and tensors [time_steps or 1, N, C, *S] beside it.

    Args:
        x: the input; its layout decides.
        time_steps: T.
        beside: by name, tensors that the same kernel reads or writes; None where there is none.

    Attributes:
        tensors: x and those beside it by name; where threads can't address one as it is, a dense copy.
    """

    def __init__(self, x: Tensor, time_steps: int, **beside: Tensor | None) -> None:
        x = in_layout_of(x, x)
        n, c, s = x.shape[1], x.shape[2], spatial_size(x)
        self.channels = c
        vector = 16 // x.element_size()
        strides = collapse(x)
        interleaved = is_channels_last(x) or (s == 1 and (c == 1 or strides.c == 1))
        odd = s % vector and s < _FOLD_ODD_BELOW and c * s % vector == 0
        folded = not interleaved and strides.c == s and (s < _FOLD_BELOW or bool(odd))

        def addressable(z: Tensor) -> bool:
            own = collapse(z)
            if own is None:
                return False
            if interleaved:
                return c == 1 or own.c == 1
            return (s == 1 or own.s == 1) and (not folded or own.c == s)

        self.tensors: dict[str, Tensor] = {"x": x}
        for name, z in beside.items():
            if z is not None:
                z = z if addressable(z) else empty_activation(x, z.shape[0], z.dtype).copy_(z)
                self.tensors[name] = z

        self.planes = not (interleaved or folded)
        self.fold = s if folded else 1
        self.columns = c * self.fold
        row = s if self.planes else self.columns  # along which accesses go
        collapsed = {name: collapse(z) for name, z in self.tensors.items()}
        self.vector = 1
        if row % vector == 0 and all(z.data_ptr() % 16 == 0 for z in self.tensors.values()):
            steps = (
                stride
                for z, own in zip(self.tensors.values(), collapsed.values(), strict=True)
                for stride, size in zip(
                    own, (z.shape[0], n, c if self.planes else 1, s if interleaved else 1), strict=True
                )
                if size > 1
            )
            self.vector = vector if all(stride % vector == 0 for stride in steps) else 1

        vectors = row // self.vector
        side_by_side = 1
        if not self.planes:
            side_by_side = min(
                (_MOST_LANES >> i for i in range(6)), key=lambda width: (ceil_div(vectors, width) * width, -width)
            )
        rows = THREADS // side_by_side
        inner = vectors if self.planes else s if interleaved else 1
        places = n * inner
        stripes = c if self.planes else ceil_div(vectors, side_by_side)
        in_stripe = ceil_div(places, rows)
        blocks = stripes * in_stripe
        fewer = max(_BLOCKS[0], min(blocks // 8, _BLOCKS[1]))
        items = 1
        if blocks > fewer:
            items = max(1, min(ceil_div(blocks, fewer), _MOST_TERMS // time_steps))
        self.splits = ceil_div(in_stripe, items)
        self.blocks = stripes * self.splits
        self.walk = Walk(
            places=places,
            inner=max(inner, 1),
            stripes=stripes,
            lanes=side_by_side,
            columns=self.columns,
            fold=self.fold,
            splits=self.splits,
            items=items,
            rows=rows,
            outer_step=rows // max(inner, 1),
            inner_step=rows % max(inner, 1),
        )
        self.width = 1 if self.planes else self.vector
        self._strided = {
            name: Strided(
                data=address(self.tensors[name]),
                # A step presented many times has no step to take.
                t=0 if self.tensors[name].shape[0] != time_steps else own.t,
                outer=own.n,
                inner=self.vector if self.planes else own.s,
                stripe=own.c if self.planes else 1,
            )
            for name, own in collapsed.items()
        }

    def strided(self, *names: str) -> dict[str, Strided]:
        """Kernel arguments of tensors, by name; null for one that there isn't."""
        return {name: self._strided.get(name, Strided()) for name in names}

    def kernel(self, name: str) -> str:
        """The variant of a kernel template that does this walk."""
        return f"sca::{name}<{NAMES[self.tensors['x'].dtype]}, {str(self.planes).lower()}, {self.vector}>"

    def partials(self, quantities: int) -> Tensor:
        """Room for the sums of all blocks."""
        like = self.tensors["x"]
        return like.new_empty((quantities, self.splits, self.columns), dtype=torch.float64)

    @property
    def sum_bytes(self) -> int:
        """Shared memory that a block needs to add up its threads' sums."""
        return THREADS * self.width * 8

    def table_bytes(self, vectors: int) -> int:
        """Shared memory for per-channel vectors."""
        return 0 if self.planes else vectors * self.walk.lanes * self.vector * 4

    def launch(self, launch: Launch, kernel: str, shared: int, parameters: Any) -> None:
        """Run a kernel of this walk; nothing for an empty tensor."""
        if self.blocks:
            launch(
                self.kernel(kernel), self.blocks, THREADS, max(shared, self.sum_bytes), parameters, self.tensors["x"]
            )

    def finish(
        self, launch: Launch, kernel: str, partials: Tensor | None, numbers: dict[str, float], **vectors: Tensor | None
    ) -> None:
        """Run a kernel over channels, on the sums of this walk; vectors are what it reads and writes, [C] each."""
        if self.channels:
            parameters = SumsParameters(
                channels=self.channels,
                fold=self.fold,
                splits=self.splits,
                partials=address(partials),
                **numbers,
                **{name: address(z) for name, z in vectors.items()},
            )
            grid = ceil_div(self.channels, _CHANNELS_PER_BLOCK)
            on = self.tensors["x"]
            launch(f"sca::{kernel}", grid, _CHANNEL_THREADS, _CHANNEL_THREADS * 8, parameters, on)
