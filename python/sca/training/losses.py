"""What a run minimises: a loss takes logits ``[T, N, classes]``, labels int64 ``[N]`` or probabilities of the classes
``[N, classes]``, and the label smoothing; it is a mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy


def each_step(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over time of the cross-entropy of each step (TET: Deng et al., ICLR 2022, equation 8 without its
    regulariser)."""
    repeated = labels.expand(len(logits), *labels.shape).flatten(0, 1)
    return cross_entropy(logits.flatten(0, 1), repeated, label_smoothing=label_smoothing)


def mean(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the logits' mean over time."""
    return cross_entropy(logits.mean(0), labels, label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"each_step": each_step, "mean": mean}
