"""The training loop: one object that holds all state of a run, steps it, and gives the state out and takes it back."""

from __future__ import annotations

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sca_kernels import checks
from sca_kernels.functional import NotANumber

from ..cost import connectivity, density
from ..data import Dataset
from ..data.dataset import Batch
from ..pruning import NotFinite, PruneEvent, SCAScheduler
from ..pruning.recording import record_in_training
from ..settings import check_number
from ..structure.attach import has_groups
from ..structure.groups import find_groups
from . import state as states
from .assembly import assembled
from .average import averaged
from .callbacks import Callback, Calls, Observer, OnBackward, as_callback
from .config import PRECISIONS, TrainConfig, check_compile
from .distributed import Ranks, set_norm_group
from .firing import FiringRate
from .freezing import frozen_modules
from .graph import GraphedStep
from .learning_rate import learning_rate
from .metrics import correct, hits, hits_and_seen
from .precision import autocast
from .sources import epoch_of, is_resident, require_loader, test_batches
from .sums import EpochSums

__all__ = ["Diverged", "EpochSums", "Interrupted", "Observer", "Trainer", "learning_rate"]

#: Steps on a CUDA device between two readings of loss and accuracy.
_LAG = 50


class Interrupted(Exception):
    """A callback asked to stop; the state is as after a finished step."""


class Diverged(Exception):
    """The loss or a parameter is NaN or infinite; the message says which, and when. Nothing of it has been saved."""


def _or_config(init: Callable[..., None]) -> Callable[..., None]:
    """Have ``Trainer(config, dataset, ranks)``, the call of before, still make a trainer."""

    @functools.wraps(init)
    def either(self: Trainer, *arguments: Any, **options: Any) -> None:
        if not isinstance(options.get("config", next(iter(arguments), None)), TrainConfig):
            init(self, *arguments, **options)
            return
        warnings.warn(
            "Trainer(config, dataset, ranks) is deprecated: call Trainer.from_config(config, dataset, ranks)",
            DeprecationWarning,
            stacklevel=2,
        )
        vars(self).update(vars(type(self).from_config(*arguments, **options)))

    return either


class Trainer:
    """A model, its optimizer and its pruning schedule, trained by :meth:`fit`::

        scheduler = sca.SCAScheduler(model, optimizer, density=0.3, start=100, stop=2000, interval=100)
        trainer = Trainer(model, optimizer, train, test, loss=loss, scheduler=scheduler, epochs=30)
        trainer.fit()

    A batch is images ``[N, C, H, W]``, or sequences ``[T, N, C, H, W]``, and labels int64 ``[N]``; the last of an epoch
    may be smaller. :meth:`from_config` makes all of it from a configuration, which is what ``sca train`` does.

    Two trainers of the same arguments on the same CPU and number of threads go through bit-equal states; so does one
    that was stopped after any step and resumed from :meth:`state`. Where ``train`` is no loader of ours
    (:meth:`sca.data.Dataset.train_loader`), that needs an order that is seeded by epoch: by ``set_epoch`` of the
    loader or its sampler, which is called, or by torch's global generator, which is the loader's own while it is asked
    for a batch. A resumed epoch skips the batches that were done.

    On a CUDA device nothing waits for a step: loss, accuracy and firing rates are read, and a loss that is not finite
    ends the run, after the first step of an epoch, every 50 steps, before each update, each checkpoint and the end of
    the epoch. What callbacks see of ``sums`` in between is from the last time.

    Args:
        model: gives logits ``[T, N, classes]``, or their mean over time ``[N, classes]``. It stays on its device.
        optimizer: of the model's parameters.
        train: gives the batches of an epoch each time that it is iterated over, and their number as its length: a
            DataLoader of any kind, or a loader of ours. In a run of several processes a loader of ours gives all of
            them whole batches, of which each takes a part; any other gives each process its own part (as with a
            DistributedSampler), the same number of batches.
        test: gives the batches that ``test_accuracy`` is measured on after each epoch; None where it isn't.
        loss: the scalar loss of logits and labels, a mean over the batch: see :mod:`sca.training.losses`.
        epochs: length of the run.
        validation: gives batches that each epoch is measured on as ``validation_accuracy``; ``test`` is then looked at
            once, after the last epoch.
        scheduler: of the model and the optimizer; None where nothing is pruned.
        lr_schedule: gives a factor on each learning rate of the optimizer at a (fractional) epoch, see
            :mod:`sca.training.learning_rate`; or one of torch, whose ``step()`` follows each optimizer step.
        callbacks: see :class:`Callback`; called in this order.
        precision: ``float32``, or ``bfloat16`` (autocast).
        device: where batches are moved to; that of the model, which it has to be, when left out.
        freeze: name patterns (fnmatch) of modules whose parameters are not trained and that stay in eval mode.
        ema: decay of a running average of the weights, which is tested in place of the model; 0 for none.
        compile: run training steps through torch.compile.
        graph: run training steps as one CUDA graph where they can be, see :class:`GraphedStep`.
        checkpoint_minutes: a long epoch has a checkpoint whenever so much time has passed since the last one.
        ranks: the processes that train together.

    Attributes:
        config: None but in a trainer made from one.
        dataset: None but where ``train`` is a loader of ours, whose it is.
        batch_size: images per step on this process; None where ``train`` says nothing of it.
        groups: the model's channel groups by name.
        average: the running average as a :class:`torch.optim.swa_utils.AveragedModel`; None where there is none.
        epoch: number of finished epochs.
        steps_per_epoch: batches in an epoch.
        sums: of the running epoch.
        history: one row per finished epoch, as in the log.
        former_epochs: the length of the run whose state was loaded; None where none was.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range; the message names it.
    """

    @_or_config
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train: Iterable[Batch],
        test: Iterable[Batch] | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        epochs: int,
        validation: Iterable[Batch] | None = None,
        scheduler: SCAScheduler | None = None,
        lr_schedule: Callable[[float], float] | LRScheduler | None = None,
        callbacks: Sequence[Callback | Observer] = (),
        precision: str = "float32",
        device: torch.device | str | None = None,
        freeze: Sequence[str] = (),
        ema: float = 0.0,
        compile: bool = False,
        graph: bool = True,
        checkpoint_minutes: float = 10.0,
        ranks: Ranks | None = None,
    ) -> None:
        self.config: TrainConfig | None = None
        self.ranks = ranks or Ranks()
        self.model = checks.instance("model", model, nn.Module, "a torch.nn.Module")
        self.optimizer = checks.instance("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
        self.device = _device_of(model, device)
        self.train = require_loader("train", train, needs_length=True)
        self.test = test if test is None else require_loader("test", test)
        self.validation = validation if validation is None else require_loader("validation", validation)
        if not callable(loss):
            raise TypeError(f"loss: expected a function of logits and labels, got {type(loss).__name__}")
        self.criterion = loss
        self.epochs = checks.integer("epochs", epochs)
        if scheduler is not None and not isinstance(scheduler, SCAScheduler):
            raise TypeError(f"scheduler: expected an sca.SCAScheduler, got {type(scheduler).__name__}")
        self.scheduler = scheduler
        self._lr_schedule = _checked_schedule(lr_schedule)
        self._rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.callbacks = [as_callback(callback) for callback in callbacks]
        self._told = self.callbacks
        self.precision = checks.one_of("precision", precision, PRECISIONS)
        if not 0 <= ema < 1:
            raise ValueError(f"ema: expected a decay in [0, 1), got {ema!r}")
        check_number("checkpoint_minutes", checkpoint_minutes, above=0)
        self.checkpoint_minutes = checkpoint_minutes
        self._graphs = checks.boolean("graph", graph)
        if compile:
            check_compile(str(self.device))

        self.dataset: Dataset | None = train.dataset if is_resident(train) else None
        self.batch_size = getattr(train, "batch_size", None)
        if self.dataset is not None:
            self.ranks.check_batches(self.batch_size, len(self.dataset.train))
            self.batch_size //= self.ranks.size
        self.steps_per_epoch = len(train)
        self.groups = {n: m.group for n, m in find_groups(model).items()} if has_groups(model) else {}
        self._frozen = frozen_modules(model, freeze)
        self._firing = FiringRate(model)
        if self._frozen and scheduler is None:  # which records them otherwise
            record_in_training(model, (m.activity for m in model.modules() if hasattr(m, "activity")))
        self.average = averaged(model, ema) if ema else None
        if self.average is not None and scheduler is not None:
            scheduler.follow(self.average.module)
        self._compiles = compile
        self._network = self._new_network()
        self.data_seed = torch.initial_seed()
        self.epoch = 0
        self.sums = EpochSums()
        self.history: list[dict[str, Any]] = []
        self.former_epochs: int | None = None
        self._graphed: GraphedStep | None = None
        self._found = torch.zeros((), dtype=torch.int64, device=self.device)
        self._seen: tuple[Tensor, Tensor] | None = None
        self._part = 1.0
        self._unread: list[tuple[int, float | Tensor, int | Tensor, int]] = []
        self._seconds = 0.0
        self._running = 0

    @classmethod
    def from_config(
        cls, config: TrainConfig, dataset: Dataset, ranks: Ranks | None = None, *, weights: bool = True
    ) -> Trainer:
        """The trainer of a configuration.

        Args:
            config: what to do.
            dataset: moved to ``config.device``.
            ranks: the processes that train together. Each has a part of every batch, of the same batches that one
                process alone would see; history and states are those of the whole.
            weights: whether to start from ``config.weights``; False where a state is to be loaded.

        Raises:
            ValueError: an argument of the model is out of range; the batch is no multiple of the processes; the
                weights can't be read, or are of another network.
            ImportError: ``config.policy`` needs a package that is missing.
        """
        trainer = cls(**assembled(config, dataset, ranks or Ranks(), weights))
        trainer.config = config
        return trainer

    @property
    def step(self) -> int:
        """Number of finished optimizer steps."""
        return self.epoch * self.steps_per_epoch + self.sums.batches + len(self._unread)

    @property
    def density(self) -> float:
        """Active / all channels of the prunable groups, as :attr:`sca.SCAScheduler.density`; 1 where there are none."""
        return density(self.groups.values())

    @property
    def updates(self) -> list[dict[str, Any]]:
        """What every pruning update did: :meth:`sca.pruning.PruneEvent.record`."""
        return [] if self.scheduler is None else self.scheduler.history

    @property
    def result(self) -> nn.Module:
        """The network that is tested: the running average of the model if there is one, else the model."""
        return self.model if self.average is None else self.average.module

    def leave_ranks(self) -> None:
        """Go on alone: :meth:`train_step` takes whole batches of ``batch_size``."""
        if self.ranks.size > 1:
            self.ranks = Ranks()
            set_norm_group(self.model, None)
            self._network = self._new_network()
            self.release_step()

    def _new_network(self) -> nn.Module:
        """What a training step calls."""
        network = self.ranks.wrap(self.model)
        return torch.compile(network) if self._compiles else network

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward pass: the loss, and logits ``[T, N, classes]``."""
        with autocast(self.precision, self.device.type):
            logits = network(images)
            return self.criterion(logits, labels), logits

    def train_step(self, images: Tensor, labels: Tensor) -> tuple[float | Tensor, int | Tensor]:
        """One optimizer step.

        Args:
            images, labels: the batch of all processes; this process's part where ``train`` is no loader of ours.

        Returns:
            The loss, and how many of the batch were predicted: this process's summands. On a CUDA device, where one
            process trains alone, tensors: to read them is to wait for the step.
        """
        images, labels, self._part = self._own(images, labels)
        self._set_learning_rates()
        for module in self._frozen:
            module.eval()
        if self._graphed is None:
            self._graphed = self._new_step()
        loss = self._graphed(images, labels)
        if isinstance(self._lr_schedule, LRScheduler):
            self._lr_schedule.step()
        if self._waits_for_none:
            return loss, self._found.clone()
        loss, logits = self._seen
        return loss.item() * self._part / self.ranks.size, correct(logits, labels)

    @property
    def _waits_for_none(self) -> bool:
        """Whether steps run ahead of what is known of them; several processes agree after each."""
        return _runs_ahead(self.device) and self.ranks.size == 1

    def _new_step(self) -> GraphedStep:
        on_backward = OnBackward(self, self._told)
        return GraphedStep(
            self._network,
            self.optimizer,
            self._share_of_loss,
            precision=self.precision,
            on_backward=on_backward if on_backward.callbacks else None,
            graph=self._graphs,
        )

    def _share_of_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss whose mean over the processes is minimised; notes what a log will want to know of the step."""
        loss = self.criterion(logits, labels)
        if self._waits_for_none:
            self._found.copy_(hits(logits.detach(), labels))  # always the same tensor: the step may be being captured
            return loss
        self._seen = loss.detach(), logits.detach()
        return loss * self._part

    def release_step(self) -> None:
        """Let go of the captured step, if there is one, and of its memory: the next ones are others, by something that
        :class:`GraphedStep` does not look at."""
        if self._graphed is not None:
            self._graphed.release()
        self._graphed = None

    def prune_step(self, images: Tensor, labels: Tensor) -> PruneEvent | None:
        """Tell the pruning schedule that an optimizer step is done; at an update it probes on this batch.

        Returns:
            What an update did.
        """
        if self.scheduler is None:
            return None
        if self.scheduler.wants_probe:
            images, labels, part = self._own(images, labels)
            self.scheduler.probe(lambda: self.loss(self.model, images, labels)[0] * (part / self.ranks.size))
        return self.scheduler.step()

    def _own(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """This process's part of a batch, and the weight with which the mean over it goes into a mean over the
        processes."""
        if is_resident(self.train):
            return self.ranks.share(images, labels)
        (samples,) = self.ranks.sum(len(labels))
        return images, labels, len(labels) * self.ranks.size / samples

    def _set_learning_rates(self) -> None:
        if self._lr_schedule is None or isinstance(self._lr_schedule, LRScheduler):
            return
        factor = self._lr_schedule(self.step / self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def fit(
        self,
        observer: Callback | Observer | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Train to the end of the run.

        Args:
            observer: one more callback, after the trainer's own.
            save: given each checkpoint's state, as :meth:`Callback.on_checkpoint`.
            log: given each epoch's row, as :meth:`Callback.on_epoch`.

        Raises:
            Interrupted: a callback asked to stop; there was a checkpoint.
            Diverged: the loss, a potential, a score or a parameter is not finite; there was no checkpoint of that.
        """
        self._told = [*self.callbacks, Calls(save, log), *([] if observer is None else [as_callback(observer)])]
        self.release_step()  # it has the callbacks that there were
        started = []
        try:
            self._catch_up()
            for callback in self._told:
                callback.on_start(self)
                started.append(callback)
            self._fit(self._told)
        except NotANumber as error:
            raise Diverged(f"a membrane potential is NaN at step {self._running}") from error
        except NotFinite as error:
            raise Diverged(f"{error} (step {self._running})") from error
        finally:
            self._told = self.callbacks
            self.release_step()
            for callback in started:
                callback.on_end(self)

    def _fit(self, callbacks: Sequence[Callback]) -> None:
        saved = time.monotonic()
        self.model.train()
        while self.epoch < self.epochs:
            begin = time.perf_counter()
            for images, labels in epoch_of(self.train, self.epoch, self.sums.batches, self.data_seed, self.device):
                self._step(images, labels, begin, callbacks)
                # asked once, since a signal may set it at any time, and agreed upon by all processes
                stop, due = self.ranks.sum(any(c.stop_requested for c in callbacks), self._is_due(saved, callbacks))
                if stop or due:
                    self._catch_up()
                    self._require_finite()
                    self._save(callbacks)
                    saved = time.monotonic()
                if stop:
                    raise Interrupted
                begin = time.perf_counter()
            self._catch_up()
            if self.sums.batches != self.steps_per_epoch:
                raise ValueError(
                    f"train: expected {self.steps_per_epoch} batches in an epoch, as its length says, "
                    f"got {self.sums.batches}"
                )
            self._require_finite()
            row = self._finish_epoch()
            self._save(callbacks)
            saved = time.monotonic()
            for callback in callbacks:
                callback.on_epoch(row)

    def _step(self, images: Tensor, labels: Tensor, begin: float, callbacks: Sequence[Callback]) -> None:
        """A batch, from the optimizer's step to the callbacks; ``begin`` is when it was asked for."""
        self._running = self.step + 1
        if not self._unread:
            self._firing.mark()
        self._unread.append((self._running, *self.train_step(images, labels), len(labels)))
        is_update = self.scheduler is not None and self.scheduler.update_is_next
        if not self._waits_for_none or is_update or not self.sums.batches or len(self._unread) >= _LAG:
            self._read()
        event = self.prune_step(images, labels)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self._clock(begin)
        for callback in callbacks:
            if event is not None:
                callback.on_update(event)
            callback.on_batch(self)

    def _read(self) -> None:
        """Add up the steps that were not read yet.

        Raises:
            Diverged: the loss of one is not finite.
        """
        if not self._unread:
            return
        steps, losses, found, sizes = zip(*self._unread, strict=True)
        self._unread = []
        counts = self._firing.layers_since_mark()
        for step, loss, right, size in zip(steps, _values(losses), _values(found), sizes, strict=True):
            layers = counts if step == steps[-1] else {}
            loss, right, samples, *fired = self.ranks.sum(loss, right, size, *itertools.chain(*layers.values()))
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {step}")
            # of a resident batch every process has seen all labels
            samples = int(samples) // (self.ranks.size if is_resident(self.train) else 1)
            self.sums.add(samples, loss, int(right), layers, fired)

    def _clock(self, begin: float) -> None:
        """Count the time since ``begin``, once what was done in it is known."""
        self._seconds += time.perf_counter() - begin
        if not self._unread:
            self.sums.seconds += self._seconds
            self._seconds = 0.0

    def _catch_up(self) -> None:
        """Wait for all steps so far, and add them up."""
        if self._unread:
            begin = time.perf_counter()
            self._read()
            self._clock(begin)

    def _is_due(self, saved: float, callbacks: Sequence[Callback]) -> bool:
        """Whether this process asks for a checkpoint, the last one having been at ``saved``."""
        asking = [callback for callback in callbacks if callback.checkpoint_requested]
        for callback in asking:  # before the state is taken: what is asked for from here on is another one
            callback.checkpoint_requested = False
        return bool(asking) or (self.ranks.is_first and time.monotonic() - saved >= 60 * self.checkpoint_minutes)

    def _save(self, callbacks: Sequence[Callback]) -> None:
        state = self.state()
        for callback in callbacks:
            callback.on_checkpoint(state)

    def _require_finite(self) -> None:
        """Diverged if a parameter or running statistic is not: the loss may be, since NaN silences neurons."""
        for name, value in self.model.state_dict().items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise Diverged(f"{name} is not finite after step {self.step}")

    def evaluate(self, name: str = "test") -> float:
        """Accuracy of :attr:`result` on ``test``, or on ``validation``, in [0, 1].

        Raises:
            ValueError: the trainer was given no such loader, or it gives no batches.
        """
        loader = {"test": self.test, "validation": self.validation}.get(name)
        if loader is None:
            raise ValueError(f"name: expected test or validation, of which the trainer has a loader, got {name!r}")
        own = test_batches(name, loader, self.device, self.ranks)
        hits, seen = self.ranks.sum(*hits_and_seen(self.result, own, self.precision))
        if not seen:
            raise ValueError(f"{name}: expected batches, got none")
        return hits / seen

    def _finish_epoch(self) -> dict[str, Any]:
        """Test what there is now, after the epoch's cuts, and close the epoch's sums."""
        measured = {}
        if self.validation is not None:
            measured["validation_accuracy"] = self.evaluate("validation")
        if self.test is not None and (self.validation is None or self.epoch + 1 == self.epochs):
            measured["test_accuracy"] = self.evaluate()
        before = self.history[-1]["seconds"] if self.history else 0.0
        row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            **self.sums.averages,
            **measured,
            "density": self.density,
            "connectivity": connectivity(self.model) if self.groups else 1.0,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": before + self.sums.seconds,
            "active": {name: group.num_active for name, group in self.groups.items()},
            "firing_rates": self.sums.firing_rates,
        }
        self.epoch += 1
        self.sums = EpochSums()
        self.history.append(row)
        return row

    def state(self) -> dict[str, Any]:
        """Everything the rest of the run depends on, as :mod:`sca.checkpoint` stores it; that of all
        processes, which have to call this together."""
        self._catch_up()
        return states.state_of(self)

    def check_state(self, state: Any) -> None:
        """ValueError unless this is the :meth:`state` of a run with this config (but for what may move, and fewer
        epochs), network and data."""
        states.check_state(self, state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state` of a trainer with the same config, network and data. Where this one has more
        epochs, its learning rates and its pruning plan hold from here on.

        Raises:
            ValueError: the state is that of another run; the message says where it differs, and nothing was changed.
        """
        states.load_state(self, state)
        self._unread, self._seconds = [], 0.0

    def schedule_state(self) -> dict[str, Any] | None:
        """That of torch's learning-rate schedule, if there is one."""
        return self._lr_schedule.state_dict() if isinstance(self._lr_schedule, LRScheduler) else None

    def load_schedule_state(self, state: dict[str, Any] | None) -> None:
        """Give torch's learning-rate schedule its :meth:`schedule_state`."""
        if isinstance(self._lr_schedule, LRScheduler):
            self._lr_schedule.load_state_dict(state)

    def end_with(self, weights: dict[str, Tensor], active: dict[str, Tensor]) -> None:
        """Give the model, at the end of the run, other weights and active channels: those of the average, or of the
        best epoch. The average is let go."""
        states.adopt(self.model, weights, active)
        self.average = None

    @functools.cached_property
    def data_digest(self) -> str | None:
        """Digest of the data set's images and labels; None where ``train`` is no loader of ours."""
        return None if self.dataset is None else self.dataset.digest


def _runs_ahead(device: torch.device) -> bool:
    """Whether a device computes while Python goes on."""
    return device.type == "cuda"


def _values(values: Sequence[float | Tensor]) -> list[float]:
    """Numbers, where they are tensors by one transfer."""
    return torch.stack(values).tolist() if isinstance(values[0], Tensor) else list(values)


def _device_of(model: nn.Module, told: torch.device | str | None) -> torch.device:
    """The model's device; ValueError where another one was told."""
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    if told is None:
        return own
    device = torch.device(told)
    if device.type != own.type or device.index not in (None, own.index):
        raise ValueError(f"device: expected {own}, where the model is, got {str(told)!r}")
    return own


def _checked_schedule(schedule: Any) -> Callable[[float], float] | LRScheduler | None:
    """TypeError unless a learning-rate schedule is one that can be followed."""
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            "lr_schedule: expected one that depends on the step alone, got ReduceLROnPlateau; a callback's on_epoch "
            "can step it with a figure of the row"
        )
    if schedule is not None and not callable(schedule) and not isinstance(schedule, LRScheduler):
        raise TypeError(
            f"lr_schedule: expected a function of the epoch or a schedule of torch, got {type(schedule).__name__}"
        )
    return schedule
