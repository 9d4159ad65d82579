"""Which of our neurons a foreign one is, found out by running it: its code is not read.

Spikes and gradients are all that shows. In units of the input, a neuron of ours is ``y[t] = a v[t-1] + x[t]`` that
fires where y reaches D and goes on from a constant, or from y less a constant (the equations of
``sca_kernels.neurons``, less the resting potential, divided by the factor of the input). So D, a and the reset are
found by bisecting the last of a few currents until the neuron just fires. Where an equation rounds shows in the last
bit of such a current alone: there the candidates (tau, rate, decay, ``>=``, ``>``, a resting potential) are told apart.
The gradient of one step is the surrogate; the gradient of many, and spikes on random currents, are the test to be
passed.
"""

from __future__ import annotations

from .foreign import in_loop
from .neurons import NeuronFit, probe_neuron
from .surrogates import SurrogateFit, probe_surrogate, slope_of

__all__ = ["NeuronFit", "SurrogateFit", "in_loop", "probe_neuron", "probe_surrogate", "slope_of"]
