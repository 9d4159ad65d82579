"""What the neurons of SpikingJelly are in our terms: those of 2.0, and those of 0.0.0.0.x that have a parameter; the
other ones of these are found by probing (:mod:`sca.convert.unknown`).

Nothing of it is imported: whoever converts a network of it has it loaded. Classes are known by module and name, and
meant exactly: of a subclass nobody knows what it computes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sca_kernels import Surrogate

from .probing import probe_surrogate, slope_of
from .report import Reason

__all__ = ["NEURONS", "is_ours", "neuron_of", "swapped_state", "time_of"]

_PACKAGE = "spikingjelly."

NEURONS = {"IFNode": "if", "LIFNode": "lif", "ParametricLIFNode": "plif"}
_LEARNED = ("ParametricLIFNode", "MultiStepParametricLIFNode")

_SURROGATES = {
    "Sigmoid": ("sigmoid", "alpha", None),
    "ATan": ("atan", "alpha", None),
    "PiecewiseQuadratic": ("piecewise_quadratic", "alpha", None),
    "PiecewiseExp": ("piecewise_exp", "alpha", None),
    "Rect": ("rectangular", "alpha", None),
    "SoftSign": ("soft_sign", "alpha", None),
    "SuperSpike": ("super_spike", "alpha", None),
    "Erf": ("erf", "alpha", None),
    "S2NN": ("s2nn", "alpha", "beta"),
    "QPseudoSpike": ("q_pseudo_spike", "alpha", None),
    "LeakyKReLU": ("leaky_k_relu", "k", "leak"),
}
"""Class of a surrogate, its row here, and its attributes that are alpha and beta."""


def is_ours(module: nn.Module) -> bool:
    """Whether its class is one of SpikingJelly's own."""
    return type(module).__module__.startswith(_PACKAGE)


def neuron_of(module: nn.Module) -> dict[str, Any] | Reason | None:
    """The arguments of the neuron of ours that a module is, with its name under "neuron"; a reason why it is none; None
    where it is no neuron of SpikingJelly's."""
    name = type(module).__name__
    if not _is_neuron(module):
        return None
    is_old = is_ours(module) and ".activation_based." not in type(module).__module__
    known = name in _LEARNED if is_old else name in NEURONS
    if not known or not is_ours(module):
        kind = next((kind.__name__ for kind in type(module).__mro__[1:] if kind.__name__ in NEURONS), "")
        like = f"a subclass of {kind} with code of its own" if kind else "none of IFNode, LIFNode, ParametricLIFNode"
        return Reason("class", f"it is {like}")
    surrogate = _surrogate_of(module)
    if isinstance(surrogate, Reason):
        return surrogate
    if getattr(module, "_neuron_precision", None) is not None:
        return Reason("option", "its precision is set", "clear it, or leave the neuron as it is")
    for attribute in ("v_threshold", "v_reset", "tau"):
        value = getattr(module, attribute, None)
        if not isinstance(value, (int, float, type(None))):
            return Reason("option", f"{attribute} is a {type(value).__name__}", "give it a number")
    arguments = {
        "neuron": NEURONS[name.removeprefix("MultiStep")],
        "v_threshold": float(module.v_threshold),
        "v_reset": None if module.v_reset is None else float(module.v_reset),
        "detach_reset": bool(module.detach_reset),
        "surrogate": surrogate,
    }
    if name != "IFNode":
        arguments["decay_input"] = bool(getattr(module, "decay_input", True))
    if name == "LIFNode":
        arguments["tau"] = float(module.tau)
    return arguments


def _is_neuron(module: nn.Module) -> bool:
    """Whether it is one of SpikingJelly's, or made of one."""
    theirs = any(kind.__module__.startswith(_PACKAGE) for kind in type(module).__mro__)
    return theirs and hasattr(module, "surrogate_function") and hasattr(module, "v_threshold")


def time_of(module: nn.Module) -> str | None:
    """How its input lies, see :class:`~sca.convert.neurons.ConvertedNeuron`."""
    if hasattr(module, "step_mode"):
        return None
    return "TN" if type(module).__name__.startswith("MultiStep") else "single"


def _surrogate_of(module: nn.Module) -> Surrogate | Reason:
    function = module.surrogate_function
    if isinstance(function, str) and function in _SURROGATES:  # of a compiled extension
        return Surrogate(_SURROGATES[function][0], float(module.alpha))
    name = type(function).__name__
    if name not in _SURROGATES or not type(function).__module__.startswith(_PACKAGE):
        fit = probe_surrogate(slope_of(function)) if callable(function) else None
        if fit is not None and fit.surrogate is not None and fit.fire == ">=":
            return fit.surrogate
        residual = (
            "" if fit is None else f" (the nearest, {fit.best}, is off by {fit.residual:.2g} of the largest value)"
        )
        return Reason(
            "surrogate", f"its surrogate {name} is none of ours{residual}", "take one of SpikingJelly's fused set"
        )
    if not getattr(function, "spiking", True):
        return Reason("option", "its surrogate has spiking=False, which gives the primitive", "set spiking=True")
    row, alpha, beta = _SURROGATES[name]
    slopes = [0.0 if attribute is None else getattr(function, attribute) for attribute in (alpha, beta)]
    if not all(isinstance(slope, (int, float)) for slope in slopes):
        return Reason("surrogate", f"a slope of its surrogate {name} is learned", "make it a number")
    return Surrogate(row, *map(float, slopes))


def swapped_state() -> list[tuple[str, str]]:
    """Where its neurons keep what ours keep in attributes of their own: dicts, and keys of these."""
    return [("_memories", "v"), ("_memories_rv", "v")]
