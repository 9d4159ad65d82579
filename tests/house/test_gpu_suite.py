"""The suite for a machine with a GPU, without one: what it would run, and how it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import results

from .tree import ROOT

STAGES = {
    "tests": "-m pytest -q --ignore=tests/house/test_install.py",
    "sanitize": "compute-sanitizer --tool racecheck",
    "bench": "-m benchmarks.gpu",
    "counters": "launch__registers_per_thread",
    "train": "train --data cifar10",
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
