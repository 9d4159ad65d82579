"""Dense against compacted: what a run gained and what it lost, measured at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from ..cost import CostReport
from ..report.comparison import MEANINGS, NOT_MEASURED
from ..report.comparison import table as comparison_table
from .evaluation import count_cost, counted_on, measure_accuracy
from .loop import Trainer
from .precision import autocast
from .speed import Speed, compare_speed


@dataclass(frozen=True)
class Column:
    """One network. What was not measured is None.

    Attributes:
        accuracy: on the test split, in [0, 1].
        density: active / all channels of the prunable groups.
        connectivity: its weights / weights of the dense network.
        parameters: number of values of all its parameters.
        synops: synaptic operations per sample (:class:`sca.cost.CostReport`).
        energy_pj: estimate per sample, in pJ.
        training, inference: samples/s.
    """

    accuracy: float | None
    density: float
    connectivity: float
    parameters: int
    synops: float | None
    energy_pj: float | None
    training: Speed
    inference: Speed


@dataclass(frozen=True)
class Summary:
    """The dense network (None when the run was dense itself) and the compacted one; notes say what each is.

    ``cost`` is the compacted network's, layer by layer (:meth:`sca.cost.CostReport.to_dict`).
    """

    dense: Column | None
    compacted: Column
    notes: list[str]
    cost: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """The table that ends a run."""
        return comparison_table(self.to_dict())


def summarise(trainer: Trainer, small: nn.Module, dense: Trainer) -> Summary:
    """Measure the end of a run; both trainers move on, since the speed of training is that of real steps.

    Args:
        trainer: at the end of its run.
        small: its compacted network.
        dense: the same architecture without pruning: trained if it has a history, else as initialised; ``trainer``
            itself if that is dense.
    """
    config, data = trainer.config, trainer.dataset
    is_dense, has_reference = dense is trainer, bool(dense.history)

    def measured(model: nn.Module, cost: CostReport) -> dict[str, Any]:
        return {
            "accuracy": measure_accuracy(model, data, config),
            "connectivity": cost.connectivity,
            "synops": cost.synops,
            "energy_pj": cost.energy_pj,
        }

    cost = count_cost(trainer.model, data, config)
    compacted = measured(small, cost)
    if is_dense:
        reference = compacted
    elif has_reference:
        reference = measured(dense.model, count_cost(dense.model, data, config))
    else:
        reference = {"accuracy": None, "connectivity": 1.0, "synops": None, "energy_pj": None}
    densities = {"dense": dense.density, "compacted": trainer.density}
    speeds = _speeds(trainer, small, dense)
    parameters = {"dense": _count(dense.model), "compacted": _count(small)}
    columns = {
        name: Column(
            **values,
            density=densities[name],
            parameters=parameters[name],
            training=speeds[name][0],
            inference=speeds[name][1],
        )
        for name, values in (("dense", reference), ("compacted", compacted))
    }

    timed = columns["compacted"].training
    notes = [
        counted_on(data, cost),
        MEANINGS,
        f"speed at batch {trainer.batch_size}, {torch.get_num_threads()} threads, {config.precision}, networks in turn:"
        f" medians of {timed.rounds} rounds",
    ]
    if not is_dense:
        twin = "the same architecture, unpruned"
        notes.append(
            f"dense: {twin}, trained for {len(dense.history)} epochs with the seed {dense.config.seed}"
            if has_reference
            else f"dense: {twin} and not trained here, so what depends on its weights is {NOT_MEASURED}"
        )
        notes.append("training speed of the compacted column: the pruned network as trained, at its final widths")
    return Summary(None if is_dense else columns["dense"], columns["compacted"], notes, cost.to_dict())


def _speeds(trainer: Trainer, small: nn.Module, dense: Trainer) -> dict[str, tuple[Speed, Speed]]:
    """Column -> (training, inference), the columns measured in turn."""
    config = trainer.config
    images, labels = next(trainer.dataset.train_batches(trainer.batch_size, seed=config.seed, epoch=config.epochs))

    def step(one: Trainer) -> None:
        one.train_step(images, labels)
        one.prune_step(images, labels)

    def infer(model: nn.Module) -> None:
        with torch.inference_mode(), autocast(config.precision, config.device):
            model(images)

    def compare(work: dict[str, Callable[[], None]]) -> dict[str, Speed]:
        return compare_speed(work, len(labels), config.device)

    dense.model.train()
    trainer.model.train()
    training = compare({"dense": lambda: step(dense), "compacted": lambda: step(trainer)})
    dense.model.eval()
    small.eval()
    inference = compare({"dense": lambda: infer(dense.model), "compacted": lambda: infer(small)})
    return {name: (training[name], inference[name]) for name in training}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
