"""sca bench table1: cells in folders of their own, resumed where they stopped, and told as mean and spread."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sca.cli import app
from sca.cli.cells import CellsDisplay
from sca.experiments import table1
from sca.experiments.table1.export import as_latex
from sca.experiments.table1.report import blocks
from sca.pictures import drawing
from sca.training import TrainConfig

TINY = [
    *("--model", "vgg5", "--width", "0.25", "--epochs", "2", "--limit-train", "200", "--limit-test", "100"),
    *("--criteria", "sca,random", "--connectivities", "0.4", "--seeds", "2", "--set", "time_steps=2"),
    *("--set", "min_channels=1"),
]


def bench(*arguments: object):
    result = CliRunner().invoke(app, ["bench", "table1", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished table whose first attempt was interrupted: its folder, and what both attempts printed."""
    folder = tmp_path_factory.mktemp("bench") / "table"
    steps = iter(range(30))

    def stop_in_the_middle(display, trainer) -> None:
        display.stop_requested = next(steps) == 20  # 8 steps a run: in the third cell

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellsDisplay, "on_batch", stop_in_the_middle)
        first = bench(*TINY, "--out", folder)
    assert first.exit_code == 130, first.output
    unfinished = {path.name: (path / "summary.json").exists() for path in folder.iterdir() if path.is_dir()}
    second = bench(*TINY, "--out", folder)
    assert second.exit_code == 0, second.output
    return folder, plain(first.output), unfinished, plain(second.output)


def test_table1_interrupted_goes_on_with_the_cell_that_was_interrupted(made):
    _, first, unfinished, second = made
    assert "interrupted; go on with: sca" in first
    assert unfinished == {"dense-seed0": True, "sca-40-seed0": True, "random-40-seed0": False}
    assert "2 of 6 cells are finished" in second
    assert "2/6 sca-40-seed0" in first
    assert "2/6" not in second
    assert "3/6 random-40-seed0: accuracy" in second


def test_table1_stores_mean_and_spread_of_compacted_networks(made):
    folder, *_ = made
    result = json.loads((folder / "table1.json").read_text())
    assert [(row["criterion"], row["asked"], row["seeds"]) for row in result["rows"]] == [
        ("dense", 1.0, [0, 1]),
        ("sca", 0.4, [0, 1]),
        ("random", 0.4, [0, 1]),
    ]
    for row in result["rows"]:
        runs = [json.loads((folder / name / "summary.json").read_text()) for name in folders(row)]
        assert row["accuracy"]["values"] == [run["compacted"]["accuracy"] for run in runs]
        assert row["accuracy"]["mean"] == pytest.approx(sum(row["accuracy"]["values"]) / 2)
        assert row["connectivity"]["mean"] == pytest.approx(row["asked"], abs=0.01)
    dense, pruned, _ = result["rows"]
    assert dense["synops_kept"]["mean"] == 1
    assert 0 < pruned["synops_kept"]["mean"] < 1
    assert result["config"]["recipe"]["target"] == "channels"  # the recipe's own; the cells' is parameters
    assert json.loads((folder / "sca-40-seed0" / "config.json").read_text())["target"] == "parameters"
    assert result["conditions"]["command"]
    assert (folder / "table1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ours", [0.46, 0.92])
def test_table1_shows_accuracy_over_both_shares_and_published_networks_unless_far_above(made, ours):
    pytest.importorskip("matplotlib", reason="no matplotlib")
    folder, *_ = made
    result = json.loads((folder / "table1.json").read_text())
    result["published"] = [row._asdict() for row in table1.published.PUBLISHED if row.data == "cifar10"]
    for row in result["rows"]:
        row["accuracy"]["mean"] = ours
    with drawing() as figure:
        kept, costs = table1.report._drawn(figure, result).axes
    for axes, share in (kept, "connectivity"), (costs, "synops_kept"):
        curve = next(c for c in axes.containers if c.get_label() == "sca").lines[0]
        assert curve.get_xdata()[0] == pytest.approx(result["rows"][1][share]["mean"], rel=0.02)
        labels = axes.get_legend_handles_labels()[1]
        assert ("SPEAR (2025), VGG-16, T = 4: published" in labels) == (ours > 0.9)
        assert {"dense", "sca", "random"} <= set(labels)


def test_table1_as_csv_holds_the_results_in_full_precision(made):
    folder, _, _, output = made
    assert f"in {folder}: table1.json, table1.csv, table1.tex, table1.png" in output
    result = json.loads((folder / "table1.json").read_text())
    lines = list(csv.DictReader(io.StringIO((folder / "table1.csv").read_text())))
    assert [line["criterion"] for line in lines] == ["dense", "sca", "random"]
    for line, row in zip(lines, result["rows"], strict=True):
        assert (float(line["asked"]), int(line["seeds"])) == (row["asked"], len(row["seeds"]))
        for name in ("accuracy", "connectivity", "synops_kept"):
            assert float(line[f"{name}_mean"]) == row[name]["mean"]
            assert float(line[f"{name}_std"]) == row[name]["std"]


def latex_rows(text: str) -> list[list[str]]:
    """Cells of the tabular's lines, after a look at what LaTeX would stumble over."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert re.findall(r"\\(begin|end)\{(\w+)\}", "\n".join(lines)) == [("begin", "tabular"), ("end", "tabular")]
    columns = len(re.search(r"\{tabular\}\{(\w+)\}", lines[0])[1])
    rows = []
    for line in lines[1:-1]:
        plain = line.replace(r"\\", "", 1) if line.endswith(r"\\") else line
        assert line.endswith(r" \\") or line in (r"\toprule", r"\midrule", r"\bottomrule")
        bare = re.sub(r"\\[a-z]+(\{\})?|\\[{}_%&#$]|\$\\pm\$|\{\[\}", "", plain)  # what is meant as a command
        assert not re.search(r"[_%#$~^<>\\\[]", bare), line
        assert bare.count("{") == bare.count("}")
        if "&" in bare:
            assert bare.count("&") == columns - 1, line
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)&", plain)])
    return rows


def test_table1_as_latex_is_balanced_escaped_and_tells_what_the_terminal_tells(made):
    folder, *_ = made
    result = json.loads((folder / "table1.json").read_text())
    head, *rows = latex_rows((folder / "table1.tex").read_text())
    assert head[0] == "criterion"
    told = [row for rows in blocks(result) for row in rows]
    assert [[cell.replace(r"$\pm$", "±").replace(r"\%", "%") for cell in row] for row in rows] == told


def test_table1_as_latex_takes_any_name(made):
    folder, *_ = made
    result = json.loads((folder / "table1.json").read_text())
    odd = r"[a]_b & 100% #1 $x^2$ ~{c} <\input{d}>" + "\n\\end{tabular}"
    result["rows"][1]["criterion"] = result["config"]["recipe"]["model"] = odd
    result["published"] = [row._asdict() for row in table1.published.PUBLISHED if row.data == "cifar10"]
    rows = latex_rows(as_latex(result))
    assert rows[2][0].startswith(r"{[}a]\_b \& 100\% \#1 \$x\textasciicircum{}2\$ \textasciitilde{}\{c\}")
    assert rows[-1] == ["VGG-16, T = 5, LTH-IMP, unstructured", "", "4.30", "92.38", "not told", ""]


def folders(row) -> list[str]:
    stem = "dense" if row["criterion"] == "dense" else f"{row['criterion']}-{100 * row['asked']:g}"
    return [f"{stem}-seed{seed}" for seed in row["seeds"]]


def test_table1_once_finished_runs_nothing_again(made):
    folder, *_ = made
    before = (folder / "sca-40-seed1" / "summary.json").stat().st_mtime_ns
    again = bench(*TINY, "--out", folder)
    assert again.exit_code == 0
    assert "6 of 6 cells are finished" in plain(again.output)
    assert (folder / "sca-40-seed1" / "summary.json").stat().st_mtime_ns == before


def test_table1_refuses_cells_of_other_settings(made):
    folder, *_ = made
    other = bench(*TINY, "--set", "lr=0.3", "--out", folder)
    assert other.exit_code == 2
    assert "dense-seed0 holds a run with other settings (lr)" in plain(other.output)


def test_table1_fits_a_terminal_and_stands_beside_the_published_numbers(made):
    folder, *_ = made
    result = json.loads((folder / "table1.json").read_text())
    published = [row._asdict() for row in table1.published.PUBLISHED if row.data == "cifar10"]
    shown = io.StringIO()
    Console(width=80, file=shown).print(table1.tables({**result, "published": published}))
    lines = shown.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "…" not in shown.getvalue()
    for word in ("random", "91.67%", "28.39%", "67.8%", "SPEAR (2025)", "not told"):
        assert any(word in line for line in lines), word


def test_table1_without_regrowth_changes_nothing_else():
    config = table1.Table1Config(TrainConfig(), (0.5,), ("sca", "sca-without-regrowth"), seeds=1)
    _, plain_cell, ablated = config.cells()
    assert ablated.config == plain_cell.config.changed(regrow_fraction=0.0)
    assert ablated.folder != plain_cell.folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--criteria", "sca,luck"], "criteria: expected one of"),
        (["--criteria", "sca,sca"], "criteria: expected one or several, each once"),
        (["--connectivities", "0.3,1"], "connectivities: expected shares in (0, 1), got 1.0"),
        (["--connectivities", "few"], "connectivities: expected numbers separated by commas"),
        (["--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["--connectivities", "0.0001"], "density: expected at least 0."),
        (["--model", "vgg6"], "model: expected one of"),
        (["--set", "epoch=3"], "did you mean epochs?"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "data_dir: expected the files of cifar10"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_table1_reports_bad_input_in_one_line_before_work_starts(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    outcome = bench(*TINY, *arguments)
    assert outcome.exit_code == 2, outcome.output
    assert message in plain(outcome.output)
    assert not list(tmp_path.iterdir())


def test_bench_refuses_its_own_options_in_front_of_table1():
    outcome = CliRunner().invoke(app, ["bench", "--model", "vgg5", "table1"])
    assert outcome.exit_code == 2
    assert "model: expected behind table1" in plain(outcome.output)


@pytest.mark.parametrize("text", ["", "[" * 99_999, "[]", '{"dense": null, "compacted": {}}', '{"dense": 3}'])
def test_table1_names_a_damaged_summary(made, tmp_path, text):
    folder, *_ = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "sca-40-seed0" / "summary.json").write_text(text)
    result = bench(*TINY, "--out", copy)
    assert result.exit_code == 2
    assert f"{copy / 'sca-40-seed0' / 'summary.json'}: not the summary of a run" in plain(result.output)


def test_table1_follows_no_link_out_of_its_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "dense-seed0").symlink_to(tmp_path / "mine")
    result = bench(*TINY, "--out", tmp_path / "table")
    assert result.exit_code == 2
    assert "dense-seed0 is a symbolic link, which is not followed" in plain(result.output)
    assert not list((tmp_path / "mine").iterdir())
