"""The training loop: one object that holds all state of a run, steps it, and gives the state out and takes it back."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sca_kernels.functional import NotANumber

from .. import checkpoint
from ..cost import connectivity, density
from ..data import Dataset
from ..models import build
from ..pruning import NotFinite, SCAScheduler
from ..structure.groups import find_groups
from .config import TrainConfig, check_compile
from .distributed import Ranks, set_norm_group
from .firing import FiringRate
from .losses import LOSSES
from .metrics import correct, hits_and_seen
from .precision import autocast

# A run too short for so many updates prunes more often than told: a single cut is no way to the final density. (The
# constant schedule is there from the first.)
MIN_UPDATES = 8


class Interrupted(Exception):
    """The observer asked to stop; the state is as after a finished step."""


class Diverged(Exception):
    """The loss or a parameter is NaN or infinite; the message says which, and when. Nothing of it has been saved."""


class Observer(Protocol):
    """What watches a run."""

    stop_requested: bool

    def on_start(self, trainer: Trainer) -> None:
        """Called before the first batch of a run or of its resumption."""

    def on_batch(self, trainer: Trainer) -> None:
        """Called after each optimizer step."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Called after each epoch with its line of the log."""


@dataclass
class EpochSums:
    """What an unfinished epoch has added up so far; ``spikes`` and ``positions`` by neuron layer."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    spikes: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def fired(self, layers: Iterable[str], counts: Sequence[float]) -> None:
        """Add the spikes and positions of neuron layers, by turns in ``counts``."""
        for name, spikes, positions in zip(layers, counts[::2], counts[1::2], strict=True):
            self.spikes[name] = self.spikes.get(name, 0) + int(spikes)
            self.positions[name] = self.positions.get(name, 0) + int(positions)

    @property
    def averages(self) -> dict[str, float]:
        """Per sample, per position, per second."""
        return {
            "loss": self.loss / self.samples,
            "train_accuracy": self.correct / self.samples,
            "firing_rate": sum(self.spikes.values()) / max(1, sum(self.positions.values())),
            "samples_per_second": self.samples / self.seconds,
        }

    @property
    def firing_rates(self) -> dict[str, float]:
        """Per neuron layer."""
        return {name: spikes / max(1, self.positions[name]) for name, spikes in self.spikes.items()}


class Trainer:
    """A model, its optimizer and its pruning schedule, trained by :meth:`fit`.

    Two trainers of the same config and data on the same CPU and number of threads go through bit-equal states; so does
    one that was stopped after any step and resumed from :meth:`state`.

    Args:
        config: what to do.
        dataset: moved to ``config.device``.
        ranks: the processes that train together. Each has a part of every batch, of the same batches that one process
            alone would see; history and states are those of the whole.

    Attributes:
        batch_size: images per step on this process, of the ``config.batch_size`` of all.
        model, optimizer, scheduler: scheduler is None when nothing is pruned (density 1).
        groups: the model's channel groups by name.
        epoch: number of finished epochs.
        sums: of the running epoch.
        history: one row per finished epoch, as in the log.

    Raises:
        ValueError: an argument of the model is out of range; the batch is no multiple of the processes.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, ranks: Ranks | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.ranks = ranks or Ranks()
        self.ranks.check_batches(config.batch_size, len(dataset.train))
        self.batch_size = config.batch_size // self.ranks.size
        self.dataset = dataset.to(config.device)
        self.model = build(
            config.model,
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            image_size=dataset.image_size,
            **config.model_arguments,
        ).to(config.device)
        self.groups = {name: members.group for name, members in find_groups(self.model).items()}
        convolutions = [module for module in self.model.modules() if isinstance(module, nn.Conv2d)]
        decayed = [layer.weight for layer in convolutions]
        others = [p for p in self.model.parameters() if all(p is not weight for weight in decayed)]
        self._l1_weights = [layer.weight for layer in convolutions if config.l1 and layer.kernel_size == (3, 3)]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            momentum=config.momentum,
            # On CPUs torch's fused step copies what is channels_last, and is slower for it.
            fused=torch.device(config.device).type == "cuda",
        )
        self.steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
        self.scheduler = self._new_scheduler() if config.density < 1 else None
        self._firing = FiringRate(self.model)
        self._check_last_batch()
        if config.compile:
            check_compile(config.device)
        self._network = self._new_network()
        self.epoch = 0
        self.sums = EpochSums()
        self.history: list[dict[str, Any]] = []

    def _check_last_batch(self) -> None:
        """ValueError if an epoch has a batch of one image, of one time step, in which some batch norm would have a
        single value for each channel, and no variance."""
        size, samples = self.config.batch_size, len(self.dataset.train)
        last = samples % size or size
        if last * self.config.time_steps > 1:
            return
        image = next(self.dataset.train_batches(1, seed=0, epoch=0, augment=False))[0]
        try:
            copy.deepcopy(self.model).train()(image)
        except ValueError as error:
            raise ValueError(
                f"batch_size: expected no batch of one image at time_steps = 1, where a batch norm has one value for "
                f"each channel; {samples} images in batches of {size} leave one: take another size, or limit_train"
            ) from error

    def _new_scheduler(self) -> SCAScheduler:
        config = self.config
        first, last = config.prune_start * config.epochs, config.prune_stop * config.epochs
        longest = float(config.epochs) if config.schedule == "constant" else (last - first) / MIN_UPDATES
        interval = min(config.prune_interval, longest)
        if interval.is_integer():  # in whole epochs, at their ends
            first = max(1, round(first))
            last = max(first, round(last))
        steps = {"start": first, "stop": last, "interval": interval}
        scheduler = SCAScheduler(
            self.model,
            self.optimizer,
            **{name: max(1, round(epochs * self.steps_per_epoch)) for name, epochs in steps.items()},
            **config.plan_arguments,
        )
        least = scheduler.least_share
        if least is not None and least > config.density + 1e-6:
            raise ValueError(
                f"density: expected at least {least:.4f} of {config.target}, which min_channels and round_to keep, "
                f"got {config.density}"
            )
        return scheduler

    @property
    def step(self) -> int:
        """Number of finished optimizer steps."""
        return self.epoch * self.steps_per_epoch + self.sums.batches

    @property
    def density(self) -> float:
        """Active / all channels of the prunable groups."""
        return density(self.groups.values())

    @property
    def updates(self) -> list[dict[str, Any]]:
        """What every pruning update did: :meth:`sca.pruning.PruneEvent.record`."""
        return [] if self.scheduler is None else self.scheduler.history

    def leave_ranks(self) -> None:
        """Go on alone: :meth:`train_step` takes whole batches of ``batch_size``."""
        if self.ranks.size > 1:
            self.ranks = Ranks()
            set_norm_group(self.model, None)
            self._network = self._new_network()

    def _new_network(self) -> nn.Module:
        """What a training step calls."""
        network = self.ranks.wrap(self.model)
        return torch.compile(network) if self.config.compile else network

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Forward pass: the loss, and logits ``[T, N, classes]``."""
        with autocast(self.config.precision, self.config.device):
            logits = network(images)
            return LOSSES[self.config.loss](logits, labels, self.config.label_smoothing), logits

    def train_step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """One optimizer step.

        Args:
            images, labels: the batch of all processes.

        Returns:
            The loss, and how many of the batch were predicted: this process's summands.
        """
        images, labels, part = self.ranks.share(images, labels)
        rate = learning_rate(self.config, self.step / self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, logits = self.loss(self._network, images, labels)
        (loss * part).backward()  # and a mean over the processes
        for weight in self._l1_weights:
            weight.grad.add_(weight.detach().sign(), alpha=self.config.l1)
        self.optimizer.step()
        return loss.item() * part / self.ranks.size, correct(logits.detach(), labels)

    def prune_step(self, images: Tensor, labels: Tensor) -> None:
        """Tell the pruning schedule that an optimizer step is done; at an update it probes on this batch."""
        if self.scheduler is not None:
            if self.scheduler.wants_probe:
                images, labels, part = self.ranks.share(images, labels)
                self.scheduler.probe(lambda: self.loss(self.model, images, labels)[0] * (part / self.ranks.size))
            self.scheduler.step()

    def fit(
        self, observer: Observer, save: Callable[[dict[str, Any]], None], log: Callable[[dict[str, Any]], None]
    ) -> None:
        """Train to the end of the run.

        Args:
            observer: told about batches and epochs; asked after each batch whether to stop.
            save: given :meth:`state` after each epoch, whenever ``checkpoint_minutes`` have passed, and before an
                interrupt.
            log: given each epoch's row, when that epoch has been saved.

        Raises:
            Interrupted: the observer asked to stop; the state has been saved.
            Diverged: the loss, a potential, a score or a parameter is not finite; no such state has been saved.
        """
        try:
            self._fit(observer, save, log)
        except NotANumber as error:
            raise Diverged(f"a membrane potential is NaN at step {self.step + 1}") from error
        except NotFinite as error:
            raise Diverged(f"{error} (step {self.step + 1})") from error

    def _fit(
        self, observer: Observer, save: Callable[[dict[str, Any]], None], log: Callable[[dict[str, Any]], None]
    ) -> None:
        config = self.config
        saved = time.monotonic()
        observer.on_start(self)
        self.model.train()
        while self.epoch < config.epochs:
            batches = self.dataset.train_batches(
                config.batch_size,
                seed=config.seed,
                epoch=self.epoch,
                start=self.sums.batches,
                augment=config.augment,
                flip=config.flip,
                cutout=config.cutout,
            )
            begin = time.perf_counter()
            for images, labels in batches:
                self._firing.mark()
                loss, hits = self.train_step(images, labels)
                counts = self._firing.layers_since_mark()
                loss, hits, *fired = self.ranks.sum(loss, hits, *itertools.chain(*counts.values()))
                if not math.isfinite(loss):
                    raise Diverged(f"the loss is {loss} at step {self.step + 1}")
                self.prune_step(images, labels)
                sums = self.sums
                sums.batches += 1
                sums.samples += len(labels)
                sums.loss += loss * len(labels)
                sums.correct += int(hits)
                sums.fired(counts, fired)
                sums.seconds += time.perf_counter() - begin
                observer.on_batch(self)
                due = self.ranks.is_first and time.monotonic() - saved >= 60 * config.checkpoint_minutes
                # asked once, since a signal may set it at any time, and agreed upon by all processes
                stop, due = self.ranks.sum(observer.stop_requested, due)
                if stop or due:
                    self._require_finite()
                    save(self.state())
                    saved = time.monotonic()
                if stop:
                    raise Interrupted
                begin = time.perf_counter()
            self._require_finite()
            row = self._finish_epoch()
            save(self.state())
            saved = time.monotonic()
            log(row)
            observer.on_epoch(row)

    def _require_finite(self) -> None:
        """Diverged if a parameter or running statistic is not: the loss may be, since NaN silences neurons."""
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise Diverged(f"{name} is not finite after step {self.step}")

    def _finish_epoch(self) -> dict[str, Any]:
        """Test what there is now, after the epoch's cuts, and close the epoch's sums."""
        batches = self.dataset.test_batches(4 * self.batch_size)
        own = itertools.islice(batches, self.ranks.rank, None, self.ranks.size)
        hits, seen = self.ranks.sum(*hits_and_seen(self.model, own, self.config.precision))
        before = self.history[-1]["seconds"] if self.history else 0.0
        row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            **self.sums.averages,
            "test_accuracy": hits / seen,
            "density": self.density,
            "connectivity": connectivity(self.model),
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
        is_cuda = torch.device(self.config.device).type == "cuda"
        return {
            "config": self.config.to_dict(),
            "data": self.data_digest,
            "architecture": self.model.config,
            "active": {name: group.active for name, group in self.groups.items()},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.ranks.joint_state(self.scheduler.state_dict()),
            "epoch": self.epoch,
            "sums": asdict(self.sums),
            "history": list(self.history),
            "random_state": torch.get_rng_state(),
            "cuda_random_state": torch.cuda.get_rng_state(self.config.device) if is_cuda else None,
        }

    @functools.cached_property
    def data_digest(self) -> str:
        """Digest of the data set's images and labels."""
        splits = {"train": self.dataset.train, "test": self.dataset.test}
        tensors = {
            f"{name}.{kind}": getattr(s, kind).cpu() for name, s in splits.items() for kind in ("images", "labels")
        }
        return checkpoint.digest(tensors, self.dataset.name)

    def check_state(self, state: Any) -> None:
        """ValueError unless this is the :meth:`state` of a run with this config (but for what may move) and data."""
        if not isinstance(state, dict) or not {"config", "data", "epoch"} <= state.keys():
            raise ValueError("expected the state of a run, got something else")
        epoch, history = state["epoch"], state.get("history")
        if type(epoch) is not int or not isinstance(history, list) or not 0 <= epoch == len(history):
            raise ValueError("expected as many rows of history as epochs")
        held, own = state["config"], self.config.to_dict()
        differing = [f"{name} {held[name]!r}, not {own[name]!r}" for name in self.config.differing(held)]
        if differing:
            raise ValueError(f"it is of a run with {', '.join(differing)}")
        if state["data"] != self.data_digest:
            raise ValueError(f"data: it is of a run on other images or labels than these of {self.dataset.name}")

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state` of a trainer with the same config and data.

        Raises:
            ValueError: the state is that of another run; the message says where it differs, and nothing was changed.
        """
        self.check_state(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(self.ranks.own_state(state["scheduler"]))
        self.epoch = state["epoch"]
        self.sums = EpochSums(**state["sums"])
        self.history = state["history"]
        torch.set_rng_state(state["random_state"])
        if state["cuda_random_state"] is not None and torch.device(self.config.device).type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random_state"], self.config.device)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch: linear warm-up, then cosine to 0 or division by 10 every ``lr_step``
    epochs."""
    if epoch < config.warmup:
        return config.lr * min(1.0, (epoch + 1e-3) / config.warmup)
    if config.lr_schedule == "step":
        return config.lr * 0.1 ** math.floor(min(400.0, epoch / config.lr_step))  # 0.1 ** 400 is 0
    progress = (epoch - config.warmup) / max(1e-9, config.epochs - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
