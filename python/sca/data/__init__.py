"""Data sets: of images that fit into memory, and of recordings of event cameras, framed once; each found by its name.

Everything loads at its first use: the settings alone need no torch.
"""

from typing import TYPE_CHECKING

from ..lazy import export

if TYPE_CHECKING:
    from .dataset import Dataset, Split
    from .loading import DATASETS, load
    from .policies import POLICIES
    from .settings import FrameSettings

__all__ = export(__name__)
