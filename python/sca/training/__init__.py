"""Training: a configuration, a loop that can stop and resume at any step, and what a run leaves behind."""

from .callbacks import Callback, L1Penalty
from .checkpoints import BestWeights, Checkpoints
from .config import PRESETS, TrainConfig
from .distributed import RankLost, Ranks, joined
from .folder import RunFolder
from .logs import CSVLog, JSONLog, TensorBoard
from .loop import Diverged, Interrupted, Observer, Trainer
from .recipe import Recipe
from .run import load_data, load_model, load_pruned, run
from .summary import Summary

__all__ = [
    "PRESETS",
    "BestWeights",
    "CSVLog",
    "Callback",
    "Checkpoints",
    "Diverged",
    "Interrupted",
    "JSONLog",
    "L1Penalty",
    "Observer",
    "RankLost",
    "Ranks",
    "Recipe",
    "RunFolder",
    "Summary",
    "TensorBoard",
    "TrainConfig",
    "Trainer",
    "joined",
    "load_data",
    "load_model",
    "load_pruned",
    "run",
]
