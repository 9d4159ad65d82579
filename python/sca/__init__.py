"""Train spiking networks, prune them while they learn, and show what it saved.

Everything loads at its first use: ``import sca`` is light, whatever the training tools need.
"""

from typing import TYPE_CHECKING

from .lazy import export

if TYPE_CHECKING:
    from sca_kernels import __version__

    from . import bench, cost, data, experiments, models, pruning, report, saving, structure, training
    from .convert import convert
    from .cost import report_cost
    from .pruning import SCAScheduler
    from .saving import load, save
    from .structure import attach_groups, compact

__all__ = export(__name__)
