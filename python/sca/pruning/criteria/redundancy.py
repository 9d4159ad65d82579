"""How little of a channel's spike train a busier channel says already (after Wang et al., "COP: Customized Deep Model
Compression via Regularized Correlation-Based Filter-Level Pruning", IJCAI 2019, whose filters are compared by
correlation)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import Criterion, GroupContext, Observation


class Redundancy(Criterion):
    """One minus the largest absolute correlation of a channel's spikes with those of any channel of the group that
    fires more often (of equals, the one of lower index): of two alike the busier one stays. A channel that fires never,
    or always, says nothing and scores 0.
    """

    name = "redundancy"
    observes = "spikes"

    def observe(self, seen: Observation) -> Mapping[str, Tensor]:
        together = total = 0
        channels = seen.spikes.shape[2]
        # sums of zeros and ones are exact in float32 up to 2**24; a single step has fewer positions
        for step in seen.spikes:
            trains = step.transpose(0, 1).reshape(channels, -1).float()
            together = together + (trains @ trains.T).double()
            total = total + trains.sum(1).double()
        positions = seen.spikes.numel() // channels
        return {"together": together, "total": total, "positions": torch.full_like(total[:1], positions)}

    def __call__(self, group: GroupContext) -> Tensor:
        joint = group.observed["together"] / group.observed["positions"]
        rate = group.observed["total"] / group.observed["positions"]
        spread = (joint.diagonal() - rate.square()).clamp(min=0).sqrt()
        correlation = ((joint - rate[:, None] * rate) / (spread[:, None] * spread)).abs().nan_to_num(0.0, 0.0, 0.0)
        order = rate.argsort(descending=True, stable=True)
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel()))
        busier = place[None, :] < place[:, None]
        score = 1 - torch.where(busier, correlation, 0.0).amax(1).clamp(max=1)
        return group.spread(torch.where(spread > 0, score, 0.0))


CRITERIA = {"redundancy": Redundancy()}
