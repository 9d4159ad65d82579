"""How the scores of a group's channels lay at an update, and where they were cut: a few numbers for the log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["BINS", "histogram"]

BINS = 20


def histogram(score: Tensor, kept: Tensor) -> dict[str, Any]:
    """Counts in :data:`BINS` bins of equal width between the lowest and the highest score.

    Args:
        score: float64 [n], of the channels that were active before the update. An infinite one (per SynOp, of a
            channel that costs none) counts in the last bin.
        kept: bool [n], those that stayed.

    Returns:
        ``low``, ``high``: the outer edges; ``kept``, ``pruned``: a count for each bin; ``cut``: the lowest score that
        was kept. The first, second and last are None where no finite score is.
    """
    finite = score[score.isfinite()]
    low, high = (finite.min(), finite.max()) if finite.numel() else (torch.tensor(0.0), torch.tensor(0.0))
    place = (BINS * (score - low) / (high - low)).nan_to_num(BINS - 1).clamp(0, BINS - 1).long()
    stayed = score[kept & score.isfinite()]
    return {
        "low": float(low) if finite.numel() else None,
        "high": float(high) if finite.numel() else None,
        "kept": torch.bincount(place[kept], minlength=BINS).tolist(),
        "pruned": torch.bincount(place[~kept], minlength=BINS).tolist(),
        "cut": float(stayed.min()) if stayed.numel() else None,
    }
