"""Everything that decides a run, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from ..registry import lookup, nearest
from .losses import LOSSES

PRECISIONS = ("float32", "bfloat16")
LR_SCHEDULES = ("cosine", "step")
# Fields that a resumed run may change: where its files lie and what computes it.
MOVABLE = ("data_dir", "device", "checkpointing", "checkpoint_minutes", "compile")
FLIPS = ("alternating", "random")


def check_device(device: str) -> None:
    """ValueError unless torch can use this device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: a torch built without that kind of device
        raise ValueError(f"device: expected one that torch can use here, got {device!r} ({error})") from error


def fast_precision(device: str) -> str:
    """``bfloat16`` on a CUDA device that has arithmetic for it, else ``float32``."""
    has_it = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the recipe of the preset ``fast``.

    Attributes:
        data, data_dir: name in ``sca.data``, and the folder with its files (None = embedded or downloaded).
        limit_train, limit_test: use only the first examples of a split (None = all).
        model, width: name in ``sca.models``, and the factor on its hidden widths.
        stem, prune_stream: of residual networks, see :class:`sca.models.residual.ResidualNetwork`.
        time_steps: T.
        neuron, neuron_arguments: kind of neuron, and what its module takes (``tau``, ``surrogate``, ...).
        epochs, batch_size: length of the run; examples per step.
        lr, lr_schedule: peak learning rate; ``cosine`` to 0, or ``step``: divided by 10 every ``lr_step`` epochs.
        warmup: epochs over which the learning rate rises linearly from 0.
        momentum, weight_decay: of SGD; only the weights of convolutions and linear layers decay.
        l1: factor of the L1 subgradient on the weights of convolutions (the paper's sparsity term).
        loss: ``each_step`` (cross-entropy at each time step) or ``mean`` (of the mean logits).
        label_smoothing: of the cross-entropy, in [0, 1).
        augment: whether training images are moved, mirrored and cut as follows; by how much, the data set says.
        flip: ``alternating`` (a half of the images is mirrored in one epoch, the other half in the next) or ``random``.
        cutout: side of the square that is cut out of each training image, in pixels; 0 for none.
        density: final density in (0, 1]; 1 = nothing is pruned.
        target: what density is a share of: ``channels``, ``parameters`` or ``synops``.
        schedule, allocation, criterion, regrow, regrow_fraction, regrow_schedule, regrow_pruned, regrow_init,
            min_channels, round_to: of :class:`sca.SCAScheduler`.
        prune_start, prune_stop: first and last update, as shares of the run.
        prune_interval: epochs between updates; less where the run is too short for 8 updates.
        reference: what the pruned network is compared with: ``train`` (the same architecture trained alike without
            pruning, in the run's folder ``dense``), the folder of such a run, or None (the dense network's speed alone
            is measured).
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``, which becomes :func:`fast_precision`.
        checkpointing: compute activations again in the backward pass, block by block, in place of keeping them.
        compile: run training steps through torch.compile; a new structure may compile anew.
        checkpoint_minutes: a long epoch writes a checkpoint whenever so much time has passed since the last one.
        seed, device: of everything random; a torch device.

    Raises:
        ValueError: a value is of another type or out of range; the message names the field.
    """

    data: str = "cifar10"
    data_dir: str | None = None
    limit_train: int | None = None
    limit_test: int | None = None
    model: str = "vgg16"
    width: float = 1.0
    stem: str | None = None
    prune_stream: bool = False
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
    flip: str = "alternating"
    cutout: int = 8
    density: float = 0.3
    target: str = "channels"
    schedule: str = "cubic"
    allocation: str = "global"
    criterion: str = "sca"
    regrow: str = "bn_gamma"
    regrow_fraction: float = 0.3
    regrow_schedule: str = "cosine"
    regrow_pruned: bool = False
    regrow_init: str = "keep"
    min_channels: int | None = None
    round_to: int = 1
    prune_start: float = 0.05
    prune_stop: float = 0.6
    prune_interval: float = 1.0
    reference: str | None = None
    precision: str = "auto"
    checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float = 10.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, _typed(name, getattr(self, name)))

        def check(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        for name in ("time_steps", "epochs", "batch_size"):
            check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "lr_step", "prune_interval", "width", "checkpoint_minutes"):
            check(name, getattr(self, name) > 0, "a number > 0")
        for name in ("warmup", "momentum", "weight_decay", "l1", "cutout", "seed"):
            check(name, getattr(self, name) >= 0, "a number >= 0")
        check("density", 0 < self.density <= 1, "a share in (0, 1]")
        check("regrow_fraction", 0 <= self.regrow_fraction < 1, "a share in [0, 1)")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "a number in [0, 1)")
        check("prune_start", 0 <= self.prune_start < self.prune_stop, "a share of the run, in [0, prune_stop)")
        check("prune_stop", self.prune_stop <= 1, "a share of the run, at most 1")
        check_device(self.device)
        if self.precision == "auto":
            object.__setattr__(self, "precision", fast_precision(self.device))
        known = {"loss": LOSSES, "precision": PRECISIONS, "lr_schedule": LR_SCHEDULES, "flip": FLIPS}
        for name, values in known.items():
            lookup(dict.fromkeys(values), getattr(self, name), name)

    @classmethod
    def from_preset(cls, preset: str | None = None, **changes: Any) -> TrainConfig:
        """A preset with changes; without a name, the preset of the data set if it has one, else ``fast``.

        Raises:
            ValueError: unknown preset or field, or a value out of range.
        """
        data = changes.get("data", "digits")
        name = preset or (data if data in PRESETS else "fast")
        _refuse_unknown(changes)
        return cls(**{"data": data} | lookup(PRESETS, name, "preset") | changes)

    def changed(self, **changes: Any) -> TrainConfig:
        """A copy with some fields replaced.

        Raises:
            ValueError: unknown field, or a value out of range.
        """
        _refuse_unknown(changes)
        return replace(self, **changes)

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What :func:`sca.models.build` takes from here; those of residual networks where they are set."""
        residual = {"stem": self.stem, "prune_stream": self.prune_stream}
        return {
            "time_steps": self.time_steps,
            "width": self.width,
            "neuron": self.neuron,
            "checkpointing": self.checkpointing,
            **{name: value for name, value in residual.items() if value},
            **self.neuron_arguments,
        }

    def differing(self, held: dict[str, Any]) -> list[str]:
        """Fields, :data:`MOVABLE` ones aside, that have another value in ``held``, a :meth:`to_dict`."""
        own = self.to_dict()
        return [name for name in own if name not in MOVABLE and name in held and held[name] != own[name]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _refuse_unknown(changes: dict[str, Any]) -> None:
    """ValueError that names the first field which there is not."""
    known = TrainConfig.__dataclass_fields__
    for name in changes:
        if name not in known:
            all_of_them = f": {', '.join(known)}"
            raise ValueError(f"{name}: expected a field of the configuration{nearest(name, known) or all_of_them}")


def field_types(name: str) -> tuple[type, ...]:
    """What a field may hold; none for an unknown name."""
    hint = get_type_hints(TrainConfig).get(name)
    return tuple(get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))


def _typed(name: str, value: Any) -> Any:
    """The value as the field's type (an int as a float where that is asked); ValueError where it is of another."""
    types = field_types(name)
    if float in types and type(value) is int:
        return float(value)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join("none" if kind is NoneType else kind.__name__ for kind in types)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


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
        "flip": "random",
        "cutout": 0,
        "precision": "float32",
        "schedule": "constant",
        "regrow_fraction": 0.1,  # our choice of its q: a share of all channels, which must stay well below those kept
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
        "cutout": 0,
        "density": 0.5,
        "allocation": "layer",
        "min_channels": 4,
        "prune_start": 0.15,
        "reference": "train",
    },
}
