"""Everything that decides a run, and the presets. A field with the string below it is all there is to a setting: files,
``--set``, the command line and its help are made of it (:mod:`sca.settings`)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..data.settings import MAX_TIME_STEPS, FrameSettings
from ..pruning.settings import PruneSettings, multiple
from ..registry import lookup, nearest
from ..settings import check, setting, settings

PRECISIONS = ("float32", "bfloat16")
# What a stored run must say: without it, defaults would make another network of it, on other data.
ESSENTIAL = ("data", "model", "width", "time_steps", "neuron", "neuron_arguments", "epochs", "batch_size", "density")
#: The largest seed: the largest integer that torch's generators, JSON and TOML all take.
MAX_SEED = 2**63 - 1
#: What is larger is a slip of the pen, which would end in an overflow, or in no memory.
MAX_COUNT, MAX_WIDTH, MAX_FACTOR = 2**31 - 1, 1e3, 1e30


def check_device(device: str) -> None:
    """ValueError unless torch can compute on this device here."""
    import torch

    try:
        torch.zeros(1, device=device).item()  # "meta" has tensors, and no numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # those torch was not built with, or does not know
        (reason, *_) = str(error).splitlines() or [""]
        raise ValueError(f"device: expected one that torch can use here, got {device!r} ({reason})") from error


def check_compile(device: str) -> None:
    """ValueError unless torch.compile works for this device here."""
    from sca_kernels import doctor

    problem = doctor.compile_problem(device)
    if problem is not None:
        raise ValueError(
            f"compile: torch.compile does not work here ({problem}); install a C++ compiler (g++), or leave "
            "--compile out"
        )


def fast_precision(device: str) -> str:
    """``bfloat16`` on a CUDA device that has arithmetic for it, else ``float32``."""
    import torch

    has_it = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


@dataclass(frozen=True)
class DataSettings:
    """What is learned from."""

    data: str = setting("cifar10", names="sca.data:DATASETS")
    """Data set: a name in ``sca.data``; ``sca train`` takes ``digits`` where none is named."""

    data_dir: str | None = setting(None, movable=True)
    """Folder with its files; left out, they are downloaded, or ship with a package."""

    limit_train: int | None = setting(None, low=1, high=MAX_COUNT)
    """Train on the first so many images only."""

    limit_test: int | None = setting(None, low=1, high=MAX_COUNT)
    """Test on the first so many images only."""

    validation: int = setting(0, low=0, high=MAX_COUNT)
    """Training images to hold out, chosen by the seed: each epoch is measured on them, and the test images are looked
    at once, at the end. 0: each epoch is measured on the test images."""


@dataclass(frozen=True)
class NetworkSettings:
    """What learns."""

    model: str = setting("vgg16", names="sca.models:MODELS")
    """Network: a name in ``sca.models``."""

    width: float = setting(1.0, above=0, high=MAX_WIDTH)
    """Factor on its hidden widths."""

    stem: str | None = setting(None, names="sca.models.residual:STEMS")
    """First layers of a residual network: ``cifar`` (convolution 3x3) or ``imagenet`` (7x7 with stride 2, max-pool).
    Left out, ``imagenet`` from 96 pixels on where the original has it."""

    prune_stream: bool = False
    """Prune the streams of a residual network as well, one group per stage."""

    pool: str | None = setting(None, names="sca.models.vgg:POOLS")
    """Pools of a VGG: ``max`` or ``avg``. Left out, those of the original."""

    time_steps: int = setting(4, low=1, high=MAX_TIME_STEPS)
    """T, the time steps that an image is presented for; the frames of a recording."""

    neuron: str = setting("lif", names="sca.models.parts:NEURONS")
    """Kind of neuron: ``if``, ``lif`` or ``plif``."""

    neuron_arguments: dict[str, Any] = field(
        default_factory=lambda: {"tau": 4 / 3, "surrogate": "piecewise_quadratic", "detach_reset": True}
    )
    """What the neurons' module, and the batch norms in front of them, take: ``tau``, ``surrogate``, ``detach_reset``,
    ``v_threshold``, ..."""

    init: str = setting("he", names="sca.models.parts:INITS")
    """What weights begin with: ``he`` (normal, by fan-in) or ``dirac`` (convolutions pass their input on, as far as
    they have channels, the rest ``he``)."""


@dataclass(frozen=True)
class TrainingSettings:
    """How it learns."""

    epochs: int = setting(100, low=1, high=MAX_COUNT)
    """Length of the run, in passes over the training images."""

    batch_size: int = setting(64, low=1, high=MAX_COUNT)
    """Images per step, of all processes."""

    lr: float = setting(0.1, above=0, high=MAX_FACTOR)
    """Peak learning rate."""

    lr_schedule: str = setting("cosine", names=("cosine", "step"))
    """Way of the learning rate from its peak: ``cosine`` to 0, or ``step``, a tenth after every ``lr_step`` epochs."""

    lr_step: float = setting(100, above=0)
    """Epochs between the steps of ``lr_schedule`` ``step``."""

    warmup: float = setting(1.0, low=0)
    """Epochs over which the learning rate rises linearly from 0."""

    momentum: float = setting(0.9, low=0, below=1)
    """Momentum of SGD."""

    weight_decay: float = setting(5e-4, low=0, high=MAX_FACTOR)
    """Weight decay of the weights of convolutions; nothing else decays."""

    l1: float = setting(0.0, low=0, high=MAX_FACTOR)
    """Factor of the L1 subgradient on the weights of 3x3 convolutions (the paper's sparsity term)."""

    time_growth: tuple[float, ...] = setting((), above=0, below=1)
    """Shares of the run, rising, at the ends of epochs, at which T doubles on its way to ``time_steps``: with 4 steps
    ``0.5,0.8`` trains with T = 1, from the half of the run with 2, from 80 % of it with 4. Still images only; empty:
    all of the run with ``time_steps``."""

    analog_start: tuple[float, ...] = setting((), low=0, below=1)
    """Two shares of the run: until the first, neurons give out their rectified potential in place of spikes, until the
    second a blend that becomes spikes. Deep networks begin to learn faster so. Epochs until then are measured as they
    were trained, so that they say nothing of the spiking network. Empty: spikes from the start."""

    loss: str = setting("each_step", names="sca.training.losses:LOSSES")
    """What is minimised: ``each_step`` (cross-entropy at each time step) or ``mean`` (of the mean logits)."""

    label_smoothing: float = setting(0.1, low=0, below=1)
    """Label smoothing of the cross-entropy, in [0, 1)."""

    augment: bool = True
    """Move, mirror (``flip``) and cut (``cutout``) training images; by how much they move, the data set says."""

    flip: str = setting("alternating", names=("alternating", "random"))
    """Which images are mirrored: ``alternating`` (a half of them in one epoch, the other half in the next) or
    ``random``."""

    cutout: int = setting(8, low=0, high=MAX_COUNT)
    """Side of the square that is cut out of each training image, in pixels; 0 for none."""

    policy: str | None = setting(None, names="sca.data:POLICIES")
    """Augmentation by a policy, between moving and cutting: ``autoaugment``, ``randaugment`` or ``trivialaugment``, by
    kornia (the extra ``augment``). Without ``augment`` nothing is changed."""

    rotate: float = setting(0.0, low=0, high=180)
    """Turn each training image by up to so many degrees."""

    shear: float = setting(0.0, low=0, high=10)
    """Shear each training image: its rows move by up to this share of their distance from the centre."""

    mix: float = setting(0.0, low=0, high=1)
    """Probability that a box of another recording, in time and space, is put into a training recording, whose label is
    then mixed by the numbers of events (after EventMix); event cameras only."""

    weights: str | None = None
    """Start from the weights and the active channels of a run: its folder or one of its files, or a file of
    ``sca.save``. Of the layers only those begin anew whose size is the number of classes, where that is another one."""

    freeze: list[str] = field(default_factory=list)
    """Modules whose parameters are not trained, by patterns of their names (``features.0``, ``features.[12].*``). Their
    batch norms keep their statistics; they are pruned like all others."""

    ema: float = setting(0.0, low=0, below=1)
    """Decay, at each step, of a running average of the weights, which is what is tested and saved as the result; 0 for
    none."""


@dataclass(frozen=True)
class PruningSettings(PruneSettings):
    """How far it is pruned, and when in a run."""

    prune_start: float = setting(0.05, low=0, below=1)
    """First update, as a share of the run. Where the interval is a whole number of epochs, updates fall on the end of
    an epoch, so that 0 is that of the first."""

    prune_stop: float = setting(0.6, above=0, high=1)
    """Last update, as a share of the run."""

    prune_interval: float = setting(1.0, above=0)
    """Epochs between updates. Less where the run is too short for 8 updates, and the schedule is not ``constant``: a
    single cut to the final density is no way there."""


@dataclass(frozen=True)
class TrainConfig(PruningSettings, TrainingSettings, NetworkSettings, FrameSettings, DataSettings):
    """One training run. The defaults are the recipe of the preset ``fast``.

    Raises:
        ValueError: a value is of another type or out of range; the message names the field.
    """

    reference: str | None = None
    """Dense twin to compare with: ``train`` (the same architecture trained alike without pruning, in the run's folder
    ``dense``), the folder of such a run, or ``none`` (the dense network's speed alone is measured)."""

    precision: str = setting("auto", names=("auto", *PRECISIONS))
    """Numbers to compute in: ``float32``, ``bfloat16`` (autocast) or ``auto``, which is the latter on CUDA devices that
    have arithmetic for it."""

    checkpointing: bool = setting(False, movable=True)
    """Save memory: compute activations again in the backward pass, block by block, in place of keeping them."""

    compile: bool = setting(False, movable=True)
    """Run training steps through torch.compile; a new structure may compile anew."""

    graph: str = setting("on", names=("on", "off"), movable=True)
    """Training steps as one CUDA graph: ``on`` (where there is CUDA and nothing stands against it, which the log would
    name; elsewhere they run as they stand) or ``off``."""

    checkpoint_minutes: float = setting(10.0, above=0, movable=True)
    """Longest time without a checkpoint; every epoch ends with one."""

    seed: int = setting(PruneSettings.seed, low=0, high=MAX_SEED)
    """Seed of everything random."""

    device: str = setting("cpu", movable=True)
    """Torch device that computes."""

    keep_best: bool = False
    """End the run with the epoch that was best on the ``validation`` images, in place of the last one."""

    tensorboard: bool = setting(False, movable=True)
    """Write the epochs for TensorBoard as well, into the run's folder ``tensorboard`` (the extra ``tensorboard``)."""

    def __post_init__(self) -> None:
        from ..models.parts import check_neuron

        check(self)
        if not self.prune_start < self.prune_stop:
            raise ValueError(f"prune_start: expected a share of the run, in [0, prune_stop), got {self.prune_start!r}")
        if self.keep_best and not self.validation:
            raise ValueError(f"keep_best: expected false where validation is 0, got {self.keep_best!r}")
        if list(self.time_growth) != sorted(set(self.time_growth)):
            raise ValueError(f"time_growth: expected rising shares of the run, got {self.time_growth!r}")
        if self.time_steps % 2 ** len(self.time_growth):
            raise ValueError(
                f"time_growth: expected time_steps to be a multiple of {2 ** len(self.time_growth)}, which "
                f"{len(self.time_growth)} doublings end with, got {self.time_steps}"
            )
        if self.analog_start and not (len(self.analog_start) == 2 and self.analog_start[0] < self.analog_start[1]):
            raise ValueError(f"analog_start: expected two rising shares of the run, got {self.analog_start!r}")
        if self.analog_start and self.counts_synops and self.prune_start < self.analog_start[1]:
            raise ValueError(
                f"prune_start: expected at least {self.analog_start[1]!r}, where analog_start ends, since target or "
                f"allocation count spikes, got {self.prune_start!r}"
            )
        super().__post_init__()
        self.check_frames()
        check_neuron(self.neuron, self.neuron_arguments)
        check_device(self.device)
        if self.precision == "auto":
            object.__setattr__(self, "precision", fast_precision(self.device))

    @classmethod
    def from_preset(cls, preset: str | None = None, **changes: Any) -> TrainConfig:
        """A preset with changes; without a name, the preset of the data set if it has one, else ``fast``.

        Raises:
            ValueError: unknown preset or field, or a value out of range.
        """
        data = changes.get("data", "digits")
        name = preset or (data if isinstance(data, str) and data in PRESETS else "fast")
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
        return {each.name: getattr(self, each.name) for each in fields(PruneSettings)}

    @property
    def frame_settings(self) -> FrameSettings:
        """How recordings of event cameras become frames."""
        return FrameSettings(**{each.name: getattr(self, each.name) for each in fields(FrameSettings)})

    @property
    def augmentation(self) -> dict[str, Any]:
        """What :meth:`sca.data.Dataset.train_loader` takes from here."""
        names = ("augment", "flip", "cutout", "policy", "rotate", "shear", "mix")
        return {name: getattr(self, name) for name in names}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What :func:`sca.models.build` takes from here; those of one family where they are set."""
        own = {"stem": self.stem, "prune_stream": self.prune_stream, "pool": self.pool}
        return {
            "time_steps": self.time_steps,
            "width": self.width,
            "neuron": self.neuron,
            "init": self.init,
            "checkpointing": self.checkpointing,
            **{name: value for name, value in own.items() if value},
            **self.neuron_arguments,
        }

    def differing(self, held: dict[str, Any]) -> list[str]:
        """Fields, movable ones aside, that have another value in ``held``, a :meth:`to_dict`."""
        device_type, own, held = self.device.partition(":")[0], self.to_dict(), dict(held)
        for values in (own, held):
            if "round_to" in values:  # None is the number that it comes to, as runs of earlier versions have it
                values["round_to"] = multiple(values["round_to"], device_type)
        fixed = (name for name, each in settings(type(self)).items() if not each.movable)
        return [name for name in fixed if name in held and held[name] != own[name]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, strategies by name: data, network, training, pruning, and what a run is besides."""
        values = copy.deepcopy(self.record())
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: plain[name] for name in settings(type(self))}


def _refuse_unknown(changes: dict[str, Any]) -> None:
    """ValueError that names the first field which there is not."""
    known = settings(TrainConfig)
    for name in changes:
        if name not in known:
            all_of_them = f": {', '.join(known)}"
            raise ValueError(f"{name}: expected a field of the configuration{nearest(name, known) or all_of_them}")


class Preset(dict[str, Any]):
    """Fields that differ from the defaults, and what for."""

    def __init__(self, doc: str, /, **changes: Any) -> None:
        super().__init__(changes)
        self.__doc__ = doc


# The paper's network for event cameras; every layer to the same density, as for digits.
_EVENTS: dict[str, Any] = {
    "model": "conv5fc1",
    "time_steps": 10,
    "batch_size": 16,
    "flip": "random",
    "density": 0.3,
    "allocation": "layer",
    "min_channels": 4,
    "prune_start": 0.2,
    "reference": "train",
}

PRESETS: dict[str, Preset] = {
    "fast": Preset("The defaults: what reaches the best accuracy per minute."),
    "paper": Preset(
        "Li et al. (ICML 2024), section 5: one setting for all of their networks.",
        neuron="if",
        neuron_arguments={"surrogate": "sigmoid", "alpha": 4.0, "detach_reset": True},
        epochs=300,
        batch_size=64,
        lr=0.01,
        lr_schedule="step",
        warmup=0.0,
        weight_decay=0.0,
        l1=3e-5,
        loss="mean",
        label_smoothing=0.0,
        flip="random",
        cutout=0,
        precision="float32",
        schedule="constant",
        regrow_fraction=0.1,  # our choice of its q: a share of all channels, which must stay well below those kept
        regrow_schedule="constant",
        min_channels=0,
        prune_start=0.0,  # after each epoch, from the first to the last
        prune_stop=1.0,
        prune_interval=1.0,
    ),
    # Rectified units first, which learn fastest and cost one step; the cut after two epochs, so that all others are of
    # a small network; time steps when little is left to learn. Trials: benchmarks/ACCURACY.md.
    "two_hours": Preset(
        "9.31 % of VGG-16's connections on CIFAR-10, on two cores; not trained to its end so far.",
        neuron_arguments={"tau": 4 / 3, "surrogate": "piecewise_quadratic", "detach_reset": True, "v_threshold": 0.5},
        epochs=120,
        cutout=0,
        label_smoothing=0.0,
        analog_start=(0.5, 0.6),
        time_growth=(0.72, 0.88),
        density=0.0931,
        target="parameters",
        criterion="taylor_norm",
        allocation="cost",
        schedule="constant",
        regrow_fraction=0.2,
        prune_start=0.014,
        prune_stop=0.08,
        round_to=16,
        validation=5000,
    ),
    # Every layer to the same density: the early layers, which a global ranking leaves wide, take most of the time at
    # this image size.
    "digits": Preset(
        "Under a minute on two cores, the dense twin included; the default for this data.",
        model="vgg9",
        width=0.5,
        epochs=24,
        lr=0.2,
        weight_decay=1e-3,
        cutout=0,
        density=0.5,
        allocation="layer",
        min_channels=4,
        prune_start=0.15,
        reference="train",
    ),
    "nmnist": Preset(
        "Two minutes on two cores for 1,000 recordings, the dense twin included; the default for this data.",
        **_EVENTS,
        width=0.5,
        epochs=30,
        cutout=0,
    ),
    "dvs_cifar10": Preset("The default for this data; not trained on all of it so far.", **_EVENTS),
    "dvs_gesture": Preset(
        "The default for this data, 16 frames; not trained on all of it so far.", **{**_EVENTS, "time_steps": 16}
    ),
    "event_arrays": Preset("The default for recordings of one's own.", **_EVENTS),
}
