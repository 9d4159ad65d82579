"""What the cells of norse 1.1 are in our terms. Nothing of it is imported but by whoever has it loaded."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .probing import SurrogateFit, probe_surrogate, slope_of
from .report import Reason

__all__ = ["neuron_of", "takes_all_steps"]

_PACKAGE = "norse."
CELLS = ("LIFBoxCell", "LIFCell", "IAFCell")
SEQUENCES = ("LIF", "IAF")
"""Neurons that take all steps."""


def neuron_of(module: nn.Module) -> dict[str, Any] | Reason | None:
    """The arguments of the neuron of ours that a cell is, with its name under "neuron", and those of a synapse in front
    under "synapse"; a reason why it is none; None where it is no cell of norse's."""
    if not type(module).__module__.startswith(_PACKAGE) or not hasattr(module, "p") or not hasattr(module, "dt"):
        return None
    name = type(module).__name__
    if name not in (*CELLS, *SEQUENCES):
        return Reason("class", f"{name} is none of {', '.join((*CELLS, *SEQUENCES))}")
    if getattr(module, "record_states", False):
        return Reason("option", "it has record_states")
    p, dt = module.p, float(module.dt)
    reset = getattr(p, "reset_method", None)
    if reset is not None and getattr(reset, "__name__", "") != "reset_value":
        return Reason("option", f"its reset_method is {getattr(reset, '__name__', reset)}")
    fit = _fit(p.method, float(p.alpha))
    if fit.surrogate is None or fit.fire != ">":
        return Reason(
            "surrogate",
            f"its method {p.method!r} is none of ours (the nearest, {fit.best}, is off by {fit.residual:.2g})",
        )
    arguments: dict[str, Any] = {"neuron": "if" if name.startswith("IAF") else "lif"}
    arguments |= {
        "v_threshold": _number(p.v_th),
        "v_reset": _number(p.v_reset),
        "fire": ">",
        "surrogate": fit.surrogate,
    }
    if not name.startswith("IAF"):
        arguments |= {"rate": _number(dt * p.tau_mem_inv), "v_rest": _number(p.v_leak)}
    if name in ("LIFCell", "LIF"):
        arguments["synapse"] = _number(dt * p.tau_syn_inv)  # rounded as theirs
    return arguments


@functools.lru_cache(maxsize=64)
def _fit(method: str, alpha: float) -> SurrogateFit:
    threshold = importlib.import_module("norse.torch.functional.threshold").threshold
    return probe_surrogate(slope_of(lambda u: threshold(u, method, torch.as_tensor(alpha))))


def takes_all_steps(module: nn.Module) -> bool:
    """Whether a neuron takes [T, N, ...]."""
    return type(module).__name__ in SEQUENCES


def _number(p: Tensor | float) -> float:
    return float(p.detach()) if isinstance(p, Tensor) else float(p)
