"""What is compared: a recipe, criteria, connectivities and seeds, which make a list of training runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry import lookup
from ...settings import check, check_number, setting
from ...training.config import MAX_SEED, TrainConfig

if TYPE_CHECKING:
    from .cells import Cell

#: behind a criterion's name: nothing is regrown
WITHOUT_REGROWTH = "-without-regrowth"
MAX_SEEDS = 10_000
CRITERIA_COMPARED = ("sca", "sca" + WITHOUT_REGROWTH, "rate", "weight_l1", "bn_gamma", "random")


@dataclass(frozen=True)
class Table1Config:
    """One table.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    recipe: TrainConfig
    """Of every run; criterion, density and what it is a share of, seed and reference are the table's."""

    connectivities: tuple[float, ...] = (0.2839, 0.0931)
    """Shares of the dense network's weights that pruned networks keep; VGG-16's in the paper where none are named."""

    criteria: tuple[str, ...] = CRITERIA_COMPARED
    """What is compared: names in ``sca.pruning.criteria``, also with ``-without-regrowth`` behind them."""

    seeds: int = setting(3, low=1, high=MAX_SEEDS)
    """Runs of each cell; the first has the recipe's seed."""

    def __post_init__(self) -> None:
        from ...pruning.criteria import CRITERIA

        check(self)
        for name in ("connectivities", "criteria"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected one or several, each once, got {','.join(map(str, values))!r}")
        for value in self.connectivities:
            if not 0 < value < 1:
                raise ValueError(f"connectivities: expected shares in (0, 1), got {value}")
        for name in self.criteria:
            lookup(CRITERIA, name.removesuffix(WITHOUT_REGROWTH), "criteria")
        check_number("seeds", self.seeds, high=MAX_SEED - self.recipe.seed + 1)

    def cells(self) -> Iterator[Cell]:
        """All runs, seed by seed, each seed's dense network first."""
        from .cells import DENSE, Cell

        for seed in range(self.recipe.seed, self.recipe.seed + self.seeds):
            dense = self.recipe.changed(density=1.0, seed=seed, reference=None)
            yield Cell(DENSE, 1.0, dense)
            for connectivity in self.connectivities:
                for name in self.criteria:
                    changes: dict[str, Any] = {"criterion": name.removesuffix(WITHOUT_REGROWTH)}
                    if name.endswith(WITHOUT_REGROWTH):
                        changes["regrow_fraction"] = 0.0
                    pruned = dense.changed(density=connectivity, target="parameters", **changes)
                    yield Cell(name, connectivity, pruned)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "recipe": self.recipe.to_dict(),
            "connectivities": list(self.connectivities),
            "criteria": list(self.criteria),
            "seeds": self.seeds,
        }
