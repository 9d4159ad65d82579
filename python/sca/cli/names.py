"""What the settings of a run that are names may be called, with a line on each, for ``sca train --list``."""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from ..pruning.settings import EXTENSIONS, entries
from ..settings import settings, summary
from ..training import TrainConfig

# Names that are no field's: where they are, and what they mean.
_OTHERS = {
    "preset": ("sca.training.config:PRESETS", "What all other settings go over."),
    "surrogate": ("sca_kernels.surrogates:TABLE", "Derivative of a spike, as --set neuron_arguments.surrogate=NAME."),
}


def named_settings() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Name of each setting that has a registry, what it is, and its names with what they stand for."""
    fields = settings(TrainConfig)
    for name, each in fields.items():
        if isinstance(each.source, str):
            yield name, summary(each.doc), _told(each.names)
        elif name in EXTENSIONS:
            installed = {point.name: f"of {point.value}" for point in entry_points(group=EXTENSIONS[name])}
            yield name, summary(each.doc), {**installed, **_told(entries(name))}
    for name, (source, meaning) in _OTHERS.items():
        yield name, meaning, _told(pkgutil.resolve_name(source))


def _told(names: Mapping[str, Any]) -> dict[str, str]:
    return {name: _sentence(entry) for name, entry in names.items()}


def _sentence(entry: Any) -> str:
    """The first sentence on what a name stands for, where it is documented: of a surrogate, its slope; of a neuron,
    what the module without a batch norm is; nothing of a stem, which its setting describes."""
    from sca_kernels.surrogates import SurrogateRow

    if isinstance(entry, SurrogateRow):
        return f"alpha = {entry.alpha:g} where none is given"
    if isinstance(entry, functools.partial):
        entry = entry.func
    if isinstance(entry, tuple):
        entry = entry[-1]
    is_ours = getattr(entry, "__module__", "").startswith("sca")
    return summary(inspect.getdoc(entry) or "") if is_ours else ""
