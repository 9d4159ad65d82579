"""What `nn.explain` says of a model."""

import pytest
import torch

from sca_kernels import nn, paths
from sca_kernels.backends import registry


def model(**arguments):
    first, second = nn.ChannelGroup(64, "a"), nn.ChannelGroup(128, "b")
    layers = torch.nn.Sequential(
        nn.ChannelConv2d(3, 64, 3, out_group=first, **arguments),
        nn.BatchNormLIF(64, group=first),
        nn.ChannelConv2d(64, 128, 3, in_group=first, out_group=second),
        nn.LIF(),
        torch.nn.Flatten(2),
        nn.ChannelLinear(128 * 4, 10, in_group=second, features_per_channel=4),
    )
    return layers, first, second


at_64 = "winograd" if "winograd" in registry()["cpu"].paths else "dense"


def test_a_dense_model_gathers_nothing():
    rows = nn.explain(model()[0])
    assert [row.name for row in rows] == ["0", "1", "2", "3", "5"]
    assert [row.path for row in rows] == ["dense", "fused", at_64, "fused", "dense"]
    assert [row.inputs for row in rows] == ["3/3", "64/64", "64/64", "as its input", "128/128"]


def test_a_pruned_model_says_widths_paths_and_where_the_figures_are():
    layers, first, second = model()
    first.set_active(range(19))
    second.set_active(range(64))
    rows = {row.name: row for row in nn.explain(layers)}
    assert (rows["2"].inputs, rows["2"].outputs, rows["2"].path) == ("19/64", "64/128", at_64)
    assert "A3.json" in rows["2"].why
    assert (rows["5"].inputs, rows["5"].outputs, rows["5"].path) == ("64/128", "10/10", "gathered")
    assert rows["1"].backend == next(b.name for b in registry().values() if _default(b))
    layers.bfloat16()
    assert "not measured" in {row.name: row for row in nn.explain(layers)}["2"].why


def _default(backend):
    device = torch.device("cpu")
    return "cpu" not in backend.only_by_name and backend.supports(device, torch.float32)[0]


def test_what_is_named_is_said_and_what_cannot_run_says_why():
    row = nn.explain(model(backend="reference", path="gathered")[0])[0]
    assert (row.backend, row.path) == ("reference", "gathered")
    assert "named" in row.why
    row = nn.explain(model(backend="reference", path="implicit")[0])[0]
    assert (row.backend, row.path) == ("none", "implicit")
    assert "expected a multiple of 4 active channels in torch.float32, got 3: 4 would do" in row.why
    row = nn.explain(nn.ChannelConv2d(8, 8, 3, backend="reference", path="implicit"))[0]
    assert (row.backend, row.path) == ("none", "implicit")
    assert "reference has no kernels" in row.why
    row = nn.explain(model(backend="cuda")[0])[0]
    assert row.backend == "none"
    assert "can't run" in row.why


def test_autocast_counts():
    layers, first, _ = model()
    first.set_active([1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "bfloat16" in nn.explain(layers)[0].why


def test_as_a_string_it_is_a_table():
    lines = str(nn.explain(model()[0])).splitlines()
    assert lines[0].split() == list(nn.explain(model()[0])[0]._fields)
    assert len(lines) == 6


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_not_measured_gathers(device):
    choice = paths.measured(torch.device(device), torch.bfloat16, (64, 64), (32, 32), list(paths.NEEDS))
    assert choice.path == "gathered"
    assert "not measured" in choice.why


def test_rules_name_result_files_that_exist(request):
    for rules in paths.RULES.values():
        for rule in rules:
            assert (request.config.rootpath / rule.source).is_file(), rule
