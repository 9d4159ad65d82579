"""The public names, in the shape that users, tests and benchmarks call them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re

import pytest

import sca_kernels

from .tree import ROOT, modules

STEPPING = "v_threshold v_reset detach_reset surrogate alpha"  # what every neuron takes
CALL = f"x {STEPPING} v_init scale shift backend"
BATCH_NORM = "x weight bias running_mean running_var training momentum eps channel_mask"
MODULE = f"{STEPPING} group stateful backend"
BATCH_NORM_MODULE = "num_features eps momentum affine track_running_stats group"
CONVOLUTION = "in_channels out_channels stride padding dilation groups bias"
NAMES = {
    "sca_kernels.functional.neuron": f"{CALL} neuron tau w decay_input activity",
    "sca_kernels.functional.ActivitySums": "spike_count membrane_l1 positions channels",
    "sca_kernels.functional.lif": f"{CALL} tau decay_input",
    "sca_kernels.functional.if_neuron": CALL,
    "sca_kernels.functional.plif": f"{CALL} w decay_input",
    "sca_kernels.functional.batch_norm_lif": BATCH_NORM,
    "sca_kernels.functional.batch_norm_neuron": f"{BATCH_NORM} neuron activity channels",
    "sca_kernels.functional.batch_norm": "x weight bias running_mean running_var training momentum eps process_group",
    "sca_kernels.functional.channel_conv2d": f"x weight {CONVOLUTION} full_input full_output backend",
    "sca_kernels.functional.pack_spikes": "",
    "sca_kernels.functional.unpack_spikes": "packed shape dtype",
    "sca_kernels.nn.LIF": f"{MODULE} tau decay_input",
    "sca_kernels.nn.IF": MODULE,
    "sca_kernels.nn.PLIF": f"{MODULE} decay_input",
    "sca_kernels.nn.BatchNormLIF": BATCH_NORM_MODULE,
    "sca_kernels.nn.BatchNormIF": BATCH_NORM_MODULE,
    "sca_kernels.nn.BatchNormPLIF": BATCH_NORM_MODULE,
    "sca_kernels.nn.ChannelBatchNorm2d": f"{BATCH_NORM_MODULE} process_group",
    "sca_kernels.nn.ChannelBatchNorm1d": f"{BATCH_NORM_MODULE} process_group",
    "sca_kernels.nn.ChannelConv1d": f"kernel_size {CONVOLUTION} in_group out_group spike_input backend",
    "sca_kernels.nn.ChannelConvTranspose1d": f"kernel_size {CONVOLUTION} output_padding in_group out_group",
    "sca_kernels.nn.ChannelConvTranspose2d": f"kernel_size {CONVOLUTION} output_padding in_group out_group",
    "sca_kernels.nn.ChannelConv2d": f"kernel_size {CONVOLUTION} in_group out_group spike_input backend",
    "sca_kernels.nn.ChannelLinear": "in_features out_features bias in_group out_group features_per_channel spike_input",
    "sca_kernels.nn.MaxPool2d": "kernel_size stride padding dilation return_indices ceil_mode",
    "sca_kernels.nn.AvgPool2d": "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "sca_kernels.nn.ChannelSelect": "in_channels group",
    "sca_kernels.nn.ChannelGroup": "num_channels name prunable",
    "sca_kernels.nn.ChannelGroup.concat": "groups",
    "sca_kernels.nn.Activity": "training_only",
    "sca_kernels.nn.explain": "module",
    "sca_kernels.nn.probing": "groups",
    "sca_kernels.nn.reset": "module",
    "sca_kernels.reuse_host_memory": "",
    "sca_kernels.doctor.report": "",
    "sca_kernels.testing.missing_twins": "",
    "sca.models.build": "num_classes in_channels time_steps neuron",
    "sca.SCAScheduler.follow": "model",
    "sca.SCAScheduler": (
        "model optimizer process_group density start stop interval criterion regrow allocation regrow_fraction"
    ),
    "sca.attach_groups": "model example_input prune_stream",
    "sca.compact": "model plain fold_batch_norm example_input",
    "sca.save": "model path plan",
    "sca.load": "path model",
    "sca.report_cost": "model loader",
    "sca.training.GraphedStep": "model optimizer loss_fn scheduler precision accumulate warmup on_backward graph",
}


def resolve(name: str) -> object:
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for at, part in enumerate(parts[1:], 1):
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(".".join(parts[: at + 1]))
    return value


@pytest.mark.parametrize("name", NAMES)
def test_public_name_has_its_parameters_and_a_docstring(name):
    value = resolve(name)
    parameters = inspect.signature(value).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert [p for p in NAMES[name].split() if p not in parameters and not open_ended] == []
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_every_name_in_an_all_exists():
    for module, path in modules().items():
        if "__all__" in path.read_text():
            loaded = importlib.import_module(module)
            assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == [], module


def test_every_module_says_what_it_is():
    assert [
        m
        for m, path in modules().items()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ] == []


def test_library_code_prints_nothing():
    """Output belongs to the command line (through its console); everything else has a logger."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def test_version_stands_in_one_place():
    assert importlib.metadata.version("sca_kernels") == sca_kernels.__version__
    files = [
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.py"),
        *ROOT.glob("*.cfg"),
        *modules().values(),
        *ROOT.glob("csrc/**/*.*"),
    ]
    pattern = re.compile(rf"""["']{re.escape(sca_kernels.__version__)}["']""")
    assert [path.name for path in files if pattern.search(path.read_text())] == ["version.py"]


# Classes that two files define because they are one thing in two places: the same structure in Python and C++, the same
# equation in torch and C++.
TWINS = {
    *("ForwardParameters", "BackwardParameters", "MomentsParameters", "BitpackParameters", "TileParameters"),
    *("NeuronParameters", "PreludeParameters", "AffineParameters", "TrackingParameters", "NeuronConfig"),
    *("Partials", "Strided", "Gradients", "Prelude", "bfloat16"),
    *("IntegrateAndFire", "Leaky"),
}


def classes() -> dict[str, set[str]]:
    """Name of a class or structure of sca_kernels -> the files that define it."""
    found: dict[str, set[str]] = {}
    for path in sorted([*ROOT.glob("sca_kernels/**/*.py"), *ROOT.glob("csrc/**/*.*")]):
        text = path.read_text()
        if path.suffix == ".py":
            names = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        else:
            names = re.findall(r"^(?:struct|class) (?:alignas\([^)]*\) )?(\w+)(?= [{:])", text, re.M)
        for name in names:
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_a_class_in_two_files_is_one_thing_in_two_places():
    found = classes()
    assert {name: files for name, files in found.items() if len(files) > 1 and name not in TWINS} == {}
    assert {name for name in TWINS if len(found.get(name, ())) < 2} == set()
