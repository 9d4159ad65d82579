"""Model families: one file each, found by its ``MODELS`` entries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..registry import collect, lookup
from .parts import INITS

__all__ = ["MODELS", "architecture_of", "build"]

MODELS = collect(sys.modules[__name__], "MODELS")


def build(name: str, init: str = "he", **arguments: Any) -> nn.Module:
    """Build a model by name; ``build(**model.config)`` rebuilds any of them (without its weights).

    Convolutions' weights are channels_last, which is fastest. Tools that want to see them as vectors without a copy
    (``torch.nn.utils.parameters_to_vector``, LBFGS) take ``model.to(memory_format=torch.contiguous_format)``.

    Args:
        name: one of ``MODELS``.
        init: what its weights begin with: ``he`` or ``dirac``, see :data:`sca.models.parts.INITS`.
        arguments: what the family takes; see its class, for example :class:`sca.models.vgg.VGG`.

    Raises:
        ValueError: unknown name (the message lists the known ones), or an argument that the family refuses.
    """
    initialise = lookup(INITS, init, "init")
    model = lookup(MODELS, name, "model")(name=name, **arguments)
    initialise(model)
    return model


def architecture_of(model: nn.Module) -> dict[str, Any] | None:
    """The arguments that :func:`build` makes a model of again; None where it is none of these families."""
    config = getattr(model, "config", None)
    return dict(config) if isinstance(config, Mapping) and config.get("name") in MODELS else None
