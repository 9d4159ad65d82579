"""sca report: one page that needs nothing else and says what the runs' files say, from logs that survive a resume."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy as copy_of
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sca.cli import app
from sca.pruning.histogram import BINS, histogram
from sca.report.comparison import comparison
from sca.report.html import conclusion, page
from sca.report.runs import read_runs
from sca.training import RunFolder, TrainConfig, run
from sca.training.loop import Interrupted
from sca.training.recording import store_recording
from tests.framework.watched import Watch, tiny

CONFIG = tiny(epochs=3, limit_train=96, reference="train")
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Text, ids and links of a document whose tags have to match."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.targets += [given[name] for name in ("href", "src", "xlink:href", "srcset", "data") if name in given]
        self.targets += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in given.values()))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def train(folder: Path, config: TrainConfig, stop_after: int | None = None, mode: str = "new") -> Path:
    with RunFolder(folder, mode) as held:
        run(config, held, Watch(stop_after=stop_after))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run, with its dense twin in the folder ``dense``, and a recording, which its data has not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = train(tmp_path_factory.mktemp("report") / "pruned", CONFIG)
    torch.set_num_threads(threads)
    start = {"command": "sca train", "versions": {"torch": "2.9"}, "commit": None, "processor": "a-processor"}
    (path / "environment.json").write_text(json.dumps([start]))
    frames = np.random.default_rng(0).poisson(0.5, (17, 4, 6, 2))
    store_recording(path / "recording.json", frames, 3, "wave <b>", "17 frames of 50 ms")
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A run whose files a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def unfinished(folder: Path) -> Path:
    """As a run looks that was killed while it wrote its third epoch's line."""
    for name in ("summary.json", "model.safetensors", "curves.png"):
        (folder / name).unlink()
    first, second, third = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(f"{first}\n{second}\n{third[:40]}")
    return folder


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def rewrite(file: Path, changed: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))


def report(*arguments: object):
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_report_writes_one_page_that_needs_nothing_else_and_prints_the_cost(folder):
    outcome = report(folder)
    assert outcome.exit_code == 0, outcome.output
    assert "report.html" in plain(outcome.output)
    assert "Cost per sample" in plain(outcome.output)
    content = (folder / "report.html").read_text()
    assert len(content) < 500_000
    shown = Page(content)
    assert "script" not in shown.tags
    assert not re.search(r"@import|https?://", content)
    places = [target for target in shown.targets if not target.startswith("data:image/png;base64,")]
    assert len(shown.targets) - len(places) == shown.tags.count("image") == 2 * 16
    assert {target[0] for target in places} == {"#"}
    assert len(set(shown.ids)) == len(shown.ids)
    assert {target[1:] for target in places} <= set(shown.ids)
    assert shown.tags.count("svg") == shown.tags.count("figure")
    for title in (
        *("Accuracy against connectivity", "Accuracy against SynOps", "Training", "Channels kept"),
        *("Scores at the last update", "Firing rates", "Dense against compacted", "Cost of each layer", "Settings"),
        *("test accuracy (%)", "training throughput (samples/s)", "SynOps per sample", "epoch", "pruned", "regrown"),
    ):
        assert title in shown.text, title
    for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert rule in content


def test_page_shows_what_the_files_say(folder):
    (told,) = read_runs([folder])
    text = Page(page([told])).text
    summary = json.loads((folder / "summary.json").read_text())
    headers, table = comparison(summary)
    assert headers == ["", "dense", "compacted", "change"]
    for row in table:
        assert " ".join(row) in text
    assert f"{summary['compacted']['accuracy']:.2%}" in conclusion(told)
    assert (
        f"{summary['compacted']['synops'] / summary['dense']['synops']:.1%} of the dense network's SynOps"
        in conclusion(told)
    )
    assert conclusion(told) in text
    assert "No layer is dead" in text
    for layer in told.cost.cells():
        assert " ".join(cell for cell in layer if cell) in text
    assert told.cost.synops == summary["compacted"]["synops"]

    last, updates = rows(folder / "metrics.jsonl")[-1], rows(folder / "updates.jsonl")
    for name, group in updates[0]["groups"].items():
        assert f"{last['active'][name]} / {group['before']}" in text
    assert f"pruned {sum(update['pruned'] for update in updates):,} channels" in text
    for rate in last["firing_rates"].values():
        assert f"{rate:.1%}" in text
    for name, value in (("batch_size", "32"), ("lr", "0.2"), ("reference", "train")):
        assert f"{name} {value}" in text


def terminal_total(output: str) -> list[str]:
    """The last row of the cost table that a command printed: words of its cells."""
    return next(line.split() for line in output.splitlines() if line.strip().startswith("total"))


@pytest.mark.parametrize("options", [[], ["--max-batches", "1"]], ids=["as stored", "counted anew"])
def test_report_prints_the_cost_that_train_counted_and_the_page_shows(folder, options):
    summary = json.loads((folder / "summary.json").read_text())
    outcome = report(folder, *options)
    assert outcome.exit_code == 0, outcome.output
    (told,) = read_runs([folder])
    *_, total = told.cost.cells()
    assert terminal_total(outcome.output) == " ".join(total).split()
    caption = " ".join(told.cost.caption.split())
    assert caption in plain(outcome.output)  # SynOps as a share of the unpruned layers'
    assert f"{summary['compacted']['connectivity']:.1%}" in total
    assert summary["compacted"]["connectivity"] < 0.5


def test_report_counts_an_unfinished_run_against_the_dense_network(copy):
    last = rows(copy / "metrics.jsonl")[-1]
    (copy / "summary.json").unlink()
    assert f"{last['connectivity']:.1%}" in terminal_total(report(copy).output)


def test_report_of_a_finished_run_needs_no_checkpoint(copy):
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (copy / name).unlink()
    assert "Cost per sample" in report(copy).output
    assert "no checkpoint to count on" in plain(report(copy, "--max-batches", "1").output)


def test_updates_are_logged_with_counts_and_scores_that_add_up(folder):
    updates, epochs = rows(folder / "updates.jsonl"), rows(folder / "metrics.jsonl")
    active = None
    for update in updates:
        assert update["pruned"] == sum(group["pruned"] for group in update["groups"].values())
        assert update["regrown"] == sum(group["regrown"] for group in update["groups"].values())
        for name, group in update["groups"].items():
            assert active is None or group["before"] == active[name]
            assert update["active"][name] == group["before"] - group["pruned"] + group["regrown"]
            scores = group["scores"]
            assert sum(scores["pruned"]) == group["pruned"]
            assert sum(scores["kept"]) == group["before"] - group["pruned"]
            assert scores["low"] <= scores["cut"] <= scores["high"]
        active = update["active"]
    assert active == epochs[-1]["active"]
    assert any(update["regrown"] for update in updates)
    for row in epochs:
        rates = row["firing_rates"]
        assert list(rates) == list(row["active"])  # one neuron layer for each group of a VGG, named after it
        assert min(rates.values()) <= row["firing_rate"] <= max(rates.values())


def test_logs_of_a_resumed_run_are_those_of_the_uninterrupted_one(folder, tmp_path):
    config = CONFIG.changed(reference=str(folder / "dense"))
    for stop_after in (2, 4):
        with pytest.raises(Interrupted):
            train(tmp_path / "run", config, stop_after, mode="resume" if stop_after > 2 else "new")
    (tmp_path / "run" / "updates.jsonl").write_text("")  # lost, and written again from the checkpoint
    train(tmp_path / "run", config, mode="resume")
    assert (tmp_path / "run" / "updates.jsonl").read_text() == (folder / "updates.jsonl").read_text()
    for ours, theirs in zip(rows(tmp_path / "run" / "metrics.jsonl"), rows(folder / "metrics.jsonl"), strict=True):
        assert ours["firing_rates"] == theirs["firing_rates"]
        assert ours["active"] == theirs["active"]


def test_report_compares_several_runs(folder, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "density": 0.25}))
    unfinished(copy)
    outcome = report(folder, copy, folder)  # named twice, shown once
    assert outcome.exit_code == 0, outcome.output
    assert "Cost per sample" not in outcome.output
    shown = Page((tmp_path / "report.html").read_text())
    assert "2 runs compared" in shown.text
    assert "A pruned : At a connectivity of" in shown.text
    assert "B copy : Unfinished, 2 of 3 epochs" in shown.text
    assert "Settings that differ setting A B density 0.5 0.25" in shown.text
    assert {"run-A", "run-B"} <= set(shown.ids)
    assert len(set(shown.ids)) == len(shown.ids)


def test_report_names_runs_of_the_same_name_by_their_folders(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    names = [told.name for told in read_runs([folder, other])]
    assert names == [f"{folder.parent.name}/pruned", "other/pruned"]


def test_report_of_an_unfinished_run_says_so_and_shows_what_there_is(copy):
    unfinished(copy)
    outcome = report(copy, "--out", copy / "page.html")
    assert outcome.exit_code == 0, outcome.output
    assert "Cost per sample" in outcome.output  # of its checkpoint
    text = Page((copy / "page.html").read_text()).text
    assert "Unfinished, 2 of 3 epochs" in text
    assert "The run is not finished" in text
    assert "Firing rates" in text
    assert "Accuracy against SynOps" not in text
    assert "Dense against compacted" not in text

    for name in ("metrics.jsonl", "updates.jsonl", "checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (copy / name).unlink()
    outcome = report(copy)
    assert outcome.exit_code == 0, outcome.output
    assert "no checkpoint yet" in plain(outcome.output)
    assert "has not been tested yet" in Page((copy / "report.html").read_text()).text


def test_report_of_a_dense_run(folder, copy):
    shutil.copyfile(copy / "summary.json", copy / "dense" / "summary.json")
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "dense" / "summary.json").write_text(json.dumps({**summary, "compacted": summary["dense"], "dense": None}))
    (told,) = read_runs([copy / "dense"])
    text = Page(page([told])).text
    assert conclusion(told).startswith("The dense vgg5 on digits")
    assert "Nothing was pruned" in text
    assert "Scores" not in text


def test_report_flags_dead_and_nearly_silent_layers_in_words(copy):
    epochs = rows(copy / "metrics.jsonl")
    first, second, *_ = epochs[-1]["firing_rates"]
    epochs[-1]["firing_rates"].update({first: 0.0, second: 0.0004})
    rewrite(copy / "metrics.jsonl", epochs)
    text = Page(page(read_runs([copy]))).text
    assert f"Dead, without a single spike: {first}." in text
    assert f"Nearly silent, below 0.1%: {second}." in text
    assert "0% dead" in text
    assert "0.04% nearly silent" in text
    assert "No layer is dead" not in text


def test_report_escapes_what_files_hold(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data_dir": "<script>alert(1)</script>"}))
    assert "script" not in Page(page(read_runs([copy]))).tags


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "run: expected the folder of a run"),
        ("config.json", "{", "config.json: damaged"),
        ("config.json", "{}", "config.json: model: expected a string, got nothing"),
        ("config.json", "[" * 100_000, "config.json: damaged"),
        ("metrics.jsonl", '{"epoch": 1}\n', "metrics.jsonl, line 1: step: expected a number"),
        ("metrics.jsonl", "\x00\xff\n", "metrics.jsonl, line 1: damaged"),
        (
            "updates.jsonl",
            '{"step": 1, "active": {"a": 1}, "groups": {"a": 3}}\n',
            "updates.jsonl, line 1: groups.a: expected a JSON object, got 3",
        ),
        (
            "summary.json",
            '{"compacted": {}, "notes": [], "cost": {}}',
            "summary.json: dense: expected a value, got nothing",
        ),
        ("summary.json", "[]", "summary.json: expected a JSON object, got []"),
    ],
)
def test_report_names_the_damaged_file_and_writes_nothing(copy, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    outcome = report(copy, "--out", copy / "page.html")
    assert outcome.exit_code == 2
    assert message in plain(outcome.output)
    assert "Traceback" not in outcome.output
    assert not list(copy.glob("page*"))


FILES = ("config.json", "metrics.jsonl", "updates.jsonl", "summary.json", "environment.json", "recording.json")
ODD = [
    *(..., None, True, "x", "", [], {}, [[]], {"a": 1}, ["a"], math.nan, math.inf, -1, 0, 1, 2, 0.5, 5e-324),
    *(1e308, -1e308, 10**30, 10**400, "<b>$\\frac$", "\ud800", "\x00\n", "x" * 3000),
]


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The ways to every part of a JSON value; of lists, to the first two entries."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*path, key))


def spoiled(value: Any, path: tuple, odd: Any) -> Any:
    """A copy with another value at the end of a path, or with nothing there (...)."""
    value = copy_of(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    if odd is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = odd
    return value


def damages(folder: Path) -> Iterator[tuple[str, str]]:
    """A file's name and its damaged text: every part of it in turn, replaced by every odd value."""
    for name in FILES:
        log = name.endswith("l")
        whole = rows(folder / name) if log else json.loads((folder / name).read_text())
        for path in paths(whole):
            for odd in ODD if path else ():
                value = spoiled(whole, path, odd)
                yield name, "".join(json.dumps(row) + "\n" for row in value) if log else json.dumps(value)


def test_report_of_damaged_files_is_a_page_or_a_sentence_that_names_the_file(copy):
    texts = {name: (copy / name).read_text() for name in FILES}
    found, read, refused = list(damages(copy)), [], []
    assert len(found) > 5000
    for name, text in random.Random(0).sample(found, 600):
        (copy / name).write_text(text)
        try:
            read.append(read_runs([copy]))
        except ValueError as error:
            refused.append((name, str(error)))
        (copy / name).write_text(texts[name])
    for name, error in refused:
        assert error.startswith(f"{copy / name}"), error
        assert len(error) < 600
        assert "expected" in error
    assert min(len(read), len(refused)) > 100
    for runs in random.Random(0).sample(read, 8):
        content = page(runs).encode(errors="replace").decode()
        assert "<b>$" not in content
        Page(content)


def test_report_draws_any_name_of_a_layer(copy):
    """Markup, mathematics, control characters, a lone surrogate, and more letters than a figure is wide."""
    odd = "<b>$\\frac{1}$\x00\n\ud800" + "layer." * 40
    for name in ("metrics.jsonl", "updates.jsonl", "summary.json"):
        (copy / name).write_text((copy / name).read_text().replace('"conv2"', json.dumps(odd)))
    content = page(read_runs([copy])).encode(errors="replace").decode()
    assert "b" not in Page(content).tags
    assert "layer.layer." in content


@pytest.mark.parametrize("name", FILES)
def test_report_names_a_file_cut_at_any_byte_or_full_of_others(copy, name):
    content = (copy / name).read_bytes()
    draw = random.Random(0)
    cut = [content[: draw.randrange(len(content))] for _ in range(20)]
    refused = []
    for text in [*cut, *(draw.randbytes(99) + b"\n" for _ in range(20))]:
        (copy / name).write_bytes(text)
        try:
            read_runs([copy])  # a log may end in a line that is still being written
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= 20
    assert {error.startswith(str(copy / name)) for error in refused} == {True}


def test_report_refuses_what_never_ends_and_what_is_too_large(copy, monkeypatch):
    (copy / "metrics.jsonl").unlink()
    os.mkfifo(copy / "metrics.jsonl")
    outcome = report(copy)
    assert outcome.exit_code == 2
    assert f"not a regular file: '{copy / 'metrics.jsonl'}'" in plain(outcome.output)
    (copy / "metrics.jsonl").unlink()
    monkeypatch.setattr("sca.report.runs.MAX_BYTES", 100)
    outcome = report(copy)
    assert outcome.exit_code == 2
    assert "larger than 100 bytes" in plain(outcome.output)


def test_report_refuses_a_place_that_it_cannot_write_to(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sca.report.html.page", lambda runs: "page")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "absent" / "page.html", tmp_path / "file" / "page.html", tmp_path / "folder"):
        outcome = report(folder, "--out", out)
        assert outcome.exit_code == 2
        assert "out: expected a file to write to" in plain(outcome.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_histogram_counts_every_score_once():
    score = torch.tensor([0.0, 0.5, 1.0, 0.25, float("inf")], dtype=torch.float64)
    kept = torch.tensor([False, True, True, False, True])
    told = histogram(score, kept)
    assert (told["low"], told["high"], told["cut"]) == (0.0, 1.0, 0.5)
    assert len(told["kept"]) == BINS
    assert (told["kept"][BINS // 2], told["kept"][-1], sum(told["kept"])) == (1, 2, 3)
    assert (told["pruned"][0], told["pruned"][BINS // 4], sum(told["pruned"])) == (1, 1, 2)


@pytest.mark.parametrize("score", [[], [2.0, 2.0], [float("inf")]], ids=str)
def test_histogram_of_scores_without_spread(score):
    told = histogram(torch.tensor(score, dtype=torch.float64), torch.ones(len(score), dtype=torch.bool))
    assert sum(told["kept"]) == len(score)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
