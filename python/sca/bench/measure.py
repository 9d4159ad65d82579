"""Take the figures: all parties in one process, in turn, after warm-up; what computes something else is not timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import doctor

from ..cost import density as density_of
from ..models import build
from ..structure import compact
from ..structure.groups import find_groups
from ..training.firing import FiringRate
from ..training.speed import compare_speed
from ..training.weights import load_pruned
from .conditions import conditions, version
from .config import BenchConfig
from .memory import allocated, saved_bytes
from .peers import PEERS, no_twin
from .work import inference_step, mean_loss, prune_evenly, settle_statistics, sgd, training_step

OURS = "sca_kernels"
# Mean of frames of events, about that of N-MNIST's.
EVENTS_PER_VALUE = 0.2
# Rounding flips a few spikes per layer and batch norm passes that on; a wrong layer is off by more.
LOSS_TOLERANCE = {"float32": 0.05, "bfloat16": 0.1}


@dataclass
class Party:
    """One network that takes part, or the reason why it does not.

    Attributes:
        label: whose it is.
        density: asked for, in (0, 1].
        active: reached: active / all channels of the prunable groups.
        net: None where there is nothing to time.
        note: why not; empty otherwise.
        loss: of the first batch.
        firing_rate: spikes per neuron and step on the first batch; ours only.
    """

    label: str
    density: float
    active: float
    net: nn.Module | None
    note: str = ""
    loss: float | None = None
    firing_rate: float | None = None


def measure(config: BenchConfig, command: str, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All figures of a benchmark.

    Args:
        config: what to measure.
        command: what the result names as the command.
        progress: told what is being measured.

    Returns:
        Plain values, for JSON: ``config``, ``conditions``, and ``figures``, one for each mode, setting and party:
        ``samples_per_second`` (median, p20, p80, rounds), ``saved_bytes`` (kept by autograd for the backward of one
        pass, parameters left out; None in inference), ``peak_bytes`` (of one step, beyond what there was before; see
        :func:`sca.bench.memory.allocated`), ``backends`` (those of ours that ran it) and the fields of :class:`Party`.
        A party that was not timed has None and a note.

    Raises:
        ValueError: a kernel failed, so that another backend took its place.
    """
    config, trained = _resolved(config)
    told = conditions(command)
    if torch.device(config.device).type == "cuda":
        told["device"] = torch.cuda.get_device_name(config.device)
        told["versions"]["cuda"] = torch.version.cuda
    figures = []
    for time_steps in config.time_steps:
        for batch_size in config.batch_size:
            figures += _setting(config, trained, time_steps, batch_size, progress)
    return {"config": config.to_dict(), "conditions": told, "figures": figures}


def _resolved(config: BenchConfig) -> tuple[BenchConfig, nn.Module | None]:
    """The network that was trained, if one is to be measured, and the configuration with what it says of itself.

    Raises:
        ValueError: there is none, or its file is damaged.
    """
    if config.network is None:
        return config, None
    try:
        trained = load_pruned(Path(config.network))
    except OSError as error:
        raise ValueError(
            f"network: expected a run's folder or a file of sca.save, got {config.network} ({error.strerror})"
        ) from error
    own = trained.config
    density = density_of(members.group for members in find_groups(trained).values())
    is_default = config.time_steps == BenchConfig.time_steps
    changes = {
        "model": own["name"],
        "width": own["width"],
        "in_channels": own["in_channels"],
        "size": own["image_size"][0],
        "densities": (1.0, density) if density < 1 else (1.0,),
        "time_steps": (own["time_steps"],) if is_default else config.time_steps,
    }
    return replace(config, **changes), trained


def _setting(
    config: BenchConfig, trained: nn.Module | None, time_steps: int, batch_size: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The figures at one T and N."""
    torch.manual_seed(config.seed)
    sides = [config.size] * 2 if trained is None else trained.config["image_size"]
    shape = (batch_size, config.in_channels, *sides)
    if config.sequences:
        counts = torch.full((time_steps * batch_size, *shape[1:]), EVENTS_PER_VALUE, device=config.device)
        images = torch.poisson(counts).contiguous(memory_format=torch.channels_last)
        images, shape = images.unflatten(0, (time_steps, batch_size)), (time_steps, *shape)
    else:
        images = torch.randn(shape, device=config.device).contiguous(memory_format=torch.channels_last)
    classes = 10 if trained is None else trained.config["num_classes"]
    labels = torch.randint(classes, (batch_size,), device=config.device)
    progress(f"T = {time_steps}, batch {batch_size}: networks")
    parties = _parties(config, _networks(config, trained, time_steps), images, labels)
    figures = []
    for mode in config.modes:
        progress(f"T = {time_steps}, batch {batch_size}: {mode}")
        timed = [party for party in parties if party.net is not None]
        steps = {id(party): _step(mode, party.net, images, labels, config.precision) for party in timed}
        speeds = compare_speed(steps, batch_size, config.device, config.rounds, max_seconds=float("inf"))
        for party in parties:
            figure = {
                "mode": mode,
                "time_steps": time_steps,
                "batch_size": batch_size,
                "input": list(shape),
                "party": party.label,
                "density": party.density,
                "active": party.active,
                "note": party.note,
                "loss": party.loss,
                "firing_rate": party.firing_rate,
                "samples_per_second": None,
                "saved_bytes": None,
                "peak_bytes": None,
                "backends": [],
            }
            if party.net is not None:
                figure["backends"] = doctor.backends_of(steps[id(party)])
                if failed := doctor.failures():  # another backend stood in: no figure of ours
                    raise ValueError(f"backend: kernels failed, so that another stood in for them: {'; '.join(failed)}")
                figure["samples_per_second"] = speeds[id(party)].to_dict()
                party.net.zero_grad()  # the gradients of the last step are freed before the next one's memory peaks
                figure["peak_bytes"] = allocated(steps[id(party)], config.device).peak
                if mode == "training":
                    loss = partial(mean_loss, party.net, images, labels, config.precision)
                    figure["saved_bytes"] = saved_bytes(loss, list(party.net.parameters()))
            figures.append(figure)
    return figures


def _networks(config: BenchConfig, trained: nn.Module | None, time_steps: int) -> list[tuple[float, nn.Module]]:
    """Densities and our networks of them: the same weights, the dense one first."""
    if trained is not None:
        pruned = copy.deepcopy(trained).to(config.device).train()
        pruned.time_steps = time_steps
        dense = copy.deepcopy(pruned)
        for members in find_groups(dense).values():
            members.group.set_active(range(members.group.num_channels))
        return list(zip(config.densities, (dense, pruned), strict=False))
    dense = build(
        config.model,
        in_channels=config.in_channels,
        image_size=config.size,
        time_steps=time_steps,
        width=config.width,
        detach_reset=True,
    ).to(config.device)
    networks = [(density, copy.deepcopy(dense)) for density in config.densities]
    for density, net in networks:
        if density < 1:
            prune_evenly(net, density, config.round_to)
    return networks


def _parties(
    config: BenchConfig, networks: list[tuple[float, nn.Module]], images: Tensor, labels: Tensor
) -> list[Party]:
    """Ours at every density, and the dense twin of each peer, their first losses compared."""
    dense = copy.deepcopy(networks[0][1])  # as it is before a pass

    def first_loss(net: nn.Module) -> float:
        with torch.no_grad():
            return mean_loss(net, images, labels, config.precision).item()

    def checked(party: Party, expected: float) -> Party:
        if party.net is not None:
            party.loss = first_loss(party.net)
            if not abs(party.loss - expected) <= LOSS_TOLERANCE[config.precision] * expected:
                party.net, party.note = None, f"not timed: its first loss is {party.loss:.4g}, not {expected:.4g}"
        return party

    parties = []
    for density, net in networks:
        rate = FiringRate(counted := copy.deepcopy(net))
        first_loss(counted)
        spikes, positions = rate.since_mark()
        active = density_of(members.group for members in find_groups(net).values())
        party = Party(OURS, density, active, net, firing_rate=spikes / positions)
        # the same channels, physically alone: what skipping the others must equal
        parties.append(checked(party, first_loss(compact(net))))
    for peer in map(PEERS.get, config.peers):
        note = no_twin(dense)
        twin = None if note else peer.vgg(dense, detach_reset=dense.config.get("detach_reset", False))
        known = f"{peer.label} {version(peer.package)}" if twin else peer.label
        note = note or ("" if twin else "not installed")
        party = Party(known, 1.0, 1.0, twin and twin.to(config.device), note)
        parties.append(checked(party, parties[0].loss))
    return parties


def _step(mode: str, net: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    """What is timed."""
    if mode == "training":
        net.train()
        return partial(training_step, net, images, labels, sgd(net), precision)
    settle_statistics(net, images, precision)
    net.eval()
    return partial(inference_step, net, images, precision)
