"""What the settings of a run that are names may be called, with a line on each, for ``sca train --list``."""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from ..settings import settings, summary

# Registries of names that are no fields, and of those that the schedule checks.
_REGISTRIES = {
    "preset": "sca.training.config:PRESETS",
    "surrogate": "sca_kernels.surrogates:TABLE",
    "criterion": "sca.pruning.criteria:CRITERIA",
    "schedule": "sca.pruning.schedule:DENSITY_CURVES",
    "regrow_schedule": "sca.pruning.schedule:REGROW_CURVES",
    "regrow_init": "sca.pruning.regrow:REGROW_INITS",
}
_MEANINGS = {
    "preset": "Recipe that all other settings go over.",
    "surrogate": "Derivative of the spike: --set neuron_arguments.surrogate=NAME.",
}


def named_settings() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Name of each setting that has a registry, what it is, and its names with what they stand for."""
    from ..training import TrainConfig

    fields = settings(TrainConfig)
    registries = {name: each.source for name, each in fields.items() if isinstance(each.source, str)}
    for name, source in {**registries, **_REGISTRIES}.items():
        meaning = _MEANINGS.get(name) or summary(fields[name].doc)
        yield name, meaning, {entry: _told(value) for entry, value in pkgutil.resolve_name(source).items()}


def _told(entry: Any) -> str:
    """The first sentence on what a name stands for, where it is documented: of a surrogate, its slope; of a neuron,
    what the module without a batch norm is; nothing of a stem, which its setting describes."""
    from sca_kernels.surrogates import Row

    if isinstance(entry, Row):
        return f"alpha = {entry.alpha:g} where none is given"
    if isinstance(entry, functools.partial):
        entry = entry.func
    if isinstance(entry, tuple):
        entry = entry[-1]
    is_ours = getattr(entry, "__module__", "").startswith("sca")
    return summary(inspect.getdoc(entry) or "") if is_ours else ""
