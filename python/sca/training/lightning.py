"""SCA in PyTorch Lightning, for those whose loop it is: ``Trainer(callbacks=[SCACallback(loss, density=0.3, ...)])``.

Import it by name, ``from sca.training.lightning import SCACallback``: nothing else needs the package ``lightning``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..pruning import SCAScheduler
from .distributed import set_norm_group

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("SCACallback needs Lightning: pip install 'sca_kernels[lightning]'") from error


class SCACallback(Callback):
    """Runs a :class:`sca.SCAScheduler` on the module's optimizer, or on several that share its parameters: a step of it
    follows each batch in which one of them has stepped.

    With several processes, batch norms take their statistics over all of them, and all prune alike.

    Args:
        loss: gives the scalar loss of (module, batch) for a probe; it should log nothing.
        settings: of the scheduler; ``start``, ``stop`` and ``interval`` count such batches.

    Attributes:
        scheduler: None until fitting starts. Its state is part of Lightning's checkpoints.
    """

    def __init__(self, loss: Callable[[LightningModule, Any], Tensor], **settings: Any) -> None:
        self.scheduler: SCAScheduler | None = None
        self._loss, self._settings = loss, settings
        self._loaded: dict[str, Any] | None = None
        self._step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """ValueError where there is no optimizer."""
        if not trainer.optimizers:
            raise ValueError("optimizers: expected at least one, got none from configure_optimizers")
        if trainer.world_size > 1:
            set_norm_group(pl_module, True)
        self.scheduler = SCAScheduler(pl_module, trainer.optimizers, **self._settings)
        if self._loaded is not None:
            self.scheduler.load_state_dict(self._loaded)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has restored its step by now."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing happens while gradients accumulate."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.scheduler.wants_probe:
            self.scheduler.probe(lambda: self._loss(pl_module, batch))
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning restores callbacks before there are optimizers, so the state waits for them."""
        self._loaded = state_dict or None
