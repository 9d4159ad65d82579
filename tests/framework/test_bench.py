"""sca bench: its files, its rows, its refusals; the peers' twins compute what our networks compute."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import sca
from sca import models
from sca.bench import BenchConfig, measure, peers, table
from sca.bench.work import prune_evenly
from sca.cli import app
from sca.models.network import Network
from sca.structure.groups import find_groups
from sca_kernels.backends import registry
from sca_kernels.backends.base import BackendError

TINY = ("--model", "vgg5", "--width", "0.125", "--size", "8", "--rounds", "3", "--round-to", "1", "--batch-size", "2")


def bench(*arguments: object):
    result = CliRunner().invoke(app, ["bench", *TINY, *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plain(text: str) -> str:
    """Without styles and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


@pytest.fixture
def no_peers(monkeypatch):
    installed = peers.installed
    monkeypatch.setattr(peers, "installed", lambda name: name == "matplotlib" and installed(name))


@pytest.fixture
def written(no_peers, tmp_path) -> dict:
    """What a benchmark without peers writes."""
    outcome = bench("--densities", "0.5", "--time-steps", "2", "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    return json.loads((tmp_path / "bench.json").read_text())


def test_bench_names_the_backend_and_measures_no_stand_in(no_peers, tmp_path, monkeypatch):
    if not (cpu := registry()["cpu"]).supports(torch.device("cpu"), torch.float32)[0]:
        pytest.skip("needs the compiled CPU backend")
    arguments = "--densities", "1", "--time-steps", "2", "--mode", "inference", "--out", tmp_path
    assert "sca_kernels (cpu)" in plain(bench(*arguments).output)

    def fail(*arguments):
        raise BackendError("backend: no registers left")

    monkeypatch.setattr(cpu, "neuron_forward", fail)
    try:
        outcome = bench(*arguments)
    finally:
        cpu.failures.clear()
    assert outcome.exit_code == 2
    assert "no registers left" in plain(outcome.output)


def test_bench_stores_every_figure_with_its_conditions(written):
    told = written["conditions"]
    assert all(told[key] for key in ("date", "device", "command", "threads", "versions", "backends"))
    assert {"commit", "dirty"} <= told.keys()
    assert written["config"]["densities"] == [1.0, 0.5]  # dense is always measured
    assert [(f["mode"], f["party"], f["density"]) for f in written["figures"]] == [
        (mode, *party)
        for mode in ("training", "inference")
        for party in (("sca_kernels", 1.0), ("sca_kernels", 0.5), ("SpikingJelly", 1.0), ("snnTorch", 1.0))
    ]
    for figure in written["figures"]:
        if figure["party"] == "sca_kernels":
            speed = figure["samples_per_second"]
            assert 0 < speed["p20"] <= speed["median"] <= speed["p80"]
            assert speed["rounds"] == 3
            assert figure["peak_bytes"] > 0
            assert (figure["saved_bytes"] is None) == (figure["mode"] == "inference")
            assert 0 < figure["firing_rate"] < 1
            assert figure["input"] == [2, 3, 8, 8]
    dense, half = written["figures"][:2]
    assert half["active"] == pytest.approx(0.5, abs=0.01)
    assert half["saved_bytes"] < dense["saved_bytes"]
    assert half["peak_bytes"] < dense["peak_bytes"]


def test_bench_says_which_peer_is_not_installed(written):
    rows = [figure for figure in written["figures"] if figure["party"] != "sca_kernels"]
    assert all(row["samples_per_second"] is None and row["note"] == "not installed" for row in rows)
    shown = io.StringIO()
    Console(width=200, file=shown).print(table(written))
    assert shown.getvalue().count("not installed") == 4


@pytest.mark.parametrize("option", ["--time-steps", "--batch-size"])
def test_bench_scales_over_a_list(no_peers, tmp_path, option):
    outcome = bench(option, "1,2,4", "--mode", "training", "--densities", "0.5", "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    field = option[2:].replace("-", "_")
    ours = [f for f in figures if f["party"] == "sca_kernels" and f["density"] == 1]
    assert [f[field] for f in ours] == [1, 2, 4]
    assert ours[0]["saved_bytes"] < ours[1]["saved_bytes"] < ours[2]["saved_bytes"]
    assert (tmp_path / "bench.png").exists()


def test_bench_of_sequences_computes_every_step_of_them(no_peers, tmp_path, monkeypatch):
    shapes = set()
    pass_of = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, x: shapes.add(x.shape) or pass_of(self, x))
    arguments = "--sequences", "--in-channels", "2", "--densities", "1", "--time-steps", "3", "--out", tmp_path
    outcome = bench("--model", "conv5fc1", *arguments)
    assert outcome.exit_code == 0, outcome.output
    (shape,) = shapes
    assert (shape[0], *shape[2:3]) == (3, 2)
    assert "sequences, T 3" in plain(outcome.output)
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert {tuple(figure["input"]) for figure in stored["figures"]} == {tuple(shape)}


def test_bench_does_not_time_a_twin_that_computes_something_else(monkeypatch, tmp_path):
    def wrong(model, detach_reset):
        twin = models.build(**model.config)
        torch.nn.init.normal_(twin.classifier.bias, std=20)
        return twin

    monkeypatch.setitem(peers.PEERS, "snntorch", peers.Peer("snnTorch", "snntorch", wrong))
    outcome = bench("--peers", "snntorch", "--mode", "training", "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    row = json.loads((tmp_path / "bench.json").read_text())["figures"][-1]
    assert row["samples_per_second"] is None
    assert row["note"].startswith("not timed: its first loss is")


@pytest.mark.parametrize(
    ("name", "arguments", "note"),
    [
        ("vgg5", {"tau": 4 / 3, "surrogate": "s2nn"}, "no twin with tau = 1.333, surrogate = s2nn"),
        ("vgg5", {"neuron": "if"}, "no twin with neuron = if"),
        ("vgg5", {"v_reset": None, "detach_reset": True}, "no twin with v_reset = None"),
        ("resnet20", {}, "no twin of resnet20"),
    ],
)
def test_bench_says_of_which_networks_peers_have_no_twin(tmp_path, name, arguments, note):
    file = tmp_path / "network.safetensors"
    sca.save(models.build(name, in_channels=1, image_size=8, time_steps=2, width=0.25, **arguments), file)
    config = BenchConfig(network=str(file), rounds=3, batch_size=(2,), modes=("inference",))
    peers_rows = measure(config, "sca bench")["figures"][1:]
    assert [row["note"] for row in peers_rows] == [note, note]
    assert all(row["samples_per_second"] is None for row in peers_rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "1,0"], "densities: expected shares in (0, 1], got '1.0,0.0'"),
        (["--densities", "1.5"], "densities: expected shares in (0, 1]"),
        (["--densities", "half"], "densities: expected numbers separated by commas, got 'half'"),
        (["--model", "vgg7"], "model: expected one of "),
        (["--peers", "norse"], "peers: expected some of spikingjelly, snntorch, got 'norse'"),
        (["--mode", "thinking"], "modes: expected some of training, inference"),
        (["--time-steps", "0"], "time_steps: expected numbers, each at least 1"),
        (["--time-steps", "1,2", "--batch-size", "1,2"], "time_steps, batch_size: expected several values of one"),
        (["--rounds", "2"], "rounds: expected at least 3"),
        (["--precision", "int8"], "precision: expected one of float32, bfloat16"),
        (["--device", "warp"], "device: expected one that torch can use here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bench_reports_bad_input_in_one_line_before_work_starts(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    outcome = bench(*arguments)
    assert outcome.exit_code == 2, outcome.output
    assert message in plain(outcome.output)
    assert "Traceback" not in outcome.output
    assert not list(tmp_path.iterdir())


def test_bench_reports_an_unwritable_folder_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = bench("--out", tmp_path / "file" / "results")
    assert outcome.exit_code == 2
    assert "out: expected a folder to write to" in plain(outcome.output)


def test_prune_evenly_leaves_the_same_share_of_every_layer():
    model = models.build("vgg9", in_channels=2, image_size=8)
    prune_evenly(model, 0.5, round_to=16)
    assert {members.group.density for members in find_groups(model).values()} == {0.5}


def twins(name: str, model: str, size: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and a peer's."""
    peer = peers.PEERS[name]
    if not peers.installed(peer.package):
        pytest.skip(f"{peer.label} is not installed")
    ours = models.build(model, in_channels=2, image_size=size, width=0.25, detach_reset=True)
    return ours, peer.vgg(ours, detach_reset=True)


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("frames", [(), (6,)], ids=["still", "sequence"])
@pytest.mark.parametrize("model", ["vgg5", "vgg9", "conv5fc1"])  # with and without a pool behind the first convolution
def test_twin_has_our_loss_and_gradients(name, frames, model):
    ours, twin = twins(name, model, 8)
    assert not peers.no_twin(ours)
    x, labels = torch.randn(*frames, 4, 2, 8, 8), torch.randint(10, (4,))
    losses = [cross_entropy(net(x).mean(0), labels) for net in (ours, twin)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    for (at, a), b in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-6, at


def test_twin_has_our_loss_on_events():
    """In float64: of so many potentials, some are so near the threshold that float32 rounds them to either side."""
    ours, twin = (net.double() for net in twins("spikingjelly", "conv5fc1", 48))
    events, labels = torch.poisson(torch.rand(10, 4, 2, 48, 48, dtype=torch.float64)), torch.randint(10, (4,))
    losses = [cross_entropy(net(events).mean(0), labels).item() for net in (ours, twin)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_bench_measures_a_network_that_was_trained_dense_and_as_it_is(tmp_path):
    model = sca.models.build("vgg5", in_channels=1, image_size=8, time_steps=2, num_classes=3)
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active(range(0, members.group.num_channels, 4))
    file = tmp_path / "pruned.safetensors"
    sca.save(model, file)
    config = BenchConfig(network=str(file), peers=(), rounds=3, batch_size=(2,), modes=("inference",))
    result = measure(config, "sca bench", lambda text: None)
    assert [figure["density"] for figure in result["figures"]] == [1.0, 0.25]
    assert {tuple(figure["input"]) for figure in result["figures"]} == {(2, 1, 8, 8)}
    assert {figure["time_steps"] for figure in result["figures"]} == {2}
    assert result["config"]["model"] == "vgg5"
    assert all(figure["samples_per_second"] for figure in result["figures"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"network: expected a run's folder or a file of sca\.save, got .*file \(No such file"),
        (b"", "file: not a checkpoint"),
        (b"something else", "file: not a checkpoint"),
    ],
)
def test_bench_refuses_a_network_that_is_none(tmp_path, content, message):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        measure(BenchConfig(network=str(file), peers=(), rounds=3), "sca bench", lambda text: None)


def test_foreign_networks_are_measured_or_say_why_not(tmp_path, monkeypatch):
    from sca.bench import foreign

    own = foreign.ForeignNetwork(
        "torch",
        lambda: torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 4, 3)),
        lambda: torch.rand(4, 2, 8, 8),
        {},
    )
    absent = own._replace(package="no_such_package")
    monkeypatch.setattr(foreign, "NETWORKS", {"own": own, "absent": absent})
    rows = foreign.measure_foreign(lambda text: None)
    assert rows[0]["training_ratio"] > 0
    assert rows[1]["note"] == "not measured: no_such_package is not installed"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(foreign.table_of_foreign(rows))
    assert "not measured" in shown.get()
    foreign.plot_foreign(tmp_path / "convert.png", rows)
    assert (tmp_path / "convert.png").stat().st_size > 1000
