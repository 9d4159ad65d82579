"""The suite for a machine with a GPU, without one: what it would run, and how it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, results
from sca_kernels.backends import registry

from .tree import ROOT

STAGES = {
    "tests": "-m pytest -q --ignore=tests/house/test_install.py",
    "sanitize": "compute-sanitizer --tool racecheck",
    "bench": "-m benchmarks.gpu",
    "counters": "launch__registers_per_thread",
    "train": "train --preset two_hours --data cifar10",
}


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [ROOT / "benchmarks" / "gpu_suite.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_lists_what_a_stage_would_start(stage):
    done = suite("--dry-run", stage)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{stage}:\n")
    assert STAGES[stage] in done.stdout


def test_a_dry_run_of_all_lists_every_stage_and_every_case():
    done = suite("--dry-run", "all")
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in STAGES.values())
    assert all(f"\n{case}: " in done.stdout for case in ("G1", "G2", "G3", "G4", "G5", "G8", "G8-launches"))


def commands(stage: str) -> list[str]:
    return [line.partition(": ")[2] for line in suite("--dry-run", stage).stdout.splitlines() if "within" in line]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_in_less_than_nine_minutes(stage):
    limits = re.findall(r"within (\d+) s", suite("--dry-run", stage).stdout)
    assert 0 < sum(map(int, limits)) < 540


def test_training_is_started_by_a_command_that_exists():
    _, captured, eager = commands("train")
    for command, graph in (captured, "on"), (eager, "off"):
        assert f"--graph {graph}" in command
        words = shlex.split(command)
        done = subprocess.run([*words[: words.index("train") + 1], "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_every_part_of_the_sanitizers_selection_selects_a_kernel_test():
    """On the targets that there are here: those of a GPU have the same names but for the target's."""
    selection = re.search(r"-k (cuda and not reference and \((.*)\))", commands("sanitize")[1])[2]
    parts = re.split(r" or (?![^(]*\))", selection)
    assert len(parts) > 5
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/kernels"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout.splitlines()

    def selects(part: str, name: str) -> bool:
        words = re.sub(r"[^\s()]+", lambda word: word[0] if word[0] in ("and", "or") else str(word[0] in name), part)
        return eval(words)

    assert [part for part in parts if not any(selects(part, name) for name in collected)] == []


def test_counters_are_those_of_kernels_that_exist():
    pattern = re.search(r"regex:(\S+)", commands("counters")[1])[1]
    sources = [*ROOT.glob("sca_kernels/triton_kernels/*.py"), *ROOT.glob("csrc/**/*.cu*"), *ROOT.glob("csrc/**/*.h*")]
    names = {name for path in sources for name in re.findall(r"\b([a-z_]+)\(", path.read_text())}
    triton = {name for name in names if name.endswith("_kernel") and re.search(pattern, name)}
    assert triton == {"forward_kernel", "backward_kernel", "moments_kernel"}
    assert {"neuron_forward", "neuron_backward", "moments"} <= {name for name in names if re.search(pattern, name)}


@pytest.mark.slow
@pytest.mark.skipif(
    not registry()["cpu"].supports(torch.device("cpu"), torch.bfloat16)[0], reason="needs the compiled CPU backend"
)
def test_every_case_runs_without_a_device_and_stores_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--smoke", "--device", "cpu", "--store", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "160")  # of the table, which shortens names where it has fewer
    assert gpu.main() == 0
    shown = capsys.readouterr().out
    assert [case for case in gpu.cases(gpu.Scale("cpu", smoke=True)) if f"{case} " not in shown] == []
    assert results.NOT_MEASURED in shown  # there is no graph here
    assert list(tmp_path.iterdir()) == []


def test_without_a_device_a_stage_fails_and_says_so():
    done = suite("tests")
    assert done.returncode != 0
    assert "no CUDA device" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("tset",)], ids=["nothing", "unknown"])
def test_an_unknown_stage_is_named(arguments):
    done = suite(*arguments)
    assert done.returncode == 2
    assert "expected tests, sanitize" in done.stderr


def test_parts_of_a_day_are_added_one_by_one_and_replaced_by_name(tmp_path):
    told = {"device": "gpu", "date": "2026-01-02T03:04:05+00:00"}
    for lines in (["first"], ["second"]):
        results.store_part(tmp_path, "tests", told, lines=lines)
    path = results.store_part(tmp_path, "G1", told, work="w", unit="ms", figures=[])
    assert path == tmp_path / "gpu" / "2026-01-02.json"
    assert [part["case"] for part in results.parts(path)] == ["tests", "G1"]
    assert results.parts(path)[0]["lines"] == ["second"]
    assert [result["case"] for result in results.stored(tmp_path)] == ["G1"]


def test_throughput_is_told_of_every_step_and_of_none_that_was_not_measured(tmp_path):
    figure = {
        "shape": "batch=64, density=0.3",
        "variant": {"batch": 64, "density": 0.3},
        "parties": {"ours": {"median": 4.0}, "theirs": results.NOT_MEASURED},
    }
    told = {"device": "gpu", "date": "2026-01-02T03:04:05+00:00"}
    results.store_part(tmp_path, "G4", told, work="w", unit="ms", figures=[figure])
    results.store_part(tmp_path, "G5", told, work="w", unit="MiB", figures=[figure])
    assert gpu.throughputs(tmp_path) == ["images/s, batch=64, density=0.3: ours: 16,000; theirs: not measured"]
