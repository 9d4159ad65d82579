"""Training: a configuration, a loop that can stop and resume at any step, and what a run leaves behind.

Everything loads at its first use: a configuration's fields alone, of which help is made, need no torch.
"""

from typing import TYPE_CHECKING

from ..lazy import export

if TYPE_CHECKING:
    from .callbacks import Callback, L1Penalty, Observer
    from .checkpoints import BestWeights, Checkpoints
    from .config import PRESETS, TrainConfig
    from .distributed import RankLost, Ranks, joined
    from .folder import RunFolder
    from .graph import GraphedStep
    from .logs import CSVLog, JSONLog, TensorBoard
    from .loop import Diverged, Interrupted, Trainer
    from .recipe import Recipe
    from .run import load_data, load_model, load_pruned, run
    from .summary import Summary

__all__ = export(__name__)
