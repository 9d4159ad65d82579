"""What a backend is: one object that runs every operator of :mod:`sca_kernels.ops` on some devices and dtypes.

Arguments arrive checked. x is an activation [T, N, C, *S] with T = time_steps, or [1, N, C, *S] presented
``time_steps`` times. Per-channel vectors (scale, shift, rate, threshold, mask, weight, bias, mean, var) are contiguous
[C]; all are in the state's dtype (float32, or float64 for float64 x), the mask bool. v_init, grad_v are [N, C, *S] in
the state's dtype, grad_h is [T, N, C, *S]. Outputs are dense in the memory layout of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import channels as active
from ..channels import Bits, Channels, Geometry, at_width, numel
from ..layout import empty_activation, empty_state
from ..neurons import NeuronConfig
from ..reference import batch_norm, channel_conv, multistep
from ..tracking import Tracking


class BackendError(RuntimeError):
    """A kernel of a backend did not compile, or could not be loaded or started; nothing was computed."""


# What the CUDA driver says once a kernel has crashed, so that each later call fails, or where there is no memory left.
_LOST = (
    "context is destroyed",
    "device-side assert",
    "hardware stack error",
    "illegal address",
    "illegal instruction",
    "illegal memory access",
    "invalid program counter",
    "launch timed out",
    "misaligned address",
    "out of memory",
    "uncorrectable",
    "unspecified launch failure",
)


def would_fail_anywhere(error: BaseException) -> bool:
    """Whether no other backend could help: the device has crashed, or memory is short."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def sentence(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]


def in_full(error: BaseException) -> str:
    """An error's type, what it says and, of a program that was called, what that printed."""
    printed = [getattr(error, name, None) or "" for name in ("stdout", "stderr")]
    printed = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in printed]
    return "\n".join([f"{type(error).__name__}: {str(error).strip()}", *(text.strip() for text in printed if text)])


class Forward(NamedTuple):
    """Spikes [T, N, C, *S] in x's dtype, final v [N, C, *S] (None unless asked for), spike_count int64 [C], membrane_l1
    float32 [C], whether that holds a NaN, where the backend knows, whether what was to be tracked has been, and the
    potentials before each reset [T, N, C, *S] in the state's dtype (None unless asked for).

    A channel whose mask is False integrates, is counted, and emits zeros.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor
    is_nan: bool | None = None
    has_tracked: bool = False
    h: Tensor | None = None


class NeuronGradients(NamedTuple):
    """Gradients of ``neuron_forward``; x in x's dtype and shape, the others None where the input was None."""

    x: Tensor
    scale: Tensor | None
    shift: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None
    threshold: Tensor | None = None


class BatchNormGradients(NamedTuple):
    """Gradients of ``batch_norm_forward``; weight and bias as long as the input, None where that was None."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None
    threshold: Tensor | None = None


class Backend(ABC):
    """Base of all backends. ``calls`` counts how often each operator ran here, so that a test can tell which path was
    taken."""

    name: str
    priority: int
    """Backends of a device are tried from the highest priority down."""
    only_by_name: frozenset[str] = frozenset()
    """Types of devices that this backend runs on when it is named, but is never the default for."""
    paths: frozenset[str] = frozenset()
    """Paths of a convolution (:mod:`sca_kernels.paths`) that it has kernels of its own for; without, it gathers."""
    hands_over_addresses: bool = True
    """Whether its kernels are given addresses by itself, so that it must refuse tensors whose storage was freed; not
    where torch or Triton give them."""
    fix: str = ""
    """What turns this backend on where it is off."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failures: dict[Hashable, str] = {}
        """The kinds of calls for which a kernel of this backend failed, and why: the default choice passes over it
        there."""

    @abstractmethod
    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        """Whether tensors of this kind can run here; if not, the reason, with the fix where there is one."""

    @abstractmethod
    def neuron_forward(
        self,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        scale: Tensor | None,
        shift: Tensor | None,
        rate: Tensor | None,
        v_init: Tensor | None,
        mask: Tensor | None,
        return_v: bool,
        tracking: Tracking | None = None,
        threshold: Tensor | None = None,
        return_h: bool = False,
    ) -> Forward:
        """Integrate ``y = x * scale + shift``; an absent scale is 1, an absent shift 0 (no operation at all). A
        threshold takes the place of the configuration's.

        Args:
            tracking: what the pass is to change in place; a backend that leaves it leaves ``has_tracked`` False, and
                :func:`sca_kernels.tracking.change` follows.
        """

    @abstractmethod
    def neuron_backward(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        scale: Tensor | None,
        shift: Tensor | None,
        rate: Tensor | None,
        v_init: Tensor | None,
        threshold: Tensor | None = None,
        grad_h: Tensor | None = None,
    ) -> NeuronGradients:
        """Adjoint of :meth:`neuron_forward`, the mask passed straight through. grad_spikes may have any strides."""

    @abstractmethod
    def batch_norm_forward(
        self,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        rate: Tensor | None,
        v_init: Tensor | None,
        mask: Tensor | None,
        return_v: bool,
        channels: Tensor | None = None,
        tracking: Tracking | None = None,
        threshold: Tensor | None = None,
        return_h: bool = False,
    ) -> tuple[Forward, Tensor]:
        """Training batch norm in front of the neuron: also returns ``norm`` [4, C] in the state's dtype: the batch mean
        and biased variance, and the scale and shift that follow from these, which are rounded first, in float64,
        rounded once.

        Args:
            weight, bias: [C], or of the length that running statistics have, read through ``channels``.
            channels: sorted int64 [C] or None.
            tracking: see :meth:`neuron_forward`; its channels are the same.
        """

    @abstractmethod
    def batch_norm_backward(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Tensor,
        eps: float,
        rate: Tensor | None,
        v_init: Tensor | None,
        channels: Tensor | None = None,
        threshold: Tensor | None = None,
        grad_h: Tensor | None = None,
    ) -> BatchNormGradients:
        """Adjoint of :meth:`batch_norm_forward`; gradients of channels that ``channels`` has not are zero."""

    def batch_norm_inference(
        self,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        rate: Tensor | None,
        v_init: Tensor | None,
        mask: Tensor | None,
        return_v: bool,
        channels: Tensor | None = None,
        threshold: Tensor | None = None,
        return_h: bool = False,
    ) -> Forward:
        """The neuron behind batch norm by given statistics; all four vectors [C], or longer and read through
        ``channels``."""
        weight, bias, mean, var = (at_width(z, channels, x) for z in (weight, bias, mean, var))
        prelude = batch_norm.prelude(mean, var, weight, bias, eps)
        behind = rate, v_init, mask, return_v, None, threshold, return_h
        return self.neuron_forward(x, time_steps, config, *prelude, *behind)

    # Batch norm by parts, for statistics that are those of several processes. Forward: moments, a sum over processes,
    # neuron_forward. Backward: batch_norm_sums, a sum over processes, batch_norm_gradient. Here torch's operators do
    # it, with copies of the activation; kernels need no memory but for what they return.

    def moments(self, x: Tensor, time_steps: int) -> Tensor:
        """Sums of x and of x^2, float64 [2, C], of each element of x once, however often it is presented."""
        return batch_norm.sums(x)

    def batch_norm_sums(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        scale: Tensor,
        shift: Tensor,
        center: Tensor,
        rate: Tensor | None,
        v_init: Tensor | None,
        threshold: Tensor | None = None,
        grad_h: Tensor | None = None,
    ) -> Tensor:
        """Sums of g = dL/dy, of g * (x - center) and, with a rate or a threshold, of its gradient, float64 [2 to 4, C],
        for the neuron behind ``y = x * scale + shift``."""
        current = multistep.Prelude(scale, shift)
        given = current, rate, v_init, threshold, grad_h
        g = multistep.backward(grad_spikes, grad_v, x, time_steps, config, *given)
        own = [z.double()[None] for z in (g.rate, g.threshold) if z is not None]
        return torch.cat([batch_norm.gradient_sums(g.y, x, center), *own])

    def batch_norm_gradient(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        scale: Tensor,
        shift: Tensor,
        center: Tensor,
        slope: Tensor,
        offset: Tensor,
        rate: Tensor | None,
        v_init: Tensor | None,
        threshold: Tensor | None = None,
        grad_h: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dx = ``scale * g + slope * (x - center) + offset`` in x's dtype and shape, g (of a step that is presented
        often) summed over time, and dL/dv_init where there is a v_init."""
        given = multistep.Prelude(scale, shift), rate, v_init, threshold, grad_h
        g = multistep.backward(grad_spikes, grad_v, x, time_steps, config, *given)
        g_x = batch_norm.input_gradient(g.y, x, scale, center, slope, offset)
        g_v = None if v_init is None else empty_state(x, g.v_init.dtype).copy_(g.v_init)
        return empty_activation(x, x.shape[0]).copy_(g_x), g_v

    @abstractmethod
    def pack_spikes(self, spikes: Tensor) -> Tensor:
        """Flat zeros and ones to bits: uint8 [ceil(n / 8)], bit i of byte j is element 8 j + i. ValueError on any other
        value; where a device would have to be waited for, by a later call (:mod:`sca_kernels.spikes`)."""

    @abstractmethod
    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        """Inverse of :meth:`pack_spikes`: a flat tensor of ``numel`` elements."""

    def gather_weight(
        self, weight: Tensor, bias: Tensor | None, channels: Channels, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Active sub-blocks of a weight [C_out, C_in, ...] and its bias [C_out], in a dtype; themselves where they are
        that."""
        return active.gather(weight, bias, channels, dtype)

    def scatter_weight(
        self, block: Tensor | None, bias: Tensor | None, like: Tensor, channels: Channels
    ) -> tuple[Tensor | None, Tensor | None]:
        """Inverse of :meth:`gather_weight`: shaped like the full weight and its bias, in the weight's dtype, zero
        outside the active sub-blocks, each element written once where launches are dear; None for None."""
        return active.scatter(block, bias, like, channels)

    def put_weight(self, block: Tensor, full: Tensor, channels: Channels) -> None:
        """Write the active sub-block of a dense weight in place, and nothing else."""
        active.put(block, full, channels)

    def channel_conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        channels: Channels,
        full_output: bool,
        path: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Convolution of the active channels, in the dtype of x, which has the active width; weight and bias may be of
        another dtype. y has the active or, with ``full_output``, the full width, dormant channels zero. Also returns
        the block of the weight that the backward pass takes, None where that is the weight itself. The path is one that
        the arguments allow; here, and where a backend has no kernels for it, torch's own convolves gathered weights."""
        return channel_conv.forward(x, weight, bias, geometry, channels, full_output, self.gather_weight)

    def channel_conv2d_backward(
        self,
        grad: Tensor,
        x: Tensor | Bits,
        weight: Tensor,
        block: Tensor | None,
        geometry: Geometry,
        channels: Channels,
        needed: Sequence[bool],
        path: str,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Adjoint of :meth:`channel_conv2d`, grad as wide as y, with the block that it has returned. The gradients of
        weight and bias are full size and in the weight's dtype, exactly zero for dormant channels."""
        x = self.unpacked(x, grad.dtype)
        return channel_conv.backward(grad, x, weight, block, geometry, channels, needed, self.scatter_weight)

    def unpacked(self, x: Tensor | Bits, dtype: torch.dtype) -> Tensor:
        """The input of a convolution, whichever way it was kept."""
        if isinstance(x, Tensor):
            return x
        return x.unflattened(self.unpack_spikes(x.packed, numel(x.shape), dtype))
