"""What a foreign network is to a test: how it is built, called and reset as its users do, and its trap."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class ForeignNet:
    """One network of other people's.

    Modules and parameters are told by patterns of their names, in which ``*`` is any number of characters, dots too.

    Attributes:
        name: unique.
        origin: whose classes it is made of.
        build: the network, in training mode and without state, the same at each call. Its batch norms have running
            statistics of the example, so that it fires in evaluation as well.
        example: the input, a new tensor at each call: some networks change it.
        call: the output of a pass as its user makes it, with the training script's loop over time where there is one,
            but without the reset in front or behind.
        reset: forget the state, as its user does.
        trap: what is easily got wrong.
        convertible: neurons that are to be replaced.
        refused: neurons that must be named, and left as they are.
        either: neurons that may be one or the other, but must not compute anything else afterwards.
        layers: convolutions, linear layers and batch norms that are to be replaced at depth "layers".
        quiet: neurons that fire in fewer than 1 % of the cases, or in all, on purpose.
        idle: parameters without a gradient, or one of zero, on purpose.
        time: where the steps are. "TN", "NT": in the input's first dimensions; "NT>TN": turned inside; "N>TN", "N>NT":
            an image, repeated inside; "single": one step per call, the loop is its user's; "N>loop", "TN>loop": a
            loop in forward, over an image or over a sequence.
        package: what must be installed.
    """

    name: str
    origin: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    call: Callable[[nn.Module, Any], Any]
    reset: Callable[[nn.Module], None]
    trap: str
    convertible: tuple[str, ...]
    time: str
    refused: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    package: str = ""

    @property
    def keeps_state(self) -> bool:
        """Whether a pass begins where the one before ended."""
        return self.reset is not stateless

    def skip_unless_installed(self) -> None:
        """Skip the test where the package is not installed."""
        if self.package:
            pytest.importorskip(self.package, reason=f"{self.package} is not installed")

    def neurons(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every neuron, by its name."""
        return matching(model, (*self.convertible, *self.refused, *self.either))

    def run(self, model: nn.Module, example: Any, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Output tensors of a pass, and the spikes of each neuron, its calls one after the other; dropout draws from
        ``seed``."""
        heard: dict[str, list[Tensor]] = {name: [] for name in self.neurons(model)}
        handles = [
            # A copy: spikes may be written to later.
            module.register_forward_hook(
                lambda _, inputs, output, name=name: heard[name].append(first(output).detach().clone())
            )
            for name, module in self.neurons(model).items()
        ]
        try:
            with seeded(seed):
                output = self.call(model, example)
        finally:
            for handle in handles:
                handle.remove()
        return tensors(output), {name: torch.stack(calls) for name, calls in heard.items()}


def stateless(model: nn.Module) -> None:
    """The reset of a network that begins each pass anew."""


def matching(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules whose names match one of the patterns; one that has two names, by its first."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def first(output: Any) -> Tensor:
    """A neuron's spikes: its output, or the first of what it returns."""
    return first(output[0]) if isinstance(output, (tuple, list)) else output


def tensors(output: Any) -> tuple[Tensor, ...]:
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside, and leave the random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def events(*shape: int, seed: int, rate: float = 0.3) -> Tensor:
    """Zeros and ones, as frames of an event camera."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def liven(model: nn.Module, gain: float, shift: float) -> None:
    """Have the batch norms drive the neurons behind them: untrained networks are silent from the second layer on."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.constant_(module.weight, gain)
            nn.init.constant_(module.bias, shift)


def settle(model: nn.Module, call: Callable[[], Any], reset: Callable[[nn.Module], None]) -> None:
    """Give the batch norms the running statistics of a pass, and end without state and without gradients."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = None  # the mean of all passes
        module.reset_running_stats()
    with torch.no_grad(), seeded(0):
        for _ in range(2):
            reset(model)
            call()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    reset(model)
