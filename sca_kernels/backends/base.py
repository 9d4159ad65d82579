"""What a backend is: one object that runs every operator of :mod:`sca_kernels.ops` on some devices and dtypes.

Arguments arrive checked. x is an activation [T, N, C, *S] with T = time_steps, or [1, N, C, *S] presented
``time_steps`` times. Per-channel vectors (scale, shift, rate, mask, weight, bias, mean, var) are contiguous [C]; all
are in the state's dtype (float32, or float64 for float64 x), the mask bool. v_init, grad_v are [N, C, *S] in the
state's dtype. Outputs are dense in the memory layout of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import channels as active
from ..channels import Bits, Channels, Geometry, numel
from ..neurons import NeuronConfig
from ..reference import channel_conv, running

Statistics = tuple[Tensor, Tensor, Tensor, Tensor, "float | Tensor"]


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
    float32 [C], and whether that holds a NaN, where the backend knows.

    A channel whose mask is False integrates, is counted, and emits zeros.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor
    is_nan: bool | None = None


class NeuronGradients(NamedTuple):
    """Gradients of ``neuron_forward``; x in x's dtype and shape, the others None where the input was None."""

    x: Tensor
    scale: Tensor | None
    shift: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None


class BatchNormGradients(NamedTuple):
    """Gradients of ``batch_norm_forward``; weight and bias None where the input was None."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None


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
    ) -> Forward:
        """Integrate ``y = x * scale + shift``; an absent scale is 1, an absent shift 0 (no operation at all)."""

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
    ) -> tuple[Forward, Tensor, Tensor]:
        """Training batch norm in front of the neuron: also returns the batch mean and biased variance [C].

        Both are rounded to the state's dtype first; scale and shift follow from the rounded values, in float64, rounded
        once.
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
        mean: Tensor,
        var: Tensor,
        eps: float,
        rate: Tensor | None,
        v_init: Tensor | None,
    ) -> BatchNormGradients:
        """Adjoint of :meth:`batch_norm_forward`."""

    def finish(
        self,
        out: Forward,
        seen: int,
        sums: tuple[Tensor, Tensor, Tensor] | None,
        statistics: Statistics | None,
        channels: Tensor | None,
        finite_only: bool,
    ) -> None:
        """Change in place what a forward pass leaves behind, once it has turned out well.

        Args:
            seen: T * N * prod(S), values per channel.
            sums: of activity, as :func:`sca_kernels.reference.running.record` has them; None: none are wanted.
            statistics: mean and biased variance of the batch, the running ones, and the batch's weight in these; None:
                none are tracked.
            channels: where x's channels stand in the sums and the running statistics; None: one for one.
            finite_only: whether only finite statistics move the running ones.

        Here torch's operators do it; where launches are dear, a backend does it by a kernel of its own.
        """
        if statistics is not None:
            mean, var, *rest = statistics
            running.track(mean, var, seen, *rest, channels, finite_only)
        if sums is not None:
            running.record(out.spike_count, out.membrane_l1, seen, sums, channels)

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
