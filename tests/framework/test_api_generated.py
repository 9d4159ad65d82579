"""Generated calls of what sca exports to Python, with up to three hostile arguments each: a right result, or a
TypeError or ValueError that names an argument."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import sca
from sca.pruning.schedule import DENSITY_CURVES, REGROW_CURVES, Plan
from tests.calls import Stage, run_calls

FAMILIES = ("vgg5", "vgg9", "conv5fc1", "resnet20", "preresnet20", "sew_resnet18")
SMALL = "sca.models.build('vgg5', width=0.05, image_size=8)"
FOLDER = tempfile.TemporaryDirectory()  # as long as this module
FILE = str(Path(FOLDER.name) / "model.safetensors")
BATCH = "[(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))]"


def some(rng: random.Random, **choices: Any) -> dict[str, str]:
    picked = {name: texts if isinstance(texts, str) else rng.choice(texts) for name, texts in choices.items()}
    return {name: text for name, text in picked.items() if rng.random() < 0.4}


def build(rng: random.Random):
    name = rng.choice(FAMILIES)
    named = {"name": repr(name), "width": "0.05", "image_size": rng.choice(("8", "(8, 9)"))}
    named |= some(
        rng,
        num_classes=("3", "10"),
        in_channels=("1", "3"),
        time_steps=("1", "4"),
        neuron=("'if'", "'lif'", "'plif'"),
        widths=("None", "{}"),
        checkpointing=("True", "False"),
        v_threshold=("1.0", "0.5"),
        v_reset=("0.0", "None"),
        surrogate=("'atan'", "'sigmoid'"),
        detach_reset=("True", "False"),
        eps=("1e-5", "1e-3"),
        momentum=("0.1", "None"),
    )
    if "resnet" in name:
        named |= some(rng, stem=("None", "'cifar'"), prune_stream=("True", "False"))
    else:
        named |= some(rng, pool=("None", "'max'", "'avg'"))

    def check(values, model, before):
        channels = values.get("in_channels", 3)
        with torch.no_grad():
            logits = model.eval()(torch.rand(1, channels, *model.config["image_size"]))
        assert logits.shape == (model.time_steps, 1, values.get("num_classes", 10)), f"shape {tuple(logits.shape)}"

    return (Stage("sca.models.build", named),), check


def settings_of(rng: random.Random) -> dict[str, str]:
    named = {"start": "1", "stop": rng.choice(("4", "9")), "interval": "2"}
    return named | some(
        rng,
        density=("0.3", "1.0", "1"),
        target=("'channels'", "'parameters'", "'synops'"),
        schedule=tuple(map(repr, DENSITY_CURVES)),
        criterion=("'sca'", "'random'"),
        allocation=("'global'", "'layer'", "'synops'"),
        regrow=("'bn_gamma'", "'random'"),
        regrow_fraction=("0.3", "0"),
        regrow_schedule=tuple(map(repr, REGROW_CURVES)),
        regrow_pruned=("True", "False"),
        regrow_init=("'keep'", "'zero'", "'reinit'"),
        min_channels=("None", "1"),
        round_to=("None", "1", "8"),
        seed=("0", "7"),
    )


def plan(rng: random.Random):
    def check(values, made, before):
        assert isinstance(made, Plan), f"{made}"
        assert 0 < made.density_at(made.last) <= 1, f"{made}"

    return (Stage("sca.pruning.schedule.Plan", settings_of(rng)),), check


def scheduler(rng: random.Random):
    model = f"(model := {SMALL})"
    named = {"model": model, "optimizer": "torch.optim.SGD(model.parameters(), 0.1)", **settings_of(rng)}
    named |= some(rng, example_input="None")

    def check(values, made, before):
        assert made.steps == 0, f"{made.steps}"

    return (Stage("sca.SCAScheduler", named),), check


def attach(rng: random.Random):
    layers = "nn.ChannelConv2d(2, 4, 3), nn.BatchNormLIF(4), nn.ChannelConv2d(4, 5, 1)"
    named = {"model": f"torch.nn.Sequential({layers})"}
    named |= some(rng, example_input=("torch.rand(3, 2, 2, 8, 8)", "None"), prune_stream=("True", "False"))

    def check(values, report, before):
        assert report.groups, "no groups"

    return (Stage("sca.attach_groups", named),), check


def compact(rng: random.Random):
    def check(values, small, before):
        x = torch.rand(2, 3, 8, 8)
        assert torch.allclose(small.eval()(x), values["model"].eval()(x), 1e-4, 1e-5), "other outputs"

    # folding rounds otherwise: single spikes of a generated network may differ
    named = {"model": f"{SMALL}.eval()"} | some(rng, plain=("True", "False"), fold_batch_norm="False")
    return (Stage("sca.compact", named | some(rng, example_input="torch.rand(2, 3, 8, 8)")),), check


def save(rng: random.Random):
    def check(values, nothing, before):
        assert sca.load(values["path"]).config == values["model"].config

    return (Stage("sca.save", {"model": SMALL, "path": repr(FILE)} | some(rng, plan="None")),), check


def load(rng: random.Random):
    sca.save(eval(SMALL, {"sca": sca}), FILE)

    def check(values, model, before):
        assert model(torch.rand(2, 3, 8, 8)).shape == (4, 2, 10)

    return (Stage("sca.load", {"path": repr(FILE)} | some(rng, model=(SMALL, "None"))),), check


def report_cost(rng: random.Random):
    named = {"model": SMALL, "loader": BATCH} | some(rng, time_steps=("None", "4"), max_batches=("None", "1"))

    def check(values, report, before):
        assert report.samples == 2, f"{report.samples}"

    return (Stage("sca.report_cost", named),), check


def convert(rng: random.Random):
    layers = "torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 5)"
    named = {"model": f"torch.nn.Sequential({layers})", "example_input": "torch.rand(2, 3, 8, 8)"}
    named |= some(rng, depth="'layers'", time="None", merge_statistics=("True", "False"), measure="False")
    named |= some(rng, inplace=("True", "False"), strict=("True", "False"))

    def check(values, result, before):
        model, report = result
        assert len(report.converted) == 3, f"{report}"
        assert (model is values["model"]) == bool(values.get("inplace")), "which model"

    return (Stage("sca.convert", named),), check


def test_calls_end_well(api_calls, record_property):
    targets = (plan, plan, plan, build, scheduler, attach, compact, save, load, report_cost, convert)
    # the command line calls a network's name a model; a loader's batch is the network's x;
    # an example that was left out is looked for
    record_property("generated", run_calls(targets, api_calls, also=("model", "x", "example_input")))


def test_everything_exported_has_a_target():
    assert {name for name in sca.__all__ if not isinstance(getattr(sca, name), ModuleType)} == {
        "__version__",
        "SCAScheduler",
        "attach_groups",
        "compact",
        "report_cost",
        "save",
        "load",
        "convert",
    }
