"""What the plan asks of a kind of GPU kernels."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..neurons import NeuronConfig
from .plan import Plan

Vectors = Tensor | float | int | bool | None
"""What a kernel is told by name beside its plan: tensors, numbers, or None for what there is not."""


class Launcher(Protocol):
    """Starts the three kernels over activations, each once per call, on the current stream of the device of x.

    Every program (CUDA: block) goes over ``plan.tiles.tiles`` tiles of one stripe and writes its sums to
    ``plan.partials``. The last one to arrive at a counter adds them up in their fixed order, and does what the call
    asks for with them (*finish*). All per-channel vectors are [C] at the width of x unless said otherwise; ``channels``
    is int64 [C] where channels of x stand in vectors that are longer, or None.
    """

    def tile_size(self, element_size: int, align: int, time_steps: int) -> int:
        """Elements of a tile, a power of two; align: elements of an access, a power of two, at most 16 bytes."""

    def forward(self, plan: Plan, config: NeuronConfig, **arguments: Vectors) -> None:
        """All time steps of a neuron.

        Args:
            spikes: dense in the layout of x, written. v_init, v_last: potentials, or None.
            potentials: float32, dense in the layout of x, those before each reset are written there; or None.
            scale, shift, rate: prelude and leak, float32 or None. mask: bool, where spikes are let out; or None.
            threshold, fires_at: float32, in place of the configuration's; or both None.
            mean, var, weight, bias, eps, weight_channels: where given (var is not None), scale and shift follow from
                these, in float64, rounded once; the four may be longer vectors, read through weight_channels.
            spike_count, membrane_l1: int64 and float32, written by the finish.
            channels, sums_spikes, sums_l1, sums_positions, seen: activity is added there by the finish.
            norm, running_mean, running_var, weight_of_batch, weight_tensor, unbiased, finite_only: the finish moves
                running statistics (float32) towards the mean and the variance, the first two rows of norm.
            batches: int64 [], goes on by one.
        """

    def moments(self, plan: Plan, **arguments: Vectors) -> None:
        """Sums of x and of x^2, taken in float32 about an origin of each program's own, added up in float64.

        Args:
            count: values per channel.
            moments: float64 [2, C], written by the finish: the sums alone; or None, and then
            norm: float32 [4, C], written: mean, biased variance, and scale and shift that follow from these (rounded)
                in float64, rounded once; from weight, bias, eps, weight_channels as in :meth:`forward`.
        """

    def backward(self, plan: Plan, config: NeuronConfig, **arguments: Vectors) -> None:
        """With g the gradient of the input current: grad_x = scale * g + slope * (x - center) + offset, and sums of g,
        of g * (x - center), and of the rate's and the threshold's gradients.

        Args:
            grad_v, v_init, grad_v_init: states, or None. grad_x, and grad_h (float32): dense in the layout of x, or
                None.
            scale, shift, rate, threshold, fires_at, center, slope, offset: float32 or None.
            sums: whether sums are taken. Their finish writes
            first, second, third, fourth: the sums, float32 or float64 (None: not wanted); or, where ``coefficients`` is
                given (float32 [2, C]: slope and offset, written too), the gradients of training batch norm: first and
                second those of bias and weight, as long as ``grad_size`` says and zero for channels that
                weight_channels has not, third and fourth those of rate and threshold; from norm, weight, eps,
                count and presentations.
        """
