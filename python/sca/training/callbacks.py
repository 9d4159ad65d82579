"""What a training loop calls: the hooks that logging, checkpoints and users' own code hang on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from sca_kernels.nn import set_analog

from ..pruning import PruneEvent

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["AnalogStart", "Callback", "L1Penalty", "Observer", "OnBackward", "TimeGrowth", "as_callback"]


class Callback:
    """Base of what is told about a run; a subclass overrides the hooks that it wants.

    All processes of a run call their callbacks. Those that write files do so where ``trainer.ranks.is_first``.

    Attributes:
        stop_requested: set it at any time, from a signal handler too: the run ends after the step, with a checkpoint.
        checkpoint_requested: set it likewise: a checkpoint follows the step. It is cleared when it is granted.
        capturable: whether :meth:`on_backward` launches the same work in each step and reads no value of the device, so
            that a CUDA graph of the step can hold it: it is then called while steps are captured, and not when they are
            replayed. Where a callback overrides it and does not say so, steps run as they stand.
    """

    stop_requested = False
    checkpoint_requested = False
    capturable = False

    def on_start(self, trainer: Trainer) -> None:
        """Called before the first batch of a run or of its resumption."""

    def on_backward(self, trainer: Trainer) -> None:
        """Called between the backward pass and the optimizer's step: gradients may be clipped or added to."""

    def on_batch(self, trainer: Trainer) -> None:
        """Called after each optimizer step, and the pruning that follows it."""

    def on_update(self, event: PruneEvent) -> None:
        """Called after each pruning update."""

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        """Called with :meth:`Trainer.state` after each epoch, whenever ``checkpoint_minutes`` have passed, when a
        callback asked for it, and before the run ends early."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Called after each epoch, and its checkpoint, with its row of the log."""

    def on_end(self, trainer: Trainer) -> None:
        """Called last, however the run ends."""


class Observer(Protocol):
    """What watches a run and is no :class:`Callback`: these names are enough."""

    stop_requested: bool

    def on_start(self, trainer: Trainer) -> None:
        """See :class:`Callback`, as for the others."""

    def on_batch(self, trainer: Trainer) -> None: ...

    def on_epoch(self, row: dict[str, Any]) -> None: ...


class _Observed(Callback):
    """An observer as a callback."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    @property
    def stop_requested(self) -> bool:
        return self._observer.stop_requested

    def on_start(self, trainer: Trainer) -> None:
        self._observer.on_start(trainer)

    def on_batch(self, trainer: Trainer) -> None:
        self._observer.on_batch(trainer)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self._observer.on_epoch(row)


def as_callback(observer: Callback | Observer) -> Callback:
    """The callback itself, or one that tells an observer.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(observer, Callback):
        return observer
    missing = [name for name in ("stop_requested", "on_start", "on_batch", "on_epoch") if not hasattr(observer, name)]
    if missing or isinstance(observer, type):
        raise TypeError(
            "callbacks: expected objects of sca.training.Callback, or with stop_requested, on_start, on_batch and "
            f"on_epoch, got {observer!r:.100}"
        )
    return _Observed(observer)


class OnBackward:
    """What callbacks do between the backward pass and the optimizer's step, as one function.

    Attributes:
        callbacks: those that do something there.
    """

    def __init__(self, trainer: Trainer, callbacks: Iterable[Callback]) -> None:
        self._trainer = trainer
        self.callbacks = [c for c in callbacks if getattr(c.on_backward, "__func__", None) is not Callback.on_backward]

    @property
    def capturable(self) -> bool:
        """Whether all of them are, see :class:`Callback`."""
        return all(callback.capturable for callback in self.callbacks)

    def __call__(self) -> None:
        for callback in self.callbacks:
            callback.on_backward(self._trainer)

    def __repr__(self) -> str:
        names = [type(callback).__name__ for callback in self.callbacks if not callback.capturable]
        return f"on_backward of {', '.join(names)}"


class L1Penalty(Callback):
    """Adds the subgradient of an L1 norm to gradients (the sparsity term of Li et al., ICML 2024).

    Args:
        parameters: those that are pulled towards zero.
        factor: of their signs.
    """

    capturable = True

    def __init__(self, parameters: Iterable[nn.Parameter], factor: float) -> None:
        self._parameters, self._factor = list(parameters), factor

    def on_backward(self, trainer: Trainer) -> None:
        """Nothing is added where there is no gradient."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach().sign(), alpha=self._factor)


class TimeGrowth(Callback):
    """Has a network of ours present still images for fewer time steps at first, a fraction of the work: each epoch
    costs about as much as it has steps, and what is learned with few carries over to more.

    Args:
        time_steps: T at the end of the run, and behind it.
        doublings: epochs, rising, before which T doubles.
    """

    def __init__(self, time_steps: int, doublings: Sequence[int]) -> None:
        self._time_steps, self._doublings = time_steps, list(doublings)

    def on_start(self, trainer: Trainer) -> None:
        """T of the epoch that the run begins, or goes on, with."""
        self._trainer = trainer
        self._set(trainer.epoch)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """T of the epoch that comes."""
        self._set(row["epoch"])

    def on_end(self, trainer: Trainer) -> None:
        """What was trained is a network of ``time_steps``, however far it got."""
        self._present(self._time_steps)

    def _set(self, epoch: int) -> None:
        to_come = sum(doubling > epoch for doubling in self._doublings)
        self._present(self._time_steps // 2**to_come)

    def _present(self, time_steps: int) -> None:
        for model in {self._trainer.model: 0, self._trainer.result: 0}:
            if model.time_steps != time_steps:
                model.time_steps = time_steps
                self._trainer.release_step()


class AnalogStart(Callback):
    """Has neurons give out rectified potentials at first, then a blend that becomes spikes, see
    :func:`sca_kernels.nn.set_analog`.

    Args:
        first, last: steps, fractions of them too: until the first the potential alone, from the last on spikes alone;
            the potential's share falls linearly in between.
    """

    def __init__(self, first: float, last: float) -> None:
        self._first, self._last = first, last

    def on_start(self, trainer: Trainer) -> None:
        """The blend of the step that the run begins, or goes on, with."""
        self._set(trainer, trainer.step)

    def on_batch(self, trainer: Trainer) -> None:
        """The blend of the step that comes."""
        self._set(trainer, trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        """What was trained is a network of spikes, however far it got."""
        self._set(trainer, self._last)

    def _set(self, trainer: Trainer, step: float) -> None:
        share = None if step >= self._last else min(1.0, (self._last - step) / (self._last - self._first))
        before = trainer.model.analog is None, trainer.model.analog_is_whole
        for model in {trainer.model: 0, trainer.result: 0}:
            if share is not None or model.analog is not None:
                set_analog(model, share)
        if before != (trainer.model.analog is None, trainer.model.analog_is_whole):
            trainer.release_step()


class Calls(Callback):
    """Functions in place of a callback's hooks."""

    def __init__(
        self, save: Callable[[dict[str, Any]], None] | None, log: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self._save, self._log = save, log

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        """``save`` it."""
        if self._save is not None:
            self._save(state)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """``log`` it."""
        if self._log is not None:
            self._log(row)
