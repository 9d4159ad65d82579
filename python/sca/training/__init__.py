"""Training: a configuration, a loop that can stop and resume at any step, and what a run leaves behind."""

from .config import PRESETS, TrainConfig
from .folder import RunFolder
from .loop import Interrupted, Observer, Trainer
from .recipe import Recipe
from .run import load_data, load_model, run
from .summary import Summary

__all__ = [
    "PRESETS",
    "Interrupted",
    "Observer",
    "Recipe",
    "RunFolder",
    "Summary",
    "TrainConfig",
    "Trainer",
    "load_data",
    "load_model",
    "run",
]
