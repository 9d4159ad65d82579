"""A trainer's parts, made of a configuration and a data set: what ``sca train`` trains."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..data.policies import require_policy
from ..models import build
from ..pruning import SCAScheduler
from .callbacks import AnalogStart, L1Penalty, TimeGrowth
from .config import TrainConfig
from .distributed import Ranks
from .freezing import frozen_modules
from .learning_rate import schedule_of
from .losses import LOSSES
from .weights import start_from

__all__ = ["assembled"]

# A run too short for so many updates prunes more often than told: a single cut is no way to the final density. (The
# constant schedule is there from the first.)
MIN_UPDATES = 8


def assembled(config: TrainConfig, dataset: Dataset, ranks: Ranks, weights: bool) -> dict[str, Any]:
    """The arguments of :class:`Trainer`.

    Args:
        config, dataset, ranks, weights: see :meth:`Trainer.from_config`.

    Raises:
        ValueError, ImportError: see there.
    """
    torch.manual_seed(config.seed)
    dataset = dataset.held_out(config.validation, config.seed)
    if config.policy is not None:
        require_policy(config.policy, dataset.in_channels)
    dataset = dataset.to(config.device)
    model = build(
        config.model,
        num_classes=dataset.num_classes,
        in_channels=dataset.in_channels,
        image_size=dataset.image_size,
        **config.model_arguments,
    ).to(config.device)
    if weights and config.weights is not None:
        start_from(model, config.weights, ranks)
    frozen_modules(model, config.freeze)
    optimizer = _optimizer(model, config)
    train = dataset.train_loader(config.batch_size, seed=config.seed, **config.augmentation)
    scheduler = _scheduler(model, optimizer, config, len(train)) if config.density < 1 else None
    _check_last_batch(model, dataset, config)
    steps = config.epochs * len(train)
    pulled = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    test_size = 4 * (config.batch_size // ranks.size)
    return {
        "model": model,
        "optimizer": optimizer,
        "train": train,
        # where the best epoch is kept, it is the one to be tested, by the run's summary
        "test": None if config.keep_best else dataset.loader("test", test_size),
        "validation": dataset.loader("validation", test_size) if config.validation else None,
        "loss": functools.partial(LOSSES[config.loss], label_smoothing=config.label_smoothing),
        "scheduler": scheduler,
        "epochs": config.epochs,
        "lr_schedule": schedule_of(config),
        "callbacks": [
            *([L1Penalty(pulled, config.l1)] if config.l1 else []),
            *([_time_growth(config, dataset)] if config.time_growth else []),
            *([AnalogStart(*(share * steps for share in config.analog_start))] if config.analog_start else []),
        ],
        "precision": config.precision,
        "freeze": config.freeze,
        "ema": config.ema,
        "compile": config.compile,
        "graph": config.graph == "on",
        "checkpoint_minutes": config.checkpoint_minutes,
        "ranks": ranks,
    }


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD that lets the weights of convolutions decay, and nothing else."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    decayed = [weight for weight in weights if weight.requires_grad]
    others = [p for p in model.parameters() if p.requires_grad and all(p is not weight for weight in weights)]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        momentum=config.momentum,
        # On CPUs torch's fused step copies what is channels_last, and is slower for it.
        fused=torch.device(config.device).type == "cuda",
    )


def _scheduler(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> SCAScheduler:
    first, last = config.prune_start * config.epochs, config.prune_stop * config.epochs
    longest = float(config.epochs) if config.schedule == "constant" else (last - first) / MIN_UPDATES
    interval = min(config.prune_interval, longest)
    if interval.is_integer():  # in whole epochs, at their ends
        first = max(1, round(first))
        last = max(first, round(last))
    steps = {"start": first, "stop": last, "interval": interval}
    scheduler = SCAScheduler(
        model,
        optimizer,
        **{name: max(1, round(epochs * steps_per_epoch)) for name, epochs in steps.items()},
        **config.plan_arguments,
    )
    least = scheduler.least_share
    if least is not None and least > config.density + 1e-6:
        raise ValueError(
            f"density: expected at least {least:.4f} of {config.target}, which min_channels and round_to keep, "
            f"got {config.density}"
        )
    return scheduler


def _time_growth(config: TrainConfig, dataset: Dataset) -> TimeGrowth:
    if dataset.time_steps is not None:
        raise ValueError(
            f"time_growth: expected none for {config.data}, whose recordings have a frame for each time step, "
            f"got {config.time_growth!r}"
        )
    last = config.epochs - 1  # has all time steps
    return TimeGrowth(config.time_steps, [min(last, round(share * config.epochs)) for share in config.time_growth])


def _check_last_batch(model: nn.Module, dataset: Dataset, config: TrainConfig) -> None:
    """ValueError if an epoch has a batch of one image, of one time step, at first at least, in which some batch norm
    would have a single value for each channel, and no variance."""
    size, samples = config.batch_size, len(dataset.train)
    last = samples % size or size
    first_steps = config.time_steps // 2 ** len(config.time_growth)
    if last * first_steps > 1:
        return
    image = next(dataset.train_batches(1, seed=0, epoch=0, augment=False))[0]
    network = copy.deepcopy(model).train()
    if config.time_growth:
        network.time_steps = first_steps
    try:
        network(image)
    except ValueError as error:
        raise ValueError(
            f"batch_size: expected no batch of one image at time_steps = 1, where a batch norm has one value for "
            f"each channel; {samples} images in batches of {size} leave one: take another size, or limit_train"
        ) from error
