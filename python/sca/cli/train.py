"""``sca train``: train, prune while training, compact, compare."""

from __future__ import annotations

import contextlib
import logging
import shlex
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import reported
from .terminal import sentences, terminal

# Help must not import torch, so it can't ask the registry; a test compares.
_MODELS = "preresnet18, preresnet20, resnet18, resnet19, resnet20, sew_resnet18, vgg5, vgg9, vgg11, vgg16 or vgg19."

# Every option that is a field of TrainConfig and was given overrides the preset; None = not given.


def _option(help_text: str, **constraints: Any) -> Any:
    return typer.Option(help=help_text, show_default=False, **constraints)


@reported
def train(
    data: Annotated[str | None, _option("digits (default, embedded), cifar10 or cifar100.")] = None,
    data_dir: Annotated[str | None, _option("Folder of the CIFAR files; downloaded when left out.")] = None,
    preset: Annotated[str | None, _option("digits (default for that data), fast (default otherwise) or paper.")] = None,
    config: Annotated[
        Path | None, _option("TOML file with fields of the configuration, or the config.json of a run.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="field=value: any field; may be repeated.", show_default=False)
    ] = None,
    model: Annotated[str | None, _option(_MODELS)] = None,
    width: Annotated[float | None, _option("Factor on the model's hidden widths.")] = None,
    stem: Annotated[str | None, _option("First layers of a residual network: cifar or imagenet.")] = None,
    prune_stream: Annotated[
        bool | None,
        typer.Option("--prune-stream", help="Prune the streams of a residual network as well.", show_default=False),
    ] = None,
    time_steps: Annotated[int | None, _option("Time steps that an image is presented for.")] = None,
    neuron: Annotated[str | None, _option("if, lif or plif.")] = None,
    epochs: Annotated[int | None, _option("Length of the run.")] = None,
    batch_size: Annotated[int | None, _option("Images per step, of all processes.")] = None,
    lr: Annotated[float | None, _option("Peak learning rate.")] = None,
    density: Annotated[float | None, _option("Final density in (0, 1]; 1 prunes nothing.")] = None,
    target: Annotated[str | None, _option("What density is a share of: channels, parameters or synops.")] = None,
    schedule: Annotated[str | None, _option("Way to the final density: constant, cubic, linear or cosine.")] = None,
    allocation: Annotated[str | None, _option("How channels are ranked: global, layer or synops.")] = None,
    round_to: Annotated[int | None, _option("Round a layer's active channels to a multiple (16 is fast).")] = None,
    criterion: Annotated[
        str | None, _option("What they are ranked by: sca, rate, weight_l1, bn_gamma or random.")
    ] = None,
    regrow_fraction: Annotated[float | None, _option("Share of channels regrown instead of kept, at first.")] = None,
    prune_start: Annotated[float | None, _option("First update, as a share of the run.")] = None,
    prune_stop: Annotated[float | None, _option("Last update, as a share of the run.")] = None,
    prune_interval: Annotated[float | None, _option("Epochs between updates.")] = None,
    precision: Annotated[str | None, _option("float32, bfloat16 or auto.")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Run training steps through torch.compile.", show_default=False)
    ] = None,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing", help="Save memory: compute activations twice.", show_default=False)
    ] = None,
    checkpoint_minutes: Annotated[
        float | None, _option("Longest time without a checkpoint; every epoch ends with one (default 10).")
    ] = None,
    reference: Annotated[
        str | None, _option("Dense twin to compare with: train (train it too), none, or the folder of a dense run.")
    ] = None,
    seed: Annotated[int | None, _option("Of everything random.")] = None,
    device: Annotated[str | None, _option("Torch device.")] = None,
    limit_train: Annotated[int | None, _option("Use the first training images only.")] = None,
    limit_test: Annotated[int | None, _option("Use the first test images only.")] = None,
    out: Annotated[Path | None, _option("Folder of the run; runs/<data>-<model>-<number> when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the whole configuration as JSON, for --config, and end.")
    ] = False,
) -> None:
    """Train a spiking network, prune it while it learns, and compare it with the dense one.

    Options left out come from --config, and what that leaves out from the preset. Ctrl-C writes a checkpoint and ends;
    --resume goes on from it.
    """
    options = dict(locals())
    steering = ("preset", "config", "setting", "out", "resume", "overwrite", "show_config")
    steering = {name: options.pop(name) for name in steering}
    changes = {name: value for name, value in options.items() if value is not None}
    if reference == "none":
        changes["reference"] = None
    _train(changes, **steering)


def _train(
    changes: dict[str, Any],
    preset: str | None,
    config: Path | None,
    setting: list[str] | None,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    show_config: bool,
) -> None:
    from ..files import as_json
    from ..training import Recipe, RunFolder

    if resume and (overwrite or preset or config or out is None):
        raise ValueError("resume: expected --out and neither --overwrite, --preset nor --config beside it")
    recipe = Recipe(preset, config, setting or (), changes)
    with recipe.located():
        resolved = _resumed_config(RunFolder.stored_config(out), recipe, out) if resume else recipe.config()
        if show_config:
            typer.echo(as_json(resolved.to_dict()), nl=False)
        else:
            _run(resolved, out, "resume" if resume else "overwrite" if overwrite else "new")


def _run(config: Any, out: Path | None, mode: str) -> None:
    import sca_kernels

    from ..training import RunFolder, joined, run
    from .display import Display
    from .endings import told

    sca_kernels.reuse_host_memory()
    sca_kernels.share_cores()
    with contextlib.ExitStack() as stack:
        ending = stack.enter_context(told())
        ranks = stack.enter_context(joined(config.device))
        console = terminal(quiet=not ranks.is_first)
        say = sentences(console)
        folder = None
        if ranks.is_first:
            path = out or free_folder(Path("runs"), f"{config.data}-{config.model}")
            folder = ending.folder = stack.enter_context(RunFolder(path, mode))
        else:
            logging.getLogger().setLevel(logging.ERROR)  # the first process warns for all
        display = stack.enter_context(Display(console))
        summary = run(config, folder, display, ranks)
    if summary is not None:
        console.print(summary.table())
        picture = f"{folder.plot.name}, " if folder.plot.exists() else ""
        say(f"in {path}: {picture}{folder.log.name}, {folder.model.name} (the compacted network)")
        say(f"as a page with figures: sca report {shlex.quote(str(path))}")


def _resumed_config(held: Any, recipe: Any, out: Path) -> Any:
    """The stored configuration; where files lie and what computes may change, and there may be more epochs."""
    from ..training import RunFolder

    if held is None:
        raise ValueError(f"out: {out} holds no run to resume")
    config = recipe.over(held)
    RunFolder.check_resumption(out, held, config)
    return config


def free_folder(parent: Path, stem: str) -> Path:
    """The first ``stem-number`` that does not exist yet."""
    return next(path for number in count(1) if not (path := parent / f"{stem}-{number}").exists())
