"""What the loss would change by, to first order, without a channel (Molchanov et al., "Pruning Convolutional Neural
Networks for Resource Efficient Inference", ICLR 2017, equations 8 and 9)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from . import Criterion, GroupContext, NormObservation, Observation


class Taylor(Criterion):
    """For each sample the absolute sum over time and space of ``s * dL/ds``, added up over samples; divided by the L2
    norm over the group's active channels, without which layers could not be compared.
    """

    name = "taylor"
    observes = "gradients"
    observed_steps = 4

    def observe(self, seen: Observation) -> Mapping[str, Tensor]:
        product = (seen.spikes * seen.gradient).float()
        by_sample = product.sum(dim=[0, *range(3, product.dim())])
        return {"change": by_sample.abs().sum(0)}

    def __call__(self, group: GroupContext) -> Tensor:
        change = group.observed["change"]
        return group.spread(change / change.norm().clamp(min=1e-300))


class TaylorGlobal(Taylor):
    """The same without that division, as in the same authors' "Importance Estimation for Neural Network Pruning" (CVPR
    2019): the unit is the loss in all layers, so that one ranking of all channels also decides what each layer keeps.

    Scores of activity can't: behind a batch norm all layers are about as active, whether the loss needs them or not.
    """

    name = "taylor_global"

    def __call__(self, group: GroupContext) -> Tensor:
        return group.spread(group.observed["change"])


class TaylorNorm(Criterion):
    """The squared change of the loss without a channel's current, ``(gamma * dL/dgamma + beta * dL/dbeta)^2``, a mean
    over batches (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: its first-order
    estimate at batch norms). These gradients are sums over time, samples and space of current x gradient, which every
    backward pass makes. Comparable over layers, as ``taylor_global``.
    """

    name = "taylor_norm"
    observes = "norms"
    observed_steps = 20

    def observe(self, seen: NormObservation) -> Mapping[str, Tensor]:
        change = seen.weight * seen.weight_gradient + seen.bias * seen.bias_gradient
        return {"squared_change": change.double().square()}

    def __call__(self, group: GroupContext) -> Tensor:
        return group.spread(group.observed["squared_change"])


CRITERIA = {"taylor": Taylor(), "taylor_global": TaylorGlobal(), "taylor_norm": TaylorNorm()}
