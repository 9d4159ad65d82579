"""A run's figures are measured once and told alike: by sca train, sca eval, sca report, its page and its files."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sca
from sca.cli import app
from sca.pictures import png
from sca.report.runs import accuracies, last_accuracy, read_runs
from sca.training import RunFolder, load_data, load_model, load_pruned
from sca.training.evaluation import COUNTED_IMAGES, count_cost, measure_accuracy

TINY = [
    *("--model", "vgg5", "--width", "0.125", "--time-steps", "2", "--epochs", "2", "--batch-size", "32"),
    *("--limit-train", "96", "--limit-test", "70", "--set", "min_channels=2"),
]
LABELS = ("test accuracy", "density", "connectivity", "parameters", "SynOps per sample", "energy per sample (nJ)")
SPEEDS = ("training (samples/s)", "inference (samples/s)")


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A finished run with its dense twin, and what the command printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("figures") / "run"
    output = command("train", *TINY, "--out", folder)
    torch.set_num_threads(threads)
    return folder, output


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def unfinished(folder: Path) -> Path:
    for name in ("summary.json", "model.safetensors"):
        (folder / name).unlink()
    return folder


def printed(output: str) -> dict[str, list[str]]:
    """The rows of the table that a command printed."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    return {label: cells for label, *cells in lines}


def shown(page: Path) -> dict[str, list[str]]:
    """The rows of a page's first table."""
    table = re.search(r"<table>.*?</table>", page.read_text(), re.S)[0]
    rows = [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in table.split("<tr>")
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def stored(folder: Path) -> dict[str, list[str]]:
    """What summary.json holds, as text."""
    summary = json.loads((folder / "summary.json").read_text())
    columns = [summary["dense"], summary["compacted"]]
    forms = {
        "test accuracy": lambda c: f"{100 * c['accuracy']:.2f}%",
        "density": lambda c: f"{100 * c['density']:.1f}%",
        "connectivity": lambda c: f"{100 * c['connectivity']:.1f}%",
        "parameters": lambda c: f"{c['parameters']:,}",
        "SynOps per sample": lambda c: f"{c['synops']:,.0f}",
        "energy per sample (nJ)": lambda c: f"{c['energy_pj'] / 1000:,.0f}",
        "training (samples/s)": lambda c: f"{c['training']['median']:,.0f}",
        "inference (samples/s)": lambda c: f"{c['inference']['median']:,.0f}",
    }
    return {label: [form(column) for column in columns] for label, form in forms.items()}


def test_train_eval_report_page_and_file_tell_the_same_figures(finished):
    folder, trained = finished
    expected = stored(folder)
    reported = command("report", folder)
    tables = [printed(trained), printed(command("eval", folder)), printed(reported), shown(folder / "report.html")]
    for table in tables:
        assert table == tables[0]
        assert tuple(table) == (*LABELS, *SPEEDS)
        assert {label: cells[:2] for label, cells in table.items()} == expected
    *_, total = [line.split() for line in reported.splitlines() if line.strip().startswith("total")]
    (told,) = read_runs([folder])
    cost = told.cost
    summary = json.loads((folder / "summary.json").read_text())["compacted"]
    assert (cost.connectivity, cost.synops, cost.energy_pj) == tuple(
        summary[name] for name in ("connectivity", "synops", "energy_pj")
    )
    assert cost.active_parameters == summary["parameters"]
    assert f"{cost.connectivity:.1%}" in total


def test_the_last_epoch_the_summary_and_the_network_have_one_density_and_one_connectivity(finished):
    folder, _ = finished
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    update = json.loads((folder / "updates.jsonl").read_text().splitlines()[-1])
    summary = json.loads((folder / "summary.json").read_text())["compacted"]
    assert row["density"] == summary["density"] == update["density"]
    assert row["connectivity"] == summary["connectivity"] == sca.cost.connectivity(load_pruned(folder))


def test_eval_measures_the_accuracy_of_the_summary_again_and_says_so(finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    accuracy = summary["compacted"]["accuracy"]
    config = RunFolder.stored_config(folder)
    assert measure_accuracy(load_model(folder), load_data(config), config) == accuracy
    told = f"test accuracy {100 * accuracy:.2f} % of 70 images, measured now; as at the end of the run"
    assert told in command("eval", folder)


def test_eval_says_so_when_the_accuracy_is_another_one(copy):
    summary = json.loads((copy / "summary.json").read_text())
    summary["compacted"]["accuracy"] = 1.0
    (copy / "summary.json").write_text(json.dumps(summary))
    output = command("eval", copy)
    assert "measured now; not the 100.00 % of the end of the run" in output
    assert printed(output)["test accuracy"][1] == "100.00%"  # the table is the stored one


def test_a_finished_run_is_not_measured_for_its_costs_again(finished, monkeypatch):
    folder, _ = finished

    def refuse(*_, **__):
        raise AssertionError("counted again")

    monkeypatch.setattr("sca.training.evaluation.report_cost", refuse)
    assert printed(command("eval", folder)) == printed(command("report", folder))


def test_an_unfinished_run_is_measured_as_a_finished_one(finished, copy):
    folder, _ = finished
    expected = stored(folder)
    output = command("eval", unfinished(copy))
    table = printed(output)
    assert {label: table[label] for label in LABELS} == {label: [expected[label][1]] for label in LABELS}
    assert "accuracy on 70 test images; SynOps and energy on all of them" in " ".join(output.split())
    assert "at the end of the run" not in output
    (told,) = read_runs([folder])
    assert " ".join(told.cost.caption.split()) in " ".join(command("report", copy).split())
    assert " ".join(told.cost.caption.split()) in " ".join(html.unescape((copy / "report.html").read_text()).split())


def test_a_page_shows_the_costs_that_were_counted_for_it(copy):
    output = command("report", copy, "--batch-size", "20", "--max-batches", "2")
    page = " ".join(html.unescape((copy / "report.html").read_text()).split())
    assert "per sample, over 40 samples" in " ".join(output.split())
    assert "per sample, over 40 samples" in page


def test_a_page_is_written_where_the_data_are_missing(copy):
    unfinished(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data": "cifar10", "data_dir": str(copy / "nowhere")}))
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 2
    assert "data_dir: expected the files of cifar10" in " ".join(result.output.split())
    assert "The run is not finished" in (copy / "report.html").read_text()


def test_costs_are_counted_on_the_first_images_whatever_the_batch(finished, monkeypatch):
    folder, _ = finished
    assert COUNTED_IMAGES == 1024
    monkeypatch.setattr("sca.training.evaluation.COUNTED_IMAGES", 50)
    config = RunFolder.stored_config(folder)
    model, data = load_pruned(folder), load_data(config)
    found = [count_cost(model, data, config, size) for size in (None, 7, 50, 64)]
    assert [cost.samples for cost in found] == [50] * 4
    assert [cost.synops for cost in found] == [pytest.approx(found[0].synops)] * 4
    assert count_cost(model, data, config, 7, max_batches=9).samples == 63


# --- accuracy of either split ----------------------------------------------------------------------------------------


def measured_on_validation(folder: Path, last_has_test: bool) -> list[dict]:
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["validation_accuracy"] = row.pop("test_accuracy") / 2
    if last_has_test:
        rows[-1]["test_accuracy"] = 0.4321
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("last_has_test", [False, True])
def test_a_run_may_be_measured_on_validation_images(copy, last_has_test):
    rows = measured_on_validation(unfinished(copy), last_has_test)
    told = accuracies(rows)
    assert (told.split, told.values) == ("validation", [row["validation_accuracy"] for row in rows])
    split, value = ("test", 0.4321) if last_has_test else ("validation", rows[-1]["validation_accuracy"])
    assert last_accuracy(rows) == (split, value)
    command("report", copy)
    page = (copy / "report.html").read_text()
    assert f"so far reaches {value:.2%} {split} accuracy" in page
    assert "validation or test accuracy (%)" in page  # the dense twin's are of the test images
    assert f"validation {rows[-1]['validation_accuracy']:.2%}" in page
    assert ("test 43.21%" in page) == last_has_test


def test_a_run_may_be_tested_after_its_last_epoch_alone_or_not_at_all(copy):
    file = unfinished(copy) / "metrics.jsonl"
    first, last = (json.loads(line) for line in file.read_text().splitlines())
    del first["test_accuracy"]
    file.write_text(json.dumps(first) + "\n" + json.dumps(last) + "\n")
    assert accuracies([first, last]).values == [last["test_accuracy"]]
    command("report", copy)
    assert f"so far reaches {last['test_accuracy']:.2%} test accuracy" in (copy / "report.html").read_text()
    file.write_text(json.dumps(first) + "\n")
    shutil.rmtree(copy / "dense")
    command("report", copy)
    assert "has not been tested yet, at a density of" in (copy / "report.html").read_text()


def told_by(axes) -> dict[str, list[float]]:
    """What the legend lists, and what is drawn under that name."""
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    return curves


def test_curves_take_either_split(finished, copy, monkeypatch):
    from sca.training import plot

    figures = []
    monkeypatch.setattr(plot, "png", lambda figure: figures.append(figure) or png(figure))

    def drawn(history: list[dict], dense: list[dict]) -> list[dict[str, list[float]]]:
        plot.plot(copy / "other.png", history, dense, RunFolder.stored_config(finished[0]))
        assert (copy / "other.png").read_bytes().startswith(b"\x89PNG")
        return [told_by(axes) for axes in figures.pop().axes]

    def at_the_end(what: str, values: list[float]) -> dict[str, list[float]]:
        return {f"{what}: {values[-1]:.2%} at the end": values}

    def column(rows: list[dict], name: str) -> list[float]:
        return [row[name] for row in rows]

    dense = [json.loads(line) for line in (copy / "dense" / "metrics.jsonl").read_text().splitlines()]
    rows = measured_on_validation(copy, last_has_test=True)
    train, measured, reference = (
        at_the_end("train", column(rows, "train_accuracy")),
        at_the_end("validation", column(rows, "validation_accuracy")),
        at_the_end("test, dense reference", column(dense, "test_accuracy")),
    )
    accuracy, share, speed = drawn(rows, dense)
    assert accuracy == {**reference, **train, **measured, "test: 43.21% at the end": [0.4321]}
    assert share == {
        "density: active channels": column(rows, "density"),
        "connectivity: active weights": column(rows, "connectivity"),
    }
    assert speed == {
        name: column(of, "samples_per_second") for name, of in (("dense reference", dense), ("this run", rows))
    }
    accuracy, _, speed = drawn(rows[:1], [])
    assert list(accuracy.values()) == [[rows[0]["train_accuracy"]], [rows[0]["validation_accuracy"]]]
    assert list(speed) == ["this run"]
    accuracy, *_ = drawn(dense, [])
    assert accuracy == {
        **at_the_end("train", column(dense, "train_accuracy")),
        **at_the_end("test", column(dense, "test_accuracy")),
    }


# --- environment -----------------------------------------------------------------------------------------------------


def test_a_page_tells_the_environment_of_the_last_start(copy):
    first = {"command": "sca train --first", "versions": {"torch": "2.0"}, "commit": "abc", "processor": "one"}
    last = {"command": "sca train <b>", "versions": {"torch": "2.9", "cuda": None}, "commit": None, "processor": "two"}
    (copy / "environment.json").write_text(json.dumps([first, {**last, "threads": 3}]))
    command("report", copy)
    page = html.unescape((copy / "report.html").read_text())
    text = " ".join(re.sub(r"</?(?!b>)[a-z][^>]*>", " ", page).split())
    assert "Environment Of the last of 2 starts." in text
    assert "command sca train <b> versions torch = 2.9, cuda = none commit none processor two threads 3" in text
    assert "--first" not in text
    assert "sca train <b>" not in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "environment.json: expected a list of 1 to 4096 values"),
        ("[]", "environment.json: expected a list of 1 to 4096 values"),
        ("[3]", "environment.json: [0]: expected a JSON object, got 3"),
        ('[{"command": ["sca"]}]', "environment.json: [0].command: expected a string"),
        ('[{"versions": "2.9"}]', "environment.json: [0].versions: expected a JSON object"),
        ('[{"versions": {"torch": 2.9}}]', "environment.json: [0].versions.torch: expected a string"),
        ("[", "environment.json: damaged"),
    ],
)
def test_a_damaged_environment_is_named(copy, content, message):
    (copy / "environment.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_runs([copy])
