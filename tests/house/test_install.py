"""Installs that lack something: no compiler, no compiled module, a Triton or CuPy that cannot be loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .tree import ROOT

WITHOUT_COMPILED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("sca_kernels._cpu", "sca_kernels._cuda"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
"""
TRAIN = """
import torch
from sca_kernels import nn

layer = torch.nn.Sequential(nn.ChannelConv2d(2, 8, 3, padding=1), nn.BatchNormLIF(8))
x = torch.randn(4, 2, 2, 5, 5)
layer(x).square().mean().backward()
before = layer[0].weight.detach().clone()
torch.optim.SGD(layer.parameters(), lr=0.1).step()
assert not torch.equal(before, layer[0].weight)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_the_compiled_module_training_works():
    python(WITHOUT_COMPILED + TRAIN)


def test_without_the_compiled_module_asking_for_it_says_why_and_what_there_is():
    out = python(
        WITHOUT_COMPILED
        + "import torch\nfrom sca_kernels import functional as F\n"
        + "try:\n    F.lif(torch.randn(2, 1, 3), backend='cpu')\n"
        + "except (RuntimeError, ValueError) as error:\n    print(error)\n"
    ).stdout
    assert "cpu" in out
    assert "_cpu is not here" in out
    assert "reference" in out


def test_without_the_compiled_module_doctor_reports_it_off_with_a_fix():
    out = python(
        WITHOUT_COMPILED
        + "from sca_kernels import doctor\n"
        + "row = next(row for row in doctor.report() if row.name == 'cpu')\n"
        + "print(row.on, row.detail, row.fix)"
    ).stdout
    assert out.startswith("False")
    assert "_cpu is not here" in out


@pytest.mark.parametrize("package", ["triton", "cupy"])
def test_a_package_without_a_driver_is_not_imported_to_choose_a_backend(package, tmp_path):
    """Only the choice is tried: running an operator makes torch itself import Triton where it finds one."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('0 active drivers')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import torch\nfrom sca_kernels.backends import choose\nprint(choose('', 'neuron', torch.zeros(1)).name)"
    assert python(code, PYTHONPATH=path).stdout.strip() in ("cpu", "reference")


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory) -> tuple[Path, str]:
    """A wheel built from tracked files where no compiler can be found, and what the build said."""
    folder = tmp_path_factory.mktemp("pure")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.decode().split("\0"):
        if name.startswith(("sca_kernels/", "python/", "csrc/")) or name in BUILD_FILES:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    nowhere = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    done = subprocess.run(
        [*command, str(folder / "source")], capture_output=True, text=True, check=False, env={**os.environ, **nowhere}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl")), done.stdout + done.stderr


BUILD_FILES = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"}


def test_without_a_compiler_the_wheel_holds_both_packages_and_no_binary(pure_wheel):
    names = zipfile.ZipFile(pure_wheel[0]).namelist()
    assert {"sca_kernels/__init__.py", "sca_kernels/py.typed", "sca/__init__.py"} <= set(names)
    assert [name for name in names if name.endswith((".so", ".pyd", ".cpp"))] == []


def test_the_wheel_holds_the_sources_that_cupy_compiles(pure_wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "csrc/include", "csrc/cuda"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    headers = {f"sca_kernels/_{name}" for name in tracked.stdout.split() if name.endswith(".h")}
    assert headers
    assert {name for name in zipfile.ZipFile(pure_wheel[0]).namelist() if "_csrc" in name} == headers


def test_without_a_compiler_the_build_says_so_once(pure_wheel):
    told = [line for line in pure_wheel[1].splitlines() if "compiler" in line.lower() and "sca_kernels" in line]
    assert len(told) == 1
