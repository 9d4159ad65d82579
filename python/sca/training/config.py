"""Everything that decides a run, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from .losses import LOSSES

PRECISIONS = ("float32", "bfloat16")
LR_SCHEDULES = ("cosine", "step")
# Fields that a resumed run may change: where its files lie and what computes it.
MOVABLE = ("data_dir", "device", "checkpointing", "checkpoint_minutes")


def check_device(device: str) -> None:
    """ValueError unless torch can use this device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: a torch built without that kind of device
        raise ValueError(f"device: expected one that torch can use here, got {device!r} ({error})") from error


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the recipe of the preset ``fast``.

    Attributes:
        data, data_dir: name in ``sca.data``, and the folder with its files (None = embedded or downloaded).
        limit_train, limit_test: use only the first examples of a split (None = all).
        model, width: name in ``sca.models``, and the factor on its hidden widths.
        time_steps: T.
        neuron, neuron_arguments: kind of neuron, and what its module takes (``tau``, ``surrogate``, ...).
        epochs, batch_size: length of the run; examples per step.
        lr, lr_schedule: peak learning rate; ``cosine`` to 0, or ``step``: divided by 10 every ``lr_step`` epochs.
        warmup: epochs over which the learning rate rises linearly from 0.
        momentum, weight_decay: of SGD; only the weights of convolutions and linear layers decay.
        l1: factor of the L1 subgradient on the weights of convolutions (the paper's sparsity term).
        loss: ``each_step`` (cross-entropy at each time step) or ``mean`` (of the mean logits).
        label_smoothing: of the cross-entropy, in [0, 1).
        augment: whether training images are moved and mirrored.
        density: final density in (0, 1]; 1 = nothing is pruned.
        target: what density is a share of: ``channels``, ``parameters`` or ``synops``.
        schedule, allocation, criterion, regrow_fraction, regrow_schedule, min_channels, round_to: of
            :class:`sca.SCAScheduler`.
        prune_start, prune_stop: first and last update, as shares of the run.
        prune_interval: epochs between updates; less where the run is too short for 8 updates.
        reference: what the pruned network is compared with: ``train`` (the same architecture trained alike without
            pruning, in the run's folder ``dense``), the folder of such a run, or None (the dense network's speed alone
            is measured).
        precision: ``float32`` or ``bfloat16`` (autocast).
        checkpointing: compute activations again in the backward pass, block by block, in place of keeping them.
        checkpoint_minutes: a long epoch writes a checkpoint whenever so much time has passed since the last one.
        seed, device: of everything random; a torch device.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    data: str = "cifar10"
    data_dir: str | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    model: str = "vgg16"
    width: float = 1.0
    time_steps: int = 4
    neuron: str = "lif"
    neuron_arguments: dict[str, Any] = field(
        default_factory=lambda: {"tau": 4 / 3, "surrogate": "piecewise_quadratic", "detach_reset": True}
    )
    epochs: int = 100
    batch_size: int = 64
    lr: float = 0.1
    lr_schedule: str = "cosine"
    lr_step: float = 100
    warmup: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    l1: float = 0.0
    loss: str = "each_step"
    label_smoothing: float = 0.1
    augment: bool = True
    density: float = 0.3
    target: str = "channels"
    schedule: str = "cubic"
    allocation: str = "global"
    criterion: str = "sca"
    regrow_fraction: float = 0.3
    regrow_schedule: str = "cosine"
    min_channels: int | None = None
    round_to: int = 1
    prune_start: float = 0.05
    prune_stop: float = 0.6
    prune_interval: float = 1.0
    reference: str | None = None
    precision: str = "float32"
    checkpointing: bool = False
    checkpoint_minutes: float = 10.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        for name in ("time_steps", "epochs", "batch_size"):
            check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "lr_step", "prune_interval", "width", "checkpoint_minutes"):
            check(name, getattr(self, name) > 0, "a number > 0")
        for name in ("warmup", "momentum", "weight_decay", "l1", "seed"):
            check(name, getattr(self, name) >= 0, "a number >= 0")
        check("density", 0 < self.density <= 1, "a share in (0, 1]")
        check("regrow_fraction", 0 <= self.regrow_fraction < 1, "a share in [0, 1)")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "a number in [0, 1)")
        check("prune_start", 0 <= self.prune_start < self.prune_stop, "a share of the run, in [0, prune_stop)")
        check("prune_stop", self.prune_stop <= 1, "a share of the run, at most 1")
        check_device(self.device)
        for name, known in (("loss", tuple(LOSSES)), ("precision", PRECISIONS), ("lr_schedule", LR_SCHEDULES)):
            check(name, getattr(self, name) in known, f"one of {', '.join(known)}")

    @classmethod
    def from_preset(cls, preset: str | None = None, **changes: Any) -> TrainConfig:
        """A preset with changes; without a name, the preset of the data set if it has one, else ``fast``.

        Raises:
            ValueError: unknown preset or field, or a value out of range.
        """
        data = changes.get("data", "digits")
        name = preset or (data if data in PRESETS else "fast")
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        return cls(**{"data": data} | PRESETS[name]).changed(**changes)

    def changed(self, **changes: Any) -> TrainConfig:
        """A copy with some fields replaced.

        Raises:
            ValueError: unknown field, or a value out of range.
        """
        unknown = changes.keys() - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: expected one of {', '.join(f.name for f in fields(self))}")
        return replace(self, **changes)

    def differing(self, held: dict[str, Any]) -> list[str]:
        """Fields, :data:`MOVABLE` ones aside, that have another value in ``held``, a :meth:`to_dict`."""
        own = self.to_dict()
        return [name for name in own if name not in MOVABLE and name in held and held[name] != own[name]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    # Li et al., ICML 2024, section 5: one setting for all of its networks
    "paper": {
        "neuron": "if",
        "neuron_arguments": {"surrogate": "sigmoid", "alpha": 4.0, "detach_reset": True},
        "epochs": 300,
        "batch_size": 64,
        "lr": 0.01,
        "lr_schedule": "step",
        "warmup": 0.0,
        "weight_decay": 0.0,
        "l1": 3e-5,
        "loss": "mean",
        "label_smoothing": 0.0,
        "schedule": "constant",
        "regrow_schedule": "constant",
        "min_channels": 0,
        "prune_start": 0.0,
    },
    # Two minutes on two cores, its dense twin included. Every layer to the same density: the early layers, which a
    # global ranking leaves wide, take most of the time at this image size.
    "digits": {
        "model": "vgg9",
        "width": 0.5,
        "epochs": 24,
        "lr": 0.2,
        "density": 0.5,
        "allocation": "layer",
        "prune_start": 0.15,
        "reference": "train",
    },
}
