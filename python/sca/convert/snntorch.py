"""What the neurons of snnTorch 1.0 are in our terms. Nothing of it is imported: whoever converts a network of it has it
loaded.

Its default reset acts a step late, on the potential that the loop carries on: ``mem[t] = beta mem[t-1] + x[t] - r th``,
``r = mem[t-1] > th``. That is ours with what is subtracted divided by beta, and its membrane is our potential before
the reset (:class:`~sca.convert.neurons.SnnTorchNeuron`).
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

from torch import nn

from .probing import SurrogateFit, probe_surrogate, slope_of
from .report import Reason

__all__ = ["is_theirs", "keep_resettable", "neuron_of"]

_PACKAGE = "snntorch."
_RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}


def is_theirs(module: nn.Module) -> bool:
    """Whether it is one of snnTorch's neurons."""
    return any(kind.__module__.startswith(_PACKAGE) for kind in type(module).__mro__)


def neuron_of(module: nn.Module) -> dict[str, Any] | Reason | None:
    """The arguments of the neuron of ours that a module is, with its name under "neuron"; a reason why it is none; None
    where it is no neuron of snnTorch's."""
    if not is_theirs(module):
        return None
    name = type(module).__name__
    if name not in ("Leaky", "Synaptic") or not type(module).__module__.startswith(_PACKAGE):
        return Reason("class", f"{name} is neither Leaky nor Synaptic")
    learned = [p for p in ("beta", "alpha", "threshold", "graded_spikes_factor") if p in module._parameters]
    if learned:
        return Reason("option", f"its {learned[0]} is learned")
    for option in ("inhibition", "state_quant", "surrogate_disable"):
        if getattr(module, option, False):
            return Reason("option", f"it has {option}")
    if any(getattr(module, p).numel() != 1 for p in ("beta", "threshold")):
        return Reason("option", "its beta or threshold is one per element")
    if float(module.graded_spikes_factor) != 1:
        return Reason("option", "its spikes are graded")
    reset = _RESETS.get(getattr(module.state_function, "__name__", ""), "")
    if reset != module.reset_mechanism:
        return Reason("option", f"its reset_mechanism is {module.reset_mechanism!r}, what runs is {reset!r}")
    if not module.reset_delay and reset == "subtract":
        return Reason("option", "reset_delay=False carries spikes over to the next step; only reset to zero does not")
    if name == "Synaptic" and reset == "zero":
        return Reason("option", "its reset to zero loses the input of the step behind a spike")
    grad = module.spike_grad
    # Others may change what they compute, and need no hash.
    fit = _fit(grad) if isinstance(grad, FunctionType) else probe_surrogate(slope_of(grad))
    if fit.surrogate is None or fit.fire != ">":
        return Reason(
            "surrogate", f"its surrogate is none of ours (the nearest, {fit.best}, is off by {fit.residual:.2g})"
        )
    beta, threshold = float(module.beta.clamp(0, 1)), float(module.threshold)
    if reset == "subtract" and not beta:
        return Reason("option", "its beta is 0, which keeps nothing to subtract from")
    subtracted = {"subtract": threshold / beta if beta else 0.0, "none": 0.0, "zero": None}[reset]
    return {
        "neuron": "lif",
        "decay": beta,
        "decay_input": False,
        "v_threshold": threshold,
        "v_reset": 0.0 if reset == "zero" else None,
        "v_subtract": subtracted,
        "detach_reset": bool(module.reset_delay),
        "fire": ">",
        "surrogate": fit.surrogate,
    }


@functools.lru_cache(maxsize=64)
def _fit(spike_grad: FunctionType) -> SurrogateFit:
    return probe_surrogate(slope_of(spike_grad))


def keep_resettable(module: nn.Module) -> None:
    """Enter a neuron that was copied, not constructed, into the list that ``snntorch.utils.reset`` goes through."""
    known = getattr(type(module), "instances", None)
    if known is not None and not any(other is module for other in known):
        known.append(module)
