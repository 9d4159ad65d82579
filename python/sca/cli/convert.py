"""``sca convert``: what becomes of somebody else's network."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import reported
from .options import option
from .terminal import terminal

if TYPE_CHECKING:
    from torch import Tensor, nn

DEPTHS = "neurons, layers, loop"


@reported
def convert(
    network: Annotated[str, typer.Argument(help="module:function or file.py:function that returns the network.")],
    example: Annotated[str, option("Its input: a shape, as 4,2,3,32,32 (time first), or a file of torch.save.")],
    depth: Annotated[str, option(f"How far: {DEPTHS}. Default: layers.")] = "layers",
    time: Annotated[str | None, option("single: it takes one step per call, in a loop of its training script.")] = None,
    measure: Annotated[bool, typer.Option(help="Time both networks.", show_default=True)] = True,
    json: Annotated[Path | None, option("Write the report there as well.")] = None,
) -> None:
    """Convert a network of SpikingJelly, snnTorch, norse or one's own, and print what was done, what was not and why.

    Nothing is kept: sca.convert(model, example) does the same in a script.
    """
    import torch

    import sca

    from ..files import write_json

    console = terminal()
    with console.status("building the network"):
        model = _built(network)
        inputs = _example(example)
    torch.manual_seed(0)
    with console.status("converting, and comparing with the original"):
        _, report = sca.convert(model, inputs, depth=depth, time=time, measure=measure)
    console.print(str(report), soft_wrap=True, highlight=False)
    if json is not None:
        write_json(json, report.as_dict())


def _built(network: str) -> nn.Module:
    place, _, name = network.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"network: expected module:function or file.py:function, got {network!r}")
    made = getattr(_imported(place), name, None)
    if not callable(made):
        raise ValueError(f"network: expected a function or class {name} in {place}, got {made!r}")
    return made()


def _imported(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # as python -m has it
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"network: expected a module that can be imported, got {place!r} ({error})") from error
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"network: expected a file, got {place!r}, which is none")
    sys.path.insert(0, str(path.parent))  # what it imports lies beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _example(example: str) -> Tensor | tuple[Any, ...]:
    import torch

    sizes = example.split(",")
    if all(size.strip().isdigit() for size in sizes):
        generator = torch.Generator().manual_seed(0)
        return torch.rand([int(size) for size in sizes], generator=generator)
    path = Path(example)
    if not path.is_file():
        raise ValueError(f"example: expected a shape such as 4,2,3,32,32 or a file of torch.save, got {example!r}")
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # of torch, pickle and zipfile
        raise ValueError(f"example: expected a file of torch.save with tensors, got {example!r} ({error})") from error
