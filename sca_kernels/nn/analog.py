"""Neurons that give out a share of their potential: a network that begins as one of rectified units."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks

__all__ = ["FollowsAnalog", "set_analog"]


class FollowsAnalog:
    """Mixin of the modules that do something else while neurons give out what is no spike.

    Attributes:
        analog: the potential's share, a tensor of one number that all modules of a network have; None: spikes alone.
        analog_is_whole: whether that share is 1, which no step that was compiled or captured has to read.
    """

    analog: Tensor | None = None
    analog_is_whole = False


@torch.inference_mode(False)
def set_analog(module: tnn.Module, share: float | None) -> None:
    """Have all neurons in this tree give out ``share * max(h, 0) + (1 - share) * s``: a share of the potential h before
    the reset in place of the spikes s.

    At 1 they are rectified units; lowered to 0 over some epochs, what these have learned becomes a spiking network.
    (Rathi et al., "Enabling Deep Spiking Neural Networks with Hybrid Conversion and Spike Timing Dependent
    Backpropagation", ICLR 2020, go from one to the other at once.) Potentials are those of the neurons' own equations,
    firing and resets included, and are written, [T, N, C, *S]; activity counts the spikes. Layers made with
    ``spike_input=True`` keep what they read as it is; of SynOps it counts as analog values.

    Args:
        module: a network; of layers that read neurons, those in it are told.
        share: in [0, 1]; None: spikes alone, by the fused operator, which is how modules are made. Another number
            below 1 is written to the tensor that all of them have: no compiled or captured step is made anew for it.

    Raises:
        TypeError: ``share`` is no number.
        ValueError: it is out of range.
    """
    checks.instance("module", module, tnn.Module, "a torch.nn.Module")
    if share is not None and not 0 <= checks.number("share", share) <= 1:
        raise ValueError(f"share: expected a number in [0, 1] or None, got {share!r}")
    followers = [m for m in module.modules() if isinstance(m, FollowsAnalog)]
    analog = None
    if share is not None:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        held = next((m.analog for m in followers), None)
        analog = torch.zeros((), device=device) if held is None or held.device != device else held
        analog.fill_(share)
    for follower in followers:
        follower.analog, follower.analog_is_whole = analog, share == 1
