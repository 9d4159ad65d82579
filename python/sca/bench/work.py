"""The work that is timed: networks brought to a density, and passes through them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..pruning.allocation import by_place
from ..pruning.select import Candidates, choose
from ..structure.groups import find_groups
from ..training.precision import autocast


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all training benchmarks, in torch's fastest form: fused, except that it copies channels_last."""
    fused = all(p.is_contiguous() for p in model.parameters())
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor, precision: str = "float32") -> Tensor:
    """Cross-entropy of the logits' mean over time."""
    with autocast(precision, images.device.type):
        return cross_entropy(model(images).float().mean(0), labels)


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    precision: str = "float32",
) -> None:
    """Forward, cross-entropy of the mean logits, backward, optimizer step."""
    optimizer.zero_grad()
    mean_loss(model, images, labels, precision).backward()
    optimizer.step()


def inference_step(model: nn.Module, images: Tensor, precision: str = "float32") -> None:
    """Forward, in inference mode."""
    with torch.inference_mode(), autocast(precision, images.device.type):
        model(images)


def prune_evenly(model: nn.Module, density: float, round_to: int) -> None:
    """Leave random channels active, the same share of every prunable group: what a scheduler with
    ``allocation="layer"`` cuts to."""
    groups = [members.group for members in find_groups(model).values() if members.group.prunable]
    candidates = [
        Candidates(torch.ones(g.num_channels, dtype=torch.bool), torch.rand(g.num_channels, dtype=torch.float64))
        for g in groups
    ]
    count = round(density * sum(g.num_channels for g in groups))
    for group, mask in zip(groups, choose(candidates, count, allocation=by_place, round_to=round_to), strict=True):
        group.set_active(mask.nonzero().flatten())


def settle_statistics(model: nn.Module, images: Tensor, precision: str = "float32") -> None:
    """Make the running statistics of all batch norms those of this batch: in eval mode an untrained network then fires
    as it does in training."""
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative average, of one batch
        norm.num_batches_tracked.zero_()
    model.train()
    with torch.no_grad(), autocast(precision, images.device.type):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
