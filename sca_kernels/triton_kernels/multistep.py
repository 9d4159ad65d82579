"""All time steps of a neuron in Triton: one forward and one backward kernel for every neuron, surrogate, reset and
layout (twin of :mod:`sca_kernels.reference.multistep`).

Nothing but x is kept for the backward pass, which recomputes h: in registers where T is short, else chunk by chunk,
after a first pass that writes v at the start of each chunk to a scratch buffer of the program.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import dense_strides, empty_activation, empty_state, is_channels_last
from ..neurons import NEURONS, NeuronConfig
from ..twins import triton_of_neuron, triton_of_surrogate
from . import neurons, surrogates
from .tiling import (
    GEOMETRY,
    Steps,
    dense,
    exists,
    launch,
    live_at,
    load_steps,
    of_channel,
    put_partial,
    steps_of,
    strided,
    strides_of,
    tile,
    tile_indices,
    write_sums,
)

_VECTORS = ["scale", "shift", "rate", "mask", "center", "slope", "offset"]
"""Per-channel arguments: rows of larger buffers among them, so of any alignment."""


@triton.jit
def _affine(x, scale, shift):
    y = x.to(tl.float32)
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    return y


@triton.jit
def _after_spike(h, fired, v_threshold, v_rest, SOFT: tl.constexpr):
    if SOFT:
        return tl.where(fired, h - v_threshold, h)
    else:
        return tl.where(fired, v_rest, h)


@triton.jit
def _initial(v_init, at, valid, v_rest):
    if v_init is None:
        return tl.zeros(at.shape, tl.float32) + v_rest
    else:
        return tl.load(v_init + at, mask=valid, other=0.0)


@triton.jit(do_not_specialize=GEOMETRY + strides_of("x"), do_not_specialize_on_alignment=_VECTORS)
def forward_kernel(
    x,
    spikes,
    v_init,
    v_last,
    scale,
    shift,
    rate,
    mask,
    partials,
    leak: tl.float32,
    v_threshold: tl.float32,
    v_rest: tl.float32,
    rows: tl.int64,
    columns: tl.int64,
    inner: tl.int64,
    fold: tl.int64,
    stripes: tl.int64,
    splits: tl.int64,
    tiles: tl.int64,
    time_steps: tl.int64,
    x_t: tl.int64,
    x_outer: tl.int64,
    x_inner: tl.int64,
    x_stripe: tl.int64,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    REPEAT: tl.constexpr,
    CHARGE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOFT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    stripe = program % stripes
    split = program // stripes
    columns = columns * ALIGN
    step = rows * columns if INTERLEAVED else rows * columns * stripes
    if scale is not None:
        scale = of_channel(scale, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if shift is not None:
        shift = of_channel(shift, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if rate is not None:
        leak = of_channel(rate, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if mask is not None:
        mask = of_channel(mask, stripe, columns, fold, INTERLEAVED, COLUMNS) != 0

    count = tl.zeros([ROWS, COLUMNS], tl.int32)
    l1 = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(tiles):
        row, column, valid = tile_indices(split * tiles + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN)
        at = dense(row, column, stripe, stripes, columns, INTERLEAVED)
        v = _initial(v_init, at, valid, v_rest)
        tile_count = tl.zeros([ROWS, COLUMNS], tl.int32)
        tile_l1 = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, time_steps if CHUNKED else STEPS, STEPS):
            xs = load_steps(x_at, first, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
            for t in tl.static_range(STEPS):
                is_step = exists(first + t, time_steps, CHUNKED)
                h = CHARGE(v, _affine(xs[t], scale, shift), leak, v_rest, DECAY_INPUT, DIVIDE)
                fired = h >= v_threshold
                v = tl.where(is_step, _after_spike(h, fired, v_threshold, v_rest, SOFT), v)
                tile_count += (fired & is_step).to(tl.int32)
                tile_l1 += tl.where(is_step, tl.abs(v - v_rest), 0.0)
                emitted = tl.where(fired if mask is None else fired & mask, 1.0, 0.0)
                live = live_at(valid, first + t, time_steps, CHUNKED)
                tl.store(spikes + (first + t) * step + at, emitted.to(spikes.dtype.element_ty), mask=live)
        count += tl.where(valid, tile_count, 0)
        l1 += tl.where(valid, tile_l1, 0.0)
        if v_last is not None:
            tl.store(v_last + at, v, mask=valid)
    put_partial(partials, 0, count, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)
    put_partial(partials, 1, l1, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)


@triton.jit
def _potentials(
    v,
    xs,
    scale,
    shift,
    leak,
    v_threshold,
    v_rest,
    STEPS: tl.constexpr,
    CHARGE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOFT: tl.constexpr,
):
    """h at every step of a chunk, and v after the last (beyond the end: of no meaning)."""
    hs = ()
    for t in tl.static_range(STEPS):
        h = CHARGE(v, _affine(xs[t], scale, shift), leak, v_rest, DECAY_INPUT, DIVIDE)
        v = _after_spike(h, h >= v_threshold, v_threshold, v_rest, SOFT)
        hs += (h,)
    return hs, v


@triton.jit
def _input_gradient(g, x, scale, slope, offset):
    if scale is not None:
        g = g * scale
    if slope is not None:
        g = g + (slope * x.to(tl.float32) + offset)
    return g


@triton.jit(
    do_not_specialize=GEOMETRY + strides_of("x") + strides_of("grad_spikes"),
    do_not_specialize_on_alignment=_VECTORS,
)
def backward_kernel(
    grad_spikes,
    grad_v,
    x,
    v_init,
    grad_x,
    grad_v_init,
    scale,
    shift,
    rate,
    center,
    slope,
    offset,
    partials,
    checkpoints,
    leak: tl.float32,
    v_threshold: tl.float32,
    v_rest: tl.float32,
    alpha: tl.float32,
    beta: tl.float32,
    rows: tl.int64,
    columns: tl.int64,
    inner: tl.int64,
    fold: tl.int64,
    stripes: tl.int64,
    splits: tl.int64,
    tiles: tl.int64,
    time_steps: tl.int64,
    x_t: tl.int64,
    x_outer: tl.int64,
    x_inner: tl.int64,
    x_stripe: tl.int64,
    grad_spikes_t: tl.int64,
    grad_spikes_outer: tl.int64,
    grad_spikes_inner: tl.int64,
    grad_spikes_stripe: tl.int64,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    REPEAT: tl.constexpr,
    CHARGE: tl.constexpr,
    ADJOINT: tl.constexpr,
    LEAK_GRADIENT: tl.constexpr,
    SURROGATE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOFT: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """With g the gradient of the input current: grad_x = scale * g + slope * x + offset; partials = sums of g, of
    g * (x - center), and of the rate's gradient. What is None is not read, written or summed. Where a tile reaches
    beyond the tensors, the gradients that come in are loaded as zeros, and all that follow from them are zeros."""
    program = tl.program_id(0).to(tl.int64)
    stripe = program % stripes
    split = program // stripes
    columns = columns * ALIGN
    step = rows * columns if INTERLEAVED else rows * columns * stripes
    if scale is not None:
        scale = of_channel(scale, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if shift is not None:
        shift = of_channel(shift, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if center is not None:
        center = of_channel(center, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if slope is not None:
        slope = of_channel(slope, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if offset is not None:
        offset = of_channel(offset, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if rate is not None:
        leak = of_channel(rate, stripe, columns, fold, INTERLEAVED, COLUMNS)
    # Only h must be rounded as the equations say: its gradient is multiplied by the reciprocal.
    rate_of_leak = 1.0 / leak if DIVIDE else leak
    chunks = tl.cdiv(time_steps, STEPS) if CHUNKED else 1
    if CHUNKED:
        row = program * chunks * ROWS + tl.arange(0, ROWS)
        checkpoints += (row * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]

    sum_g = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_gx = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_rate = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(tiles):
        row, column, valid = tile_indices(split * tiles + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN)
        at = dense(row, column, stripe, stripes, columns, INTERLEAVED)
        v = _initial(v_init, at, valid, v_rest)
        if CHUNKED:
            tl.debug_barrier()  # other threads may still read what the last tile left here
            for chunk in range(chunks - 1):
                tl.store(checkpoints + chunk * (ROWS * COLUMNS), v)
                xs = load_steps(x_at, chunk * STEPS, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
                hs, v = _potentials(
                    v, xs, scale, shift, leak, v_threshold, v_rest, STEPS, CHARGE, DECAY_INPUT, DIVIDE, SOFT
                )
            tl.store(checkpoints + (chunks - 1) * (ROWS * COLUMNS), v)
            tl.debug_barrier()

        g_v = _initial(grad_v, at, valid, 0.0)
        g_x = tl.zeros([ROWS, COLUMNS], tl.float32)  # of a repeated step
        for back in range(chunks):
            chunk = chunks - 1 - back
            first = chunk * STEPS
            xs = load_steps(x_at, first, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
            if grad_spikes is not None:
                g_at = grad_spikes + strided(
                    *(row, column, stripe, grad_spikes_outer, grad_spikes_inner, grad_spikes_stripe, inner),
                    UNEVEN,
                    ALIGN,
                )
                g_s = load_steps(g_at, first, grad_spikes_t * ALIGN, valid, time_steps, STEPS, CHUNKED, False)
            if CHUNKED:
                v = tl.load(checkpoints + chunk * (ROWS * COLUMNS))
            hs, _ = _potentials(
                v, xs, scale, shift, leak, v_threshold, v_rest, STEPS, CHARGE, DECAY_INPUT, DIVIDE, SOFT
            )
            for t in tl.static_range(STEPS - 1, -1, -1):
                is_step = exists(first + t, time_steps, CHUNKED)
                h = hs[t]
                fired = h >= v_threshold
                spike_slope = SURROGATE(h - v_threshold, alpha, beta)
                g_h = g_v if SOFT else tl.where(fired, 0.0, g_v)
                if not DETACH_RESET:
                    g_h += g_v * ((-v_threshold) if SOFT else (v_rest - h)) * spike_slope
                if grad_spikes is not None:
                    g_h += g_s[t].to(tl.float32) * spike_slope
                y = _affine(xs[t], scale, shift)
                if rate is not None and partials is not None:
                    v_before = v
                    if t > 0:
                        v_before = _after_spike(hs[t - 1], hs[t - 1] >= v_threshold, v_threshold, v_rest, SOFT)
                    sum_rate += tl.where(is_step, LEAK_GRADIENT(g_h, v_before, y, v_rest, DECAY_INPUT), 0.0)
                g_before, g = ADJOINT(g_h, rate_of_leak, DECAY_INPUT)
                g_v = tl.where(is_step, g_before, g_v)
                g = tl.where(is_step, g, 0.0)
                if partials is not None:
                    centered = xs[t].to(tl.float32)
                    if center is not None:
                        centered -= center
                    sum_g += g
                    sum_gx += g * centered
                if REPEAT:
                    g_x += g
                elif grad_x is not None:
                    g = _input_gradient(g, xs[t], scale, slope, offset)
                    live = live_at(valid, first + t, time_steps, CHUNKED)
                    tl.store(grad_x + (first + t) * step + at, g.to(grad_x.dtype.element_ty), mask=live)
        if REPEAT and grad_x is not None:
            g_x = _input_gradient(g_x, tl.load(x_at, mask=valid, other=0.0), scale, slope, offset)
            tl.store(grad_x + at, g_x.to(grad_x.dtype.element_ty), mask=valid)
        if grad_v_init is not None:
            tl.store(grad_v_init + at, g_v, mask=valid)
    if partials is not None:
        put_partial(partials, 0, sum_g, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)
        put_partial(partials, 1, sum_gx, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)
        if rate is not None:
            put_partial(partials, 2, sum_rate, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)


class Dynamics(NamedTuple):
    """What both kernels need to know of a neuron: run-time numbers, compile-time modes, and how they go over time."""

    numbers: dict
    modes: dict
    steps: Steps


def _dynamics(config: NeuronConfig, x: Tensor, time_steps: int) -> Dynamics:
    numbers = {
        "leak": config.leak,
        "v_threshold": config.v_threshold,
        "v_rest": config.v_rest,
    }
    modes = {
        "REPEAT": x.shape[0] != time_steps,
        "CHARGE": triton_of_neuron(neurons, config, "charge"),
        "DECAY_INPUT": config.decay_input,
        "DIVIDE": config.divides_by_tau,
        "SOFT": config.v_reset is None,
    }
    return Dynamics(numbers, modes, steps_of(time_steps))


def _dense_state(v: Tensor | None, x: Tensor) -> Tensor | None:
    """v [N, C, *S] as it is where dense in the layout of x, else a dense copy."""
    if v is None or v.stride() == dense_strides(x.shape, is_channels_last(x))[1:]:
        return v
    return empty_state(x, v.dtype).copy_(v)


class Current(NamedTuple):
    """How the input current follows from x: the affine prelude, the leak's rate and the first potential."""

    scale: Tensor | None
    shift: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None


def forward(
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    mask: Tensor | None,
    return_v: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Spikes, final v, spike_count and membrane_l1, as in
    :meth:`sca_kernels.backends.base.Backend.neuron_forward`."""
    tiling, _ = tile(x, time_steps)
    channels = x.shape[2]
    spikes = empty_activation(x, time_steps)
    v_last = empty_state(x, torch.float32) if return_v else None
    spike_count = torch.empty(channels, dtype=torch.int64, device=x.device)
    membrane_l1 = torch.empty(channels, dtype=torch.float32, device=x.device)
    partials = tiling.partials(2, x.device)
    dynamics = _dynamics(config, x, time_steps)
    launch(
        forward_kernel,
        tiling.programs,
        x,
        **tiling.arguments,
        **tiling.argument("x", 0, x),
        spikes=spikes,
        v_last=v_last,
        mask=mask,
        partials=partials,
        **current._replace(v_init=_dense_state(current.v_init, x))._asdict(),
        **dynamics.numbers,
        **dynamics.modes,
        **dynamics.steps.arguments(crowded=tiling.narrow),
    )
    write_sums(tiling, partials, spike_count, membrane_l1)
    return spikes, v_last, spike_count, membrane_l1


class Adjoint:
    """The backward pass of one call; batch norm runs it twice, for the sums and then for grad_x."""

    def __init__(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        current: Current,
    ) -> None:
        self.x = x
        self.current = current._replace(v_init=_dense_state(current.v_init, x))
        self.grad_v = _dense_state(grad_v, x)
        self.tiling, (self.grad_spikes,) = tile(x, time_steps, grad_spikes)
        self.dynamics = _dynamics(config, x, time_steps)
        learned = NEURONS[config.neuron].learnable_leak
        self.modes = {
            "ADJOINT": triton_of_neuron(neurons, config, "adjoint"),
            "LEAK_GRADIENT": triton_of_neuron(neurons, config, "leak_gradient") if learned else None,
            "SURROGATE": triton_of_surrogate(surrogates, config),
            "DETACH_RESET": config.detach_reset,
        }
        self.slopes = {"alpha": config.alpha, "beta": config.beta}

    def _run(self, **arguments: Tensor | None) -> None:
        chunks, checkpoints = self.dynamics.steps.chunks, None
        if chunks > 1:
            size = self.tiling.programs * chunks * self.tiling.tile_size
            checkpoints = torch.empty(size, dtype=torch.float32, device=self.x.device)
        launch(
            backward_kernel,
            self.tiling.programs,
            self.x,
            **self.tiling.arguments,
            **self.tiling.argument("x", 0, self.x),
            **self.tiling.argument("grad_spikes", 1, self.grad_spikes),
            grad_v=self.grad_v,
            checkpoints=checkpoints,
            **self.current._asdict(),
            **dict.fromkeys(("center", "slope", "offset", "partials", "grad_x", "grad_v_init")) | arguments,
            **self.dynamics.numbers,
            **self.dynamics.modes,
            **self.dynamics.steps.arguments(crowded=self.tiling.narrow or self.x.element_size() == 2),
            **self.modes,
            **self.slopes,
        )

    def partials(self) -> Tensor:
        """Room for the sums of g, of g * (x - center), and of the rate's gradient where there is one."""
        return self.tiling.partials(2 if self.current.rate is None else 3, self.x.device)

    def sums(self, center: Tensor) -> Tensor:
        """These sums alone, as partials."""
        partials = self.partials()
        self._run(center=center, partials=partials)
        return partials

    def gradients(self, **arguments: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of x and of v_init (None where there was none); ``slope`` and ``offset`` enter that of x, and with
        ``partials`` the sums are taken as well."""
        grad_x = empty_activation(self.x, self.x.shape[0])
        grad_v_init = None if self.current.v_init is None else empty_state(self.x, torch.float32)
        self._run(grad_x=grad_x, grad_v_init=grad_v_init, **arguments)
        return grad_x, grad_v_init


def backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, scale, shift, rate and v_init, as in
    :meth:`sca_kernels.backends.base.Backend.neuron_backward`."""
    adjoint = Adjoint(grad_spikes, grad_v, x, time_steps, config, current)
    g_scale, g_shift, g_rate = (None if p is None else torch.empty_like(p) for p in current[:3])
    partials = None if g_scale is None and g_shift is None and g_rate is None else adjoint.partials()
    g_x, g_v_init = adjoint.gradients(partials=partials)
    if partials is not None:
        write_sums(adjoint.tiling, partials, g_shift, g_scale, g_rate)
    return g_x, g_scale, g_shift, g_rate, g_v_init
