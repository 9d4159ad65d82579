"""Everything that decides a run, and the presets."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, field, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from sca_kernels import doctor

from ..data import DATASETS, POLICIES
from ..models import MODELS
from ..models.parts import check_neuron
from ..models.residual import STEMS
from ..pruning.schedule import Plan
from ..registry import lookup, nearest
from .losses import LOSSES

PRECISIONS = ("float32", "bfloat16")
LR_SCHEDULES = ("cosine", "step")
# Fields that a resumed run may change: where its files lie and what computes it.
MOVABLE = ("data_dir", "device", "checkpointing", "checkpoint_minutes", "compile", "tensorboard")
FLIPS = ("alternating", "random")
# What a stored run must say: without it, defaults would make another network of it, on other data.
ESSENTIAL = ("data", "model", "width", "time_steps", "neuron", "neuron_arguments", "epochs", "batch_size", "density")
# Fields that are settings of the pruning schedule, under the same names.
_PLAN = (
    *("density", "target", "schedule", "allocation", "criterion", "regrow", "regrow_fraction", "regrow_schedule"),
    *("regrow_pruned", "regrow_init", "min_channels", "round_to", "seed"),
)
#: The largest seed: the largest integer that torch's generators, JSON and TOML all take.
MAX_SEED = 2**63 - 1
#: What is larger is a slip of the pen, which would end in an overflow, or in no memory.
MAX_COUNT, MAX_TIME_STEPS, MAX_WIDTH, MAX_FACTOR = 2**31 - 1, 2**16, 1e3, 1e30


def check_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, above: float | None = None
) -> None:
    """ValueError, naming ``name``, unless ``low <= value <= high`` (and ``value > above``). NaN is in no range."""
    if above is not None and not value > above:
        raise ValueError(f"{name}: expected a number > {above:g}, got {value!r}")
    if not value >= low:
        raise ValueError(f"{name}: expected at least {low}, got {value!r}")
    if not value <= high:
        raise ValueError(f"{name}: expected at most {high:,}, got {value!r}")


def check_device(device: str) -> None:
    """ValueError unless torch can compute on this device here."""
    try:
        torch.zeros(1, device=device).item()  # "meta" has tensors, and no numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # those torch was not built with, or does not know
        (reason, *_) = str(error).splitlines() or [""]
        raise ValueError(f"device: expected one that torch can use here, got {device!r} ({reason})") from error


def check_compile(device: str) -> None:
    """ValueError unless torch.compile works for this device here."""
    problem = doctor.compile_problem(device)
    if problem is not None:
        raise ValueError(
            f"compile: torch.compile does not work here ({problem}); install a C++ compiler (g++), or leave "
            "--compile out"
        )


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
    policy: str | None = None
    """Augmentation policy between moving and cutting: ``autoaugment``, ``randaugment`` or ``trivialaugment`` (kornia,
    the extra ``augment``); None for none. Without ``augment`` nothing is changed."""
    validation: int = 0
    """Training images held out, chosen by ``seed``: each epoch is measured on them, the test images are looked at once,
    at the end. 0: each epoch is measured on the test images."""
    keep_best: bool = False
    """Whether the run ends with the epoch that was best on the validation images, and not with the last one."""
    weights: str | None = None
    """Folder of a run, or a file of it, whose weights and active channels the run starts from; None for fresh ones. Of
    the layers only those begin anew whose size is the number of classes, where that is another one."""
    freeze: list[str] = field(default_factory=list)
    """Name patterns (``features.0``, ``features.[12].*``) of modules whose parameters are not trained and whose batch
    norms keep their statistics; they are pruned like all others."""
    ema: float = 0.0
    """Decay at each step of a running average of the weights, in [0, 1): the average is what is tested and saved as the
    result. 0 for none."""
    tensorboard: bool = False
    """Whether the epochs are also written for TensorBoard, into the run's folder ``tensorboard`` (the extra
    ``tensorboard``)."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, _typed(name, getattr(self, name)))

        def check(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

        for name, bounds in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, **bounds)
        check("density", 0 < self.density <= 1, "a share in (0, 1]")
        check("regrow_fraction", 0 <= self.regrow_fraction < 1, "a share in [0, 1)")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "a number in [0, 1)")
        check("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        check("ema", 0 <= self.ema < 1, "a decay in [0, 1)")
        check("keep_best", not self.keep_best or self.validation > 0, "false where validation is 0")
        check("freeze", all(isinstance(pattern, str) for pattern in self.freeze), "name patterns")
        check("prune_stop", 0 < self.prune_stop <= 1, "a share of the run, in (0, 1]")
        check("prune_start", 0 <= self.prune_start < self.prune_stop, "a share of the run, in [0, prune_stop)")
        lookup(DATASETS, self.data, "data")
        lookup(MODELS, self.model, "model")
        if self.policy is not None:
            lookup(POLICIES, self.policy, "policy")
        if self.stem is not None:
            lookup(STEMS, self.stem, "stem")
        Plan(start=1, stop=1, interval=1, **self.plan_arguments)  # refuses what the schedule would
        check_neuron(self.neuron, self.neuron_arguments)
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

    @classmethod
    def from_dict(cls, values: Any, **changes: Any) -> TrainConfig:
        """The configuration that :meth:`to_dict` was made of, with changes; fields that a run of an earlier version
        lacks have their defaults.

        Raises:
            ValueError: it is none, lacks a field that says what the run is, has an unknown one, or a value out of
                range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"expected the fields of a configuration, got {type(values).__name__}")
        for name in ESSENTIAL:
            if name not in values:
                raise ValueError(f"{name}: expected in the configuration of a run, got nothing")
        values = {**values, **changes}
        _refuse_unknown(values)
        return cls(**values)

    @property
    def plan_arguments(self) -> dict[str, Any]:
        """What :class:`sca.SCAScheduler` takes from here."""
        return {name: getattr(self, name) for name in _PLAN}

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


_COUNT, _POSITIVE = {"low": 1, "high": MAX_COUNT}, {"above": 0}
# Field -> its range; None, where a field may be that, is outside of it.
_BOUNDS: dict[str, dict[str, float]] = {
    "time_steps": {"low": 1, "high": MAX_TIME_STEPS},
    **dict.fromkeys(("epochs", "batch_size", "limit_train", "limit_test", "round_to"), _COUNT),
    **{name: {**_COUNT, "low": 0} for name in ("min_channels", "cutout", "validation")},
    "width": {"above": 0, "high": MAX_WIDTH},
    "lr": {"above": 0, "high": MAX_FACTOR},
    **{name: {"low": 0, "high": MAX_FACTOR} for name in ("weight_decay", "l1")},
    **dict.fromkeys(("lr_step", "prune_interval", "checkpoint_minutes"), _POSITIVE),
    "warmup": {"low": 0},
    "seed": {"low": 0, "high": MAX_SEED},
}


def _refuse_unknown(changes: dict[str, Any]) -> None:
    """ValueError that names the first field which there is not."""
    known = TrainConfig.__dataclass_fields__
    for name in changes:
        if name not in known:
            all_of_them = f": {', '.join(known)}"
            raise ValueError(f"{name}: expected a field of the configuration{nearest(name, known) or all_of_them}")


@functools.lru_cache(maxsize=256)
def field_types(name: str) -> tuple[type, ...]:
    """What a field may hold; none for an unknown name."""
    hint = get_type_hints(TrainConfig).get(name)
    return tuple(get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))


def _typed(name: str, value: Any) -> Any:
    """The value as the field's type (an int as a float where that is asked); ValueError where it is of another."""
    types = field_types(name)
    if float in types and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join("none" if kind is NoneType else kind.__name__ for kind in types)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
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
