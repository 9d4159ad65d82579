"""Training: a configuration, a loop that can stop and resume at any step, and what a run leaves behind."""

from .config import PRESETS, TrainConfig
from .distributed import RankLost, Ranks, joined
from .folder import RunFolder
from .loop import Diverged, Interrupted, Observer, Trainer
from .recipe import Recipe
from .run import load_data, load_model, load_pruned, run
from .summary import Summary

__all__ = [
    "PRESETS",
    "Diverged",
    "Interrupted",
    "Observer",
    "RankLost",
    "Ranks",
    "Recipe",
    "RunFolder",
    "Summary",
    "TrainConfig",
    "Trainer",
    "joined",
    "load_data",
    "load_model",
    "load_pruned",
    "run",
]
