"""Neurons of other libraries, as ours: what a foreign module becomes an object of, in front of its own class.

State, calls and attributes stay as the library has them; charge, fire, reset and their gradient are ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import functional as F
from sca_kernels import nn as snn
from sca_kernels.nn.batch_norm import NeuronBehindNorm, Normalisation
from sca_kernels.nn.neuron import NeuronModule

from .swaps import own_attributes

__all__ = [
    "ConvertedNeuron",
    "FusedNeuron",
    "NorseCell",
    "NorseSequence",
    "SnnTorchNeuron",
    "converted_attributes",
    "settings_of",
]

logger = logging.getLogger(__name__)


_OURS = {"if": snn.IF, "lif": snn.LIF, "plif": snn.PLIF}
_PLAIN = (int, float, str, FunctionType, type(None))
_MACHINERY = set(vars(nn.Module()))


def converted_attributes(
    found: Mapping[str, Any], stateful: bool = False, time: str | None = None
) -> tuple[type[NeuronModule], dict[str, Any]]:
    """The class of ours that a neuron is, and what that keeps in the module.

    Args:
        found: arguments of ours, with the neuron's name under "neuron" and what leaks of a synapse in front under
            "synapse".
        stateful, time: see :class:`ConvertedNeuron`.
    """
    named = dict(found)
    kind, synapse = _OURS[named.pop("neuron")], named.pop("synapse", None)
    # theirs, where they have the same: their users change it
    theirs = ("v_threshold", "store_v_seq") if time is None else ()
    own = {k: v for k, v in own_attributes(kind(**named, stateful=stateful)).items() if k not in theirs}
    return kind, own | {"time": time, "synapse_rate": synapse}


def settings_of(module: nn.Module, aside: Iterable[str] = ()) -> dict[Any, Any]:
    """Plain values that a foreign neuron holds, in itself and in its surrogate; of tensors, which they are and how
    often they were written to, since to read them would wait for a device.

    Args:
        module: the neuron.
        aside: names of attributes that are not its own.
    """
    found: dict[Any, Any] = {}

    def add(name: Any, value: Any) -> None:
        if isinstance(value, tuple):
            for i, item in enumerate(value):
                add((name, i), item)
        elif isinstance(value, Tensor):
            found[name] = id(value), 0 if value.is_inference() else value._version
        elif isinstance(value, _PLAIN):
            found[name] = value

    for name, value in vars(module).items():
        if name not in _MACHINERY and name not in aside and not isinstance(value, Tensor):
            add(name, value)
    for name, value in module._buffers.items():
        if name not in module._non_persistent_buffers_set:  # those are states
            add(name, value)
    for child in module._modules.values():
        for name, value in vars(child).items() if child is not None else ():
            if name not in _MACHINERY:
                add((child, name), value)
    return found


class ConvertedNeuron:
    """A neuron of another library or of a user's own code, in front of its class.

    Attributes:
        time: "TN", "NT" or "single", how its input lies; None: as its ``step_mode`` says (SpikingJelly's "m" or "s").
        stateful: whether a call begins where the last one ended, until it is reset.
        known: tells what the module is now, as ``neuron_of`` of its library does; None where it was found by probing.
        settings: those of :func:`settings_of` that it was converted with.
        own: names of all attributes that are ours.
    """

    time: str | None
    v: Tensor | None
    known: Callable[[nn.Module], Any] | None
    settings: dict[Any, Any]
    own: frozenset[str]

    def follow(self) -> None:
        """Become what the module's own attributes say now, which users set, and load.

        Raises:
            ValueError: that is none of ours, or not known.
        """
        if torch.compiler.is_compiling():
            return
        now = settings_of(self, self.own)
        if now == self.settings:
            return
        kind = type(self).__name__
        if self.known is None:
            changed = [name for name, value in now.items() if isinstance(value, int | float) and self._had(name, value)]
            if changed:
                raise ValueError(
                    f"{changed[0]}: expected {self.settings[changed[0]]}, with which {kind} was converted, got "
                    f"{now[changed[0]]}; convert again, since only running it tells what it is now"
                )
        else:
            found = self.known(self)
            if not isinstance(found, Mapping):
                raise ValueError(f"{kind}: expected what can be converted still, but {found}")
            self._arguments_of(found)
        self.settings = now

    def _had(self, name: Any, value: Any) -> bool:
        before = self.settings.get(name)
        return isinstance(before, int | float) and before != value

    def _arguments_of(self, found: Mapping[str, Any]) -> None:
        attributes = converted_attributes(found, time=self.time)[1]
        for name in ("arguments", "v_threshold", "synapse_rate"):
            if name in attributes:
                setattr(self, name, attributes[name])

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        self.follow()
        time = self.time or ("TN" if self.step_mode == "m" else "single")
        steps = x.unsqueeze(0) if time == "single" else x.transpose(0, 1) if time == "NT" else x
        if self.v is not None and self.v.shape != steps.shape[1:]:
            logger.info("a batch of another size, %s after %s: states start anew", [*x.shape[1:]], [*self.v.shape])
            self.reset()
        spikes = super().forward(steps)
        if time == "NT":
            return spikes.transpose(0, 1).contiguous()
        return spikes.squeeze(0) if time == "single" else spikes

    def all_steps(self, currents: Tensor, *states: Any, needed: tuple[str, ...] = ()) -> Any:
        """What T calls of one that reads a step a call return, of [T, N, ...]; ``needed``: see
        :class:`~sca.convert.loops.StepNeuron`."""
        self.follow()
        return super().forward(currents)

    def _synapse(self, currents: Tensor, **leak: Any) -> Tensor:
        """A current that leaks, with what comes in added: a neuron that never fires."""
        leak |= {"decay_input": False, "v_threshold": math.inf, "backend": self.arguments.get("backend")}
        return F.lif(currents, **leak, return_v=False, return_h_seq=True).h_seq

    def channel_dim(self, x: Tensor) -> int:
        """The dimension of the channels."""
        return 1 if self.time == "single" or (self.time is None and self.step_mode == "s") else 2

    def detach(self) -> None:
        """Cut the graph of the state."""
        snn.detach(self)

    def reset(self) -> None:
        """Forget the state."""
        NeuronModule.reset(self)


class SnnTorchNeuron(ConvertedNeuron):
    """Leaky or Synaptic of snnTorch: (spikes, [synaptic current,] membrane) of a step, from the membrane that is passed
    or, with ``init_hidden``, kept. The membrane is the potential before the reset, which acts in the next step, unless
    ``reset_delay`` is False."""

    def forward(self, input_: Tensor, *states: Tensor | None) -> Any:
        given = [z for z in states if z is not None]
        if self.init_hidden and given:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
        output = self.all_steps(input_.unsqueeze(0), *given)
        return output.squeeze(0) if isinstance(output, Tensor) else tuple(z.squeeze(0) for z in output)

    def all_steps(self, currents: Tensor, *states: Tensor, needed: tuple[str, ...] = ()) -> Any:
        self.follow()
        held = ["syn", "mem"] if "syn" in self._buffers else ["mem"]
        before = list(states) if states else [getattr(self, name) for name in held]
        before = [z if z.shape == currents.shape[1:] else torch.zeros_like(currents[0]) for z in before]
        kept = []
        if len(held) > 1:
            currents = self._synapse(currents, decay=float(self.alpha.clamp(0, 1)), v_init=before[0])
            kept.append(currents)
        arguments = self.call_arguments(currents)
        arguments |= {"return_v": False, "return_h_seq": self.reset_delay, "return_v_seq": not self.reset_delay}
        arguments["v_init"] = self._reset_late(before[-1]) if self.reset_delay else before[-1]
        arguments["channel_mask"] = None if self.group is None else self.group.probe_mask(currents.device)
        out = F.neuron(currents, self.neuron, **arguments)
        if self.is_recording():
            self.activity.keep()
        kept.append(out.h_seq if self.reset_delay else out.v_seq)
        for name, z in zip(held, kept, strict=True):
            setattr(self, name, z[-1].clone())  # a view would hold all of them
        return out.spikes if self.init_hidden and not self.output else (out.spikes, *kept)

    def _reset_late(self, mem: Tensor) -> Tensor:
        """The potential that the reset, which was put off, leaves of a membrane."""
        fired = (mem > float(self.v_threshold)).to(mem.dtype).detach()
        subtracted = self.arguments["v_subtract"]
        return mem * (1 - fired) if subtracted is None else mem - fired * subtracted

    def channel_dim(self, x: Tensor) -> int:
        return 1

    def reset_mem(self) -> Any:
        """Forget the state, in its present shape; returns it."""
        held = ["syn", "mem"] if "syn" in self._buffers else ["mem"]
        for name in held:
            setattr(self, name, torch.zeros_like(getattr(self, name)).detach())
        found = tuple(getattr(self, name) for name in held)
        return found if len(found) > 1 else found[0]

    init_leaky = init_synaptic = reset_mem


class NorseCell(ConvertedNeuron):
    """A cell of norse: (spikes, state) of a step, from the state that is passed.

    Attributes:
        synapse_rate: what goes of the synaptic current in a step, or None where there is none.
    """

    synapse_rate: float | None

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        spikes, states = self._last(input_tensor.unsqueeze(0), state)
        return spikes.squeeze(0), states

    def all_steps(self, currents: Tensor, *states: Any, needed: tuple[str, ...] = ()) -> tuple[Tensor, Any]:
        self.follow()
        state = states[0] if states and states[0] is not None else self.state_fallback(currents[0])
        uses = dict(zip(state._fields, needed[1:], strict=False))
        kept = {}
        if self.synapse_rate is not None:
            # the state is the current behind its decay: it is added, not decayed again
            currents = torch.cat([currents[:1] + state.i, currents[1:]])
            currents = self._synapse(currents, rate=self.synapse_rate)
            seen = currents if uses.get("i", "all") == "all" else currents[-1:]
            kept["i"] = seen - seen * self.synapse_rate
        whole = uses.get("v", "all") == "all"  # the last potential alone costs nothing
        arguments = self.call_arguments(currents) | {"return_v": not whole, "return_v_seq": whole}
        arguments["v_init"] = state.v.expand(currents.shape[1:])
        arguments["channel_mask"] = None if self.group is None else self.group.probe_mask(currents.device)
        out = F.neuron(currents, self.neuron, **arguments)
        if self.is_recording():
            self.activity.keep()
        return out.spikes, type(state)(v=out.v_seq if whole else out.v.unsqueeze(0), **kept)

    def _last(self, currents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes of all steps, and the state behind them."""
        given = () if state is None else (state,)
        spikes, states = self.all_steps(currents, *given, needed=("all", "last", "last"))
        return spikes, type(states)(*(z[-1] for z in states))

    def channel_dim(self, x: Tensor) -> int:
        return 1


class NorseSequence(NorseCell):
    """A neuron of norse over all steps [T, N, ...]: (spikes, last state)."""

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self._last(input_tensor, state)

    def channel_dim(self, x: Tensor) -> int:
        return 2


class FusedNeuron(NeuronBehindNorm):
    """A neuron that computes the batch norm in front of it, too, whose parameters stay where they are.

    Attributes:
        norm: a tuple of the batch norm, which would be a child otherwise.
    """

    norm: tuple[Normalisation]

    @property
    def normalisation(self) -> Normalisation:
        return self.norm[0]
