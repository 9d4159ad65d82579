"""Time loops turned inside out: the layers of a network one after the other, each over all time steps.

A pass is recorded once, as the calls of T steps one after the other. The calls from one line of the loop, one per step,
become one call: of a stateless layer or function on [T * N], of a neuron on [T, N]. What a step takes from the step
before, accumulators and neurons written out in the loop, goes on to run step by step, between those. So a folded
network computes what the loop does, in another order; only a neuron whose input depends on its own earlier spikes can't
be run over all steps at once.

Random numbers are drawn in another order: a dropout on [T * N] draws one mask per step as the loop does, but others.
"""

from __future__ import annotations

from .calls import LoopError, StepNeuron
from .folding import Folded, OverTime, fold, over_time, returns_state

__all__ = ["Folded", "LoopError", "OverTime", "StepNeuron", "fold", "over_time", "returns_state"]
