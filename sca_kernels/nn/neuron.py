"""Multi-step spiking neurons as modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from .. import functional as F
from ..neurons import NEURONS
from ..surrogates import Surrogate
from ..torch_private import graph_task
from .activity import Activity
from .analog import FollowsAnalog
from .group import CarriesGroups, ChannelGroup, check_group, check_time_major, gathered

_USUAL = {"fire": ">=", "v_subtract": None, "v_rest": None, "rate": None, "decay": None, "alpha": None, "backend": None}
"""Arguments that a module shows where they are others."""


def is_recomputing() -> bool:
    """Whether activation checkpointing is repeating this forward pass inside a backward pass."""
    return not torch.compiler.is_compiling() and graph_task() != -1


class NeuronModule(FollowsAnalog, CarriesGroups, tnn.Module):
    """Base of all neuron modules: arguments, membrane state, activity. See :func:`sca_kernels.functional.neuron` for
    the arguments.

    Args:
        v_threshold: a number; or a tensor of one element or [C], which becomes a buffer of the module, and a
            ``torch.nn.Parameter`` one of its parameters: a threshold that is learned.
        group: the channel group this neuron belongs to; its input then has the group's active channels.
        store_v_seq: keep the potentials after each reset of the last call, with their graph, in ``v_seq``.
        stateful: keep the last potential and start the next call from it, until :func:`reset`. Off by default: every
            call starts from v_reset. The state is not in the state_dict, stays float32 (float64 for float64 input)
            whatever the module is converted to, and keeps its graph: call :func:`detach` to cut it. Copies and pickles
            have it without its graph. Where the group's active channels change, those that stay keep theirs, and others
            start from v_reset.

    Attributes:
        activity: an :class:`Activity` that forward passes add to, or None.
        v: the state, [N, C, *S] or None; C the channels that were active when it was made. To set it by hand, call
            :meth:`reset` first.
        v_seq: with ``store_v_seq``, [T, N, C, *S] in the dtype of v, or None before the first call.
        analog: see :func:`sca_kernels.nn.set_analog`.
    """

    neuron: str

    def __init__(
        self,
        *,
        tau: float = 2.0,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        detach_reset: bool = False,
        surrogate: str | Surrogate = "atan",
        alpha: float | None = None,
        fire: str = ">=",
        v_subtract: float | None = None,
        v_rest: float | None = None,
        rate: float | None = None,
        decay: float | None = None,
        store_v_seq: bool = False,
        group: ChannelGroup | None = None,
        stateful: bool = False,
        backend: str | None = None,
    ) -> None:
        tnn.Module.__init__(self)  # of a fused batch norm, whose class comes next, init_norm makes what its own would
        number = 1.0 if isinstance(v_threshold, Tensor) else v_threshold
        named = tau, number, v_reset, decay_input, detach_reset, surrogate, alpha
        F.check_neuron(self.neuron, *named, fire, v_subtract, v_rest, rate, decay)
        self.arguments = {
            "v_reset": v_reset,
            "decay_input": decay_input,
            "detach_reset": detach_reset,
            "surrogate": surrogate,
            "alpha": alpha,
            "fire": fire,
            "v_subtract": v_subtract,
            "v_rest": v_rest,
            "backend": backend,
        }
        if NEURONS[self.neuron].takes_tau:
            self.arguments |= {"tau": tau, "rate": rate, "decay": decay}
        if isinstance(v_threshold, tnn.Parameter):
            self.v_threshold = v_threshold
        elif isinstance(v_threshold, Tensor):
            self.register_buffer("v_threshold", v_threshold)
        else:
            self.v_threshold = v_threshold
        F.check_backend(backend)
        self.group = check_group("group", group)
        if isinstance(v_threshold, Tensor):
            _check_thresholds(v_threshold, self.group)
        self.stateful = checks.boolean("stateful", stateful)
        self.store_v_seq = checks.boolean("store_v_seq", store_v_seq)
        self.activity: Activity | None = None
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        # a part of a graph can be neither copied nor pickled
        cut = {name: z if z is None else z.detach() for name, z in (("v", self.v), ("v_seq", self.v_seq))}
        return {**vars(self), **cut}

    def width(self) -> int | None:
        """Channels of the input, where the module knows: the group's active ones, or what its parameters have."""
        if self.group is not None:
            return self.group.width
        threshold = self.v_threshold
        return threshold.numel() if isinstance(threshold, Tensor) and threshold.numel() > 1 else None

    def firing_threshold(self) -> float | Tensor:
        """The threshold, at the active width where it is one per channel."""
        threshold = self.v_threshold
        if isinstance(threshold, Tensor) and threshold.numel() > 1:
            return gathered(threshold, self.group)
        return threshold

    def rest(self) -> float:
        """What the potential decays to, and starts from."""
        rest = self.arguments["v_rest"]
        return self.arguments["v_reset"] or 0.0 if rest is None else rest

    def leak_parameter(self) -> Tensor | None:
        """PLIF's w at the active width; None for neurons without one."""
        return None

    def integrate(self, x: Tensor, time_steps: int | None) -> F.NeuronOutput:
        """The functional call; what a subclass replaces."""
        mask = None if self.group is None else self.group.probe_mask(x.device)
        return F.neuron(
            x, self.neuron, w=self.leak_parameter(), channel_mask=mask, time_steps=time_steps, **self.call_arguments(x)
        )

    def call_arguments(self, x: Tensor) -> dict:
        """Keyword arguments common to all functional calls: the state, and what the pass adds to, among them."""
        self._follow_group()
        if self.v is not None and self.v.shape != x.shape[1:]:
            raise ValueError(
                f"x: expected [T, *{list(self.v.shape)}] to go on from the last call's state, got {list(x.shape)}: "
                "call reset() first"
            )
        arguments = {"v_init": self.v, "return_v": self.stateful, "return_v_seq": self.store_v_seq, **self.arguments}
        arguments["v_threshold"] = self.firing_threshold()
        if self.analog is not None:
            arguments["return_h_seq"] = True
        if self.is_recording() and x.dim() > 1:  # with fewer the functional call raises
            group = self.group
            given = x.shape[2] if x.dim() > 2 else 1
            channels = given if group is None else group.num_channels
            index = None if group is None else group.index(x.device)
            arguments["activity"] = self.activity.begin(channels, x.device, index)
        return arguments

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """x [T, N, C, *S] (or [1, N, C, *S], presented ``time_steps`` times) -> spikes [T, N, C, *S]."""
        check_time_major(x, self.width(), self.group or "its parameters")
        out = self.integrate(x, time_steps)
        if self.stateful:
            self.v, self._v_channels = out.v, self._channels()
        if self.store_v_seq:
            self.v_seq = out.v_seq
        if self.is_recording():
            self.activity.keep()
        return out.spikes if self.analog is None else self._graded(out)

    def _graded(self, out: F.NeuronOutput) -> Tensor:
        """The blend of spikes and potentials that ``analog`` asks for."""
        graded = out.h_seq.relu().to(out.spikes.dtype)
        mask = None if self.group is None else self.group.probe_mask(graded.device)
        if mask is not None:  # as the operator does with spikes: zeros, through which the gradient passes
            graded = graded - graded.detach() * ~mask.view(-1, *[1] * (graded.dim() - 3))
        return graded if self.analog_is_whole else torch.lerp(out.spikes, graded, self.analog.to(graded.dtype))

    def current(self, x: Tensor) -> Tensor:
        """What the neuron integrates, float32 (float64 for float64 x): x itself, or a batch norm of it in the mode that
        the module is in, whose running statistics stay."""
        return x.to(torch.promote_types(x.dtype, torch.float32))

    @torch.no_grad()
    def potentials(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """Membrane potentials before the reset, h[t] of the equations: [T, N, C, *S], float32 (float64 for float64 x).

        :meth:`forward` does not write them; here they are, for analysis. Nothing is recorded, and the state is neither
        read nor changed: they start as those of a fresh module do.

        Args:
            x, time_steps: as for :meth:`forward`.
        """
        check_time_major(x, self.width(), self.group or "its parameters")
        arguments = {**self.arguments, "v_threshold": self.firing_threshold(), "w": self.leak_parameter()}
        wanted = {"time_steps": time_steps, "return_v": False, "return_h_seq": True}
        return F.neuron(self.current(x), self.neuron, **arguments, **wanted).h_seq

    def is_recording(self) -> bool:
        """Whether this forward pass adds to the activity: not while probing, nor when activation checkpointing repeats
        it in the backward pass."""
        if self.activity is None or (self.activity.training_only and not self.training):
            return False
        if self.group is not None and self.group.probing:
            return False
        return not is_recomputing()

    def reset(self) -> None:
        """Forget the state: the next call starts as a fresh module does."""
        self.v: Tensor | None = None
        self.v_seq: Tensor | None = None
        self._v_channels = self._channels()

    def _channels(self) -> Tensor | None:
        """int64, CPU: the channels that this module works on now; None for all."""
        return None if self.group is None else self.group.index(torch.device("cpu"))

    def _follow_group(self) -> None:
        """Have the state of the channels that are active now, for a call in the mode that it is in."""
        if self.v is None:
            return
        if not torch.compiler.is_compiling() and self.v.is_inference() and not torch.is_inference_mode_enabled():
            self.v = self.v.clone()
        before, now = self._v_channels, self._channels()
        if now is not before and self.group is not None:
            self.v = _rearranged(self.v, before, now, self.group.num_channels, self.rest())
            self._v_channels = now

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, *(() if recurse else (False,)))  # a base of another library may know no recurse
        if self.v is not None:  # follow the device, never the dtype
            self.v = self.v.to(fn(self.v).device)
        return self

    def extra_repr(self) -> str:
        threshold = self.v_threshold
        threshold = f"tensor of {threshold.numel()}" if isinstance(threshold, Tensor) else threshold
        shown = {k: v for k, v in self.arguments.items() if k not in _USUAL or v != _USUAL[k]}
        shown = {"v_threshold": threshold, **shown}
        parts = [f"{k}={v}" for k, v in shown.items()]
        if self.group is not None:
            parts.append(f"group={self.group}")
        return ", ".join(parts)


class IF(NeuronModule):
    """Integrate-and-fire: ``h[t] = v[t-1] + x[t]``. Takes the arguments of :class:`LIF` but for tau and decay_input."""

    neuron = "if"

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)


class LIF(NeuronModule):
    """Leaky integrate-and-fire with time constant ``tau`` > 1 (in steps); arguments of
    :func:`sca_kernels.functional.lif`, and of :class:`NeuronModule`."""

    neuron = "lif"

    def __init__(self, tau: float = 2.0, **arguments) -> None:
        super().__init__(tau=tau, **arguments)


class Synapse(NeuronModule):
    """A linear synapse filter in front of a neuron: ``I[t] = decay I[t-1] + x[t]``, or, with a rate,
    ``I[t] = I[t-1] - rate I[t-1] + x[t]``, which rounds otherwise. Takes ``group``, ``stateful`` and ``backend`` of
    :class:`NeuronModule`; the state ``v`` is the current.

    As the synapse of snnTorch's Synaptic (its alpha is the decay) and of norse's LIF. It is a neuron that never fires,
    and records no activity.

    Args:
        decay: the part of a current that stays, from 0 to 1. rate: in its place, the part that goes.
    """

    neuron = "lif"

    def __init__(self, decay: float | None = None, *, rate: float | None = None, **arguments) -> None:
        if decay is None and rate is None:
            raise ValueError("decay: expected a number from 0 to 1, or a rate in its place, got None")
        known = {"v_threshold": math.inf, "decay_input": False, "store_v_seq": True}
        super().__init__(rate=rate, decay=decay, **known, **arguments)
        del self.activity  # who looks for neurons that record finds none here

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """x [T, N, C, *S] (or [1, N, C, *S], presented ``time_steps`` times) -> currents [T, N, C, *S], in its
        dtype."""
        super().forward(x, time_steps)
        current, self.v_seq = self.v_seq, None
        return current.to(x.dtype)

    def is_recording(self) -> bool:
        return False

    def extra_repr(self) -> str:
        shown = {name: self.arguments[name] for name in ("decay", "rate") if self.arguments[name] is not None}
        if self.group is not None:
            shown["group"] = self.group
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class ParametricLeak(tnn.Module):
    """Mixin that owns PLIF's learnable ``w``, with ``1 / tau = sigmoid(w)``."""

    def init_leak(self, tau: float, channels: int | None) -> None:
        if checks.number("tau", tau) <= 1:
            raise ValueError(f"tau: expected a time constant > 1 (in steps), got {tau}")
        if channels is not None:
            checks.integer("channels", channels)
            check_group("group", self.group, channels)
        self.w = tnn.Parameter(torch.full(() if channels is None else (channels,), -math.log(tau - 1)))
        self._tau = tau

    def reset_parameters(self) -> None:
        """What a new module has, as for one that was made on the meta device."""
        tnn.init.constant_(self.w, -math.log(self._tau - 1))
        if hasattr(super(), "reset_parameters"):
            super().reset_parameters()

    def width(self) -> int | None:
        known = super().width()
        return self.w.numel() if known is None and self.w.numel() > 1 else known

    def leak_parameter(self) -> Tensor:
        return self.w if self.w.numel() == 1 else gathered(self.w, self.group)


class PLIF(ParametricLeak, NeuronModule):
    """Parametric LIF (Fang et al., ICCV 2021): LIF that learns ``w``, ``1 / tau = sigmoid(w)``.

    Args:
        tau: initial time constant, > 1.
        channels: None learns one tau for the layer; C learns one per channel.
    """

    neuron = "plif"

    def __init__(self, tau: float = 2.0, channels: int | None = None, **arguments) -> None:
        super().__init__(**arguments)
        self.init_leak(tau, channels)


def _check_thresholds(v_threshold: Tensor, group: ChannelGroup | None) -> None:
    """Of one element, or one for each channel of a group."""
    if not checks.is_plain(v_threshold) or not v_threshold.is_floating_point() or v_threshold.dim() > 1:
        given = checks.describe(v_threshold)
        raise ValueError(f"v_threshold: expected a number or a floating-point tensor [C], got {given}")
    if v_threshold.numel() != 1:
        check_group("group", group, v_threshold.numel())


def _rearranged(v: Tensor, before: Tensor | None, now: Tensor | None, channels: int, start: float) -> Tensor:
    """State [N, C, *S] of some channels of a group (int64, CPU; None: all) as that of others; new ones get ``start``.
    What was not made of those channels comes back as it is."""
    every = torch.arange(channels, device="cpu")
    before, now = (every if index is None else index for index in (before, now))
    if v.shape[1] != before.numel():
        return v
    place = torch.full_like(every, -1).index_copy_(0, before, torch.arange(before.numel(), device="cpu"))[now]
    place = place.to(v.device)
    layout = torch.channels_last if v.dim() == 4 and v.stride(1) == 1 else torch.contiguous_format
    kept = (place >= 0).view(-1, *[1] * (v.dim() - 2))  # selected, not listed: a compiler knows the sizes
    return torch.where(kept, v.index_select(1, place.clamp(min=0)), start).contiguous(memory_format=layout)


def reset(module: tnn.Module) -> None:
    """Reset every stateful neuron in this tree, and nothing outside it."""
    for m in checks.instance("module", module, tnn.Module, "a torch.nn.Module").modules():
        if _is_neuron(m):
            m.reset()


def detach(module: tnn.Module) -> None:
    """Cut the gradient through the states of this tree (truncated backpropagation through time); the states stay."""
    for m in checks.instance("module", module, tnn.Module, "a torch.nn.Module").modules():
        if _is_neuron(m) and m.v is not None:
            m.v = m.v.detach()


def _is_neuron(module: tnn.Module) -> bool:
    """Whether it is a :class:`NeuronModule`, of this import of the package or of another one."""
    return {"stateful", "v", "v_seq"} <= vars(module).keys()
