"""Training: a configuration, a loop that can stop and resume at any step, and what a run leaves behind.

Everything loads at its first use: a configuration's fields alone, of which help is made, need no torch.
"""

from ..lazy import export

__all__ = export(
    __name__,
    {
        "PRESETS": ".config",
        "Diverged": ".loop",
        "Interrupted": ".loop",
        "Observer": ".loop",
        "RankLost": ".distributed",
        "Ranks": ".distributed",
        "Recipe": ".recipe",
        "RunFolder": ".folder",
        "Summary": ".summary",
        "TrainConfig": ".config",
        "Trainer": ".loop",
        "joined": ".distributed",
        "load_data": ".run",
        "load_model": ".run",
        "load_pruned": ".run",
        "run": ".run",
    },
)
