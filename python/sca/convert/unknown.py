"""Neurons of unknown code: which of a network's modules may be one, how it is called, and what it is, found out by
running it alone (:mod:`sca.convert.probing`)."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .probing import in_loop, probe_neuron
from .report import Reason

__all__ = ["Unknown", "is_batch_norm", "neuron_of"]


class Unknown(NamedTuple):
    """A neuron that was found.

    Attributes:
        arguments: of the neuron of ours that it is, with its name under "neuron".
        time: "TN", "NT", or "single" for one that reads a step a call.
        keeps_state: whether a call begins where the last one ended.
        exact: see :class:`~sca.convert.probing.NeuronFit`.
    """

    arguments: dict[str, Any]
    time: str
    keeps_state: bool
    exact: bool


def neuron_of(module: nn.Module, x: Tensor) -> Unknown | Reason | None:
    """What a module is whose output, for the input x, is zeros and ones of its shape; None where nothing in it
    remembers, so that it is no neuron.

    It is run on copies, and left as it is.
    """
    if any(True for _ in module.parameters()):
        return Reason("class", f"{type(module).__name__} has parameters of its own, and is not known")
    try:
        time, keeps_state = _how_it_is_called(module, x)
    except Exception as error:  # whatever the user's code raises
        return Reason("class", f"{type(module).__name__} fails alone ({type(error).__name__}: {error})")
    if not time:
        return None
    if keeps_state and not (callable(getattr(module, "reset", None)) and hasattr(module, "v")):
        return Reason("class", f"{type(module).__name__} keeps a state, and has no reset() and v")
    rank = x.dim() - (0 if time == "single" else 1)
    fit = probe_neuron(_runner(module, time), (2, 3, *[1] * (rank - 2))[:rank])
    if fit.arguments is None:
        return Reason("class", f"{type(module).__name__}, run alone, is none of our neurons: {fit.reason}")
    return Unknown(fit.arguments, time, keeps_state, fit.exact)


def is_batch_norm(module: nn.BatchNorm2d) -> bool:
    """Whether a batch norm whose class has a forward of its own is torch's, over all but the channels of
    [N, T, C, H, W]: output, gradients and running statistics, in both modes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, module.num_features, 2, 3, generator=generator)
    theirs = copy.deepcopy(module).double().cpu()
    ours = nn.BatchNorm2d(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    ).double()
    ours.load_state_dict(theirs.state_dict())
    try:
        for training in (True, False):
            given = [x.double().requires_grad_() for _ in range(2)]
            outputs = (
                theirs.train(training)(given[0].clone()),
                ours.train(training)(given[1].flatten(0, 1)).unflatten(0, x.shape[:2]),
            )
            for y in outputs:
                y.square().sum().backward()
            pairs = [outputs, [z.grad for z in given], *zip(theirs.parameters(), ours.parameters(), strict=True)]
            pairs += zip(theirs.buffers(), ours.buffers(), strict=True)
            if not all(a.shape == b.shape and torch.allclose(a.double(), b.double(), 1e-9, 1e-9) for a, b in pairs):
                return False
    except Exception:  # whatever the user's code raises
        return False
    return True


def _how_it_is_called(module: nn.Module, x: Tensor) -> tuple[str, bool]:
    """Along which dimension it remembers ("TN", "NT"), or from call to call ("single"), "" where nowhere; and whether
    it keeps a state."""
    generator = torch.Generator().manual_seed(0)
    currents = (torch.rand(x.shape, generator=generator) * 2).to(x)
    with torch.no_grad():
        fresh = copy.deepcopy(module)
        first, again = fresh(currents.clone()), fresh(currents.clone())
        keeps_state = not torch.equal(first, again)
        for dim, time in ((0, "TN"), (1, "NT")):
            if x.shape[dim] < 2:
                continue
            other = currents.clone()
            other.select(dim, 0).copy_(3 - other.select(dim, 0))
            changed = copy.deepcopy(module)(other)
            later = slice(1, None)
            if not torch.equal(changed.movedim(dim, 0)[later], first.movedim(dim, 0)[later]):
                return time, keeps_state
    return ("single" if keeps_state else ""), keeps_state


def _runner(module: nn.Module, time: str) -> Any:
    """[T, ...] -> spikes, from a fresh state."""
    if time == "single":

        def run(x: Tensor) -> Tensor:
            fresh = copy.deepcopy(module)
            return in_loop(lambda step, state: (fresh(step), state), lambda step: None)(x)

        return run
    if time == "NT":
        return lambda x: copy.deepcopy(module)(x.transpose(0, 1)).transpose(0, 1)
    return lambda x: copy.deepcopy(module)(x)
