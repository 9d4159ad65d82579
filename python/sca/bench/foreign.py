"""Networks of other libraries as their users write them, against what ``sca.convert`` makes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from ..convert import ConversionError, ConversionReport, convert
from ..convert.loops import over_time, returns_state
from ..convert.timing import compared_speed
from ..files import write_whole
from ..pictures import LIGHT, drawing, png
from ..structure import attach_groups, compact
from ..structure.groups import find_groups
from .peers import installed

__all__ = [
    "KEPT",
    "NETWORKS",
    "ForeignNetwork",
    "Prepared",
    "measure_foreign",
    "plot_foreign",
    "prepared",
    "table_of_foreign",
]

KEPT = 0.4
"""The share of the channels of each group that the pruned network has."""
_RATIOS = {
    "training_ratio": "train",
    "inference_ratio": "inference",
    "pruned_training_ratio": f"train, {KEPT:.0%} of the channels",
}


class ForeignNetwork(NamedTuple):
    """One network.

    Attributes:
        package: whose it is. build: makes it. example: its input. options: of :func:`sca.convert`.
    """

    package: str
    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    options: dict[str, Any]


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2


def _spiking_vgg() -> nn.Module:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, "pool", 128, 128, "pool", 256, 256, "pool"):
        if width == "pool":
            layers.append(layer.MaxPool2d(2))
            continue
        layers += [
            layer.Conv2d(channels, width, 3, padding=1, bias=False),
            layer.BatchNorm2d(width),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
        ]
        channels = width
    layers += [layer.Flatten(), layer.Linear(256 * 16, 10)]
    return _in_steps(nn.Sequential(*layers), functional)


def _parametric() -> nn.Module:
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model.parametric_lif_net import CIFAR10DVSNet

    arguments = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    return _in_steps(CIFAR10DVSNet(channels=16, spiking_neuron=neuron.ParametricLIFNode, **arguments), functional)


def _residual() -> nn.Module:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.ms_resnet import ms_resnet18

    return _in_steps(ms_resnet18(T=4, num_classes=10), functional, 0.8, 0.1)


def _transformer() -> nn.Module:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spikformer import Spikformer

    sizes = {"img_size_h": 32, "img_size_w": 32, "patch_size": 4, "num_classes": 10}
    model = Spikformer(T=4, embed_dims=256, num_heads=8, mlp_ratio=4.0, depths=2, **sizes)
    return _in_steps(model, functional, 1.5, 0.5)


def _in_steps(model: nn.Module, functional: Any, gain: float = 1.5, bias: float = 0.4) -> nn.Module:
    functional.set_step_mode(model, "m")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):  # untrained networks are silent behind their second layer
            nn.init.constant_(norm.weight, gain)
            nn.init.constant_(norm.bias, bias)
    return model


class _Recorded(nn.Module):
    """snnTorch's tutorial 5: fully connected, its image at each of 25 steps."""

    def __init__(self) -> None:
        import snntorch

        super().__init__()
        self.fc1, self.lif1 = nn.Linear(784, 256), snntorch.Leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(256, 10), snntorch.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(25):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def _hidden() -> nn.Module:
    import snntorch
    from snntorch import surrogate

    own = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snntorch.Leaky(**own)),
        *(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2), snntorch.Leaky(**own)),
        *(nn.Flatten(), nn.Linear(64 * 16, 10), snntorch.Leaky(**own, output=True)),
    )


def _cells() -> nn.Module:
    import norse.torch as norse

    cell = norse.LIFBoxCell
    return norse.SequentialState(
        *(nn.Conv2d(2, 16, 3, padding=1), cell(), nn.AvgPool2d(2), nn.Conv2d(16, 32, 3, padding=1), cell()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * 64, 10)),
    )


NETWORKS = {
    "SpikingJelly, VGG": ForeignNetwork("spikingjelly", _spiking_vgg, lambda: _random(4, 8, 3, 32, 32), {}),
    "SpikingJelly, PLIF CIFAR10DVSNet": ForeignNetwork(
        "spikingjelly", _parametric, lambda: (_random(4, 4, 2, 128, 128) > 1.8).float(), {}
    ),
    "SpikingJelly, MS-ResNet-18": ForeignNetwork("spikingjelly", _residual, lambda: _random(8, 3, 32, 32), {}),
    "SpikingJelly, Spikformer": ForeignNetwork("spikingjelly", _transformer, lambda: _random(8, 3, 32, 32), {}),
    "snnTorch, tutorial 5": ForeignNetwork("snntorch", _Recorded, lambda: _random(64, 784), {"depth": "loop"}),
    "snnTorch, tutorial 6": ForeignNetwork(
        "snntorch", _hidden, lambda: _random(10, 16, 1, 28, 28), {"depth": "loop", "time": "single"}
    ),
    "norse, SequentialState": ForeignNetwork(
        "norse", _cells, lambda: _random(16, 8, 2, 32, 32), {"depth": "loop", "time": "single"}
    ),
}


class Prepared(NamedTuple):
    """The original, converted, and with :data:`KEPT` of its channels, compacted (None where none can be pruned); all
    take all time steps."""

    original: nn.Module
    converted: nn.Module
    pruned: nn.Module | None
    report: ConversionReport


def prepared(network: ForeignNetwork, measure: bool = False) -> Prepared:
    """Build and convert a network."""
    torch.manual_seed(0)
    original, x = network.build(), network.example()
    converted, report = convert(original, x, **network.options, measure=measure)
    if network.options.get("time") == "single":
        original = over_time(original, returns_state(original, (x,)))
    return Prepared(original, converted, _pruned(converted, x), report)


def _pruned(converted: nn.Module, x: Tensor) -> nn.Module | None:
    whole = copy.deepcopy(converted)
    try:
        attach_groups(whole, x)
    except ValueError:  # nothing in it can be pruned
        return None
    for members in find_groups(whole).values():
        if members.group.prunable:
            members.group.set_active(range(max(1, round(KEPT * members.group.num_channels))))
    return compact(whole)


def measure_foreign(told: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each network: ratios to the original's time, in turn, of the converted one and of that with
    :data:`KEPT` of its channels, compacted; ``note`` says why there is none."""
    return [_row(name, network, told) for name, network in NETWORKS.items()]


def _row(name: str, network: ForeignNetwork, told: Callable[[str], None]) -> dict[str, Any]:
    row: dict[str, Any] = {"network": name, "options": network.options}
    if not installed(network.package):
        return row | {"note": f"not measured: {network.package} is not installed"}
    told(f"{name}: converting")
    try:
        made = prepared(network, measure=True)
    except ConversionError as error:
        return row | {"note": f"not converted: {error}"}
    report = made.report
    row |= {
        "spikes_differ": report.parity.differ,
        "output": report.parity.output,
        "gradients": report.parity.gradients,
        "memory": report.memory,
        **report.speed._asdict(),
        "channels_last": report.channels_last is not None,
        "refused": {place: str(reason) for place, reason in report.refused.items()},
        "pruned_training_ratio": None,
    }
    if made.pruned is not None:
        told(f"{name}: pruned, timing again")
        row["pruned_training_ratio"] = compared_speed(made.original, made.pruned, (network.example(),)).training_ratio
    return row


def table_of_foreign(rows: list[dict[str, Any]]) -> Table:
    """One line for each network."""
    shown = Table(
        *("network", "spikes differ", *_RATIOS.values(), "saved MiB"),
        title="times of the original / of the converted network",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.caption = "\n".join(f"{row['network']}: {row['note']}" for row in rows if "note" in row) or None
    for row in rows:
        if "note" in row:
            shown.add_row(row["network"], "-", "-", "-", "-", "-")
            continue
        ratios = (row[name] for name in _RATIOS)
        saved = " -> ".join(f"{mib:.1f}" for mib in row["memory"])
        shown.add_row(
            row["network"],
            str(row["spikes_differ"]),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            saved,
        )
    return shown


def plot_foreign(path: Path, rows: list[dict[str, Any]]) -> None:
    """Bars of the same ratios."""
    measured = [row for row in rows if "note" not in row]
    with drawing() as make:
        picture = make(figsize=(7, 0.75 * len(measured) + 1.2), layout="constrained")
        axes = picture.add_subplot()
        colours = (LIGHT["dense"], LIGHT["cut"], LIGHT["kept"])
        for place, ((name, label), colour) in enumerate(zip(_RATIOS.items(), colours, strict=True)):
            at = [i + (place - 1) * 0.26 for i in range(len(measured))]
            bars = axes.barh(at, [row[name] or 0 for row in measured], 0.24, color=colour, label=label)
            axes.bar_label(bars, [f"{row[name]:.1f}" if row[name] else "" for row in measured], padding=2, fontsize=7)
        axes.axvline(1, color=LIGHT["muted"], linewidth=0.8)
        axes.set_yticks(range(len(measured)), [row["network"] for row in measured])
        axes.invert_yaxis()
        axes.set_xlabel("times faster than the original")
        axes.legend(frameon=False, loc="lower right")
        write_whole(path, png(picture))
