"""The CUDA backend on CPU tensors: its host side as it is, its kernels compiled by the C++ compiler and run by an
emulation of blocks and barriers.

A test calls :func:`install`; as a pytest plugin (``-p emulated``) this file makes backend "cuda" one of the targets of
every kernel test.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch
from torch import Tensor

from sca_kernels.backends.cuda import CudaBackend
from sca_kernels.cuda_kernels.parameters import NAMES

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
# As the kernels' own options: no fused multiply-add. Half the time of the tests is compiling, so not more than -O1.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-class-memaccess"]
if sanitizers := os.environ.get("SCA_KERNELS_SANITIZE"):  # `make sanitize`
    FLAGS += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g1"]


def compiler() -> str | None:
    return shutil.which("g++")


@functools.cache
def module() -> ModuleType:
    """The compiled emulation, from a cache that knows it by its sources."""
    sources = sorted([*HERE.glob("*.[hc]*"), *(CSRC / "cuda").glob("*.h"), *(CSRC / "include").rglob("*.h")])
    known = hashlib.sha256("".join([*FLAGS, *(path.read_text() for path in sources)]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"sca_kernels_emulated_{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    target = folder / f"emulated-{known}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as built:
            include = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
            subprocess.run([compiler(), *FLAGS, *include, str(HERE / "emulated.cpp"), "-o", built.name], check=True)
        os.replace(built.name, target)
    spec = importlib.util.spec_from_file_location("emulated", target)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


order = 0
"""Seed of the order that a launch runs its blocks in; 0: their own."""


def launch(kernel: str, grid: int, threads: int, shared: int, parameters: ctypes.Structure, on: Tensor) -> None:
    assert on.device.type == "cpu"
    module().launch(kernel, grid, threads, shared, bytes(parameters), order)


def supports(self: CudaBackend, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    return device.type == "cpu" and dtype in NAMES, "emulated"


def install(setattr=setattr) -> None:
    """Put the emulation in place of a device; by name only, as before."""
    setattr(CudaBackend, "supports", supports)
    setattr(CudaBackend, "launch", staticmethod(launch))
    setattr(CudaBackend, "only_by_name", frozenset({"cpu"}))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()
