"""Rows of neurons and surrogates name their twins; one that is not there is named with the file it belongs in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import surrogates, twins
from sca_kernels.backends import registry
from sca_kernels.cuda_kernels.parameters import NeuronParameters
from sca_kernels.neurons import NEURONS
from sca_kernels.neurons.leaky import Leaky
from sca_kernels.surrogates import TABLE, SurrogateRow
from sca_kernels.testing import missing_twins
from tests.kernels.problems import config_of

NEURONS_H, SURROGATES_H = "csrc/include/sca/neurons.h", "csrc/include/sca/surrogates.h"
CHARGES, SURROGATES = (len(twins.listed(macro)) for macro in ("SCA_CHARGES", "SCA_SURROGATES"))
TRITON = "sca_kernels/triton_kernels"


class Planted(Leaky):
    """LIF under another name: all twins are there until one is taken away."""

    name = "planted"


@pytest.fixture
def plant(monkeypatch):
    """``plant(**attributes)``: a neuron and a surrogate ``planted``, with some attributes of their own."""

    def planted(**attributes):
        monkeypatch.setitem(NEURONS, "planted", type("Planted", (Planted,), attributes)())
        columns = {key: attributes[key] for key in ("cpp", "triton") if isinstance(attributes.get(key), str)}
        monkeypatch.setitem(TABLE, "planted", TABLE["atan"]._replace(**columns))

    return planted


@pytest.fixture
def headers(monkeypatch, tmp_path):
    """A copy of the headers, to be edited."""
    copy = tmp_path / "csrc"
    shutil.copytree(twins.sources() / "include", copy / "include")
    monkeypatch.setattr(twins, "sources", lambda: copy)
    return copy / "include" / "sca"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_no_twin_is_missing():
    assert missing_twins() == []


def test_what_is_compiled_is_what_rows_name():
    """Nothing in C++ or Triton that no row leads to."""
    configs = [config_of(name, tau, None, decay) for name in NEURONS for tau in (2.0, 3.0) for decay in (True, False)]
    configs.append(config_of("lif")._replace(decay=0.9, decay_input=False))
    assert {twins.charge(config) for config in configs} == set(twins.listed("SCA_CHARGES"))
    resets = {twins.reset(config_of(v_reset=value)) for value in (None, 0.0, 0.5)}
    resets.add(twins.reset(config_of(v_reset=None)._replace(v_rest=0.5)))
    assert resets == set(twins.listed("SCA_RESETS"))
    assert {row.cpp for row in TABLE.values()} == set(twins.listed("SCA_SURROGATES"))
    assert {row.triton for row in TABLE.values()} == twins.triton_functions("surrogates")
    named = {
        f"{neuron.triton}_{part}" for neuron in NEURONS.values() for part in ("charge", "adjoint", "leak_gradient")
    }
    assert {name for name in twins.triton_functions("neurons") if not name.startswith("_")} <= named


def test_a_planted_neuron_and_surrogate_with_all_twins_are_complete(plant):
    plant()
    assert missing_twins() == []


MISSING = {
    "no struct": (
        {"cpp": ("Nowhere", "LeakyFullInput<>")},
        [
            f"add `struct Nowhere` to {NEURONS_H}",
            f"add `row({CHARGES}, Nowhere)` to SCA_CHARGES at the foot of {NEURONS_H}",
        ],
    ),
    "no template": (
        {"cpp": ("Leaky<>", "Nowhere<>")},
        [
            f"`struct Nowhere` to {NEURONS_H}",
            f"`row({CHARGES}, Nowhere<DivideByTau>)`",
            f"`row({CHARGES + 1}, Nowhere<MultiplyByRate>)`",
        ],
    ),
    "no name in C++": ({"cpp": None}, ["names no C++ twin: add `cpp = (<struct>, <without decay_input>)` to it in"]),
    "no functions": (
        {"triton": "nowhere"},
        [f"add a function `nowhere_charge` to {TRITON}/neurons.py", "`nowhere_adjoint`"],
    ),
    "no leak gradient": ({"triton": "integrate", "learnable_leak": True}, ["add a function `integrate_leak_gradient`"]),
    "no name in Triton": (
        {"triton": None},
        ["names no Triton twin: add `triton = <how its functions begin>` to it in"],
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_each_twin_that_a_planted_neuron_lacks_is_named(plant, case):
    attributes, expected = MISSING[case]
    plant(**attributes)
    told = [line for line in missing_twins() if line.startswith("neuron 'planted': ")]
    assert len(told) == len(expected)
    assert all(text in line for line, text in zip(told, expected, strict=True))


LACKING = {
    "no struct": (
        {"cpp": "Nowhere"},
        [
            f"add `struct Nowhere` to {SURROGATES_H}",
            f"add `row({SURROGATES}, Nowhere)` to SCA_SURROGATES at the foot of {SURROGATES_H}",
        ],
    ),
    "no name in C++": ({"cpp": ""}, ['names no C++ twin: add `cpp="<struct>"` to it in sca_kernels/surrogates.py']),
    "no function": ({"triton": "nowhere"}, [f"add a function `nowhere` to {TRITON}/surrogates.py"]),
    "no name in Triton": ({"triton": ""}, ['names no Triton twin: add `triton="<function>"` to it in sca_kernels/']),
}


@pytest.mark.parametrize("case", LACKING)
def test_each_twin_that_a_planted_surrogate_lacks_is_named(monkeypatch, case):
    columns, expected = LACKING[case]
    monkeypatch.setitem(TABLE, "planted", TABLE["atan"]._replace(**columns))
    told = missing_twins()
    assert len(told) == len(expected)
    assert all(line.startswith("surrogate 'planted': ") for line in told)
    assert all(text in line for line, text in zip(told, expected, strict=True))


def test_a_struct_without_a_row_and_a_row_that_is_numbered_twice_are_named(headers):
    edit(headers / "neurons.h", " row(1, Leaky<DivideByTau>)", "")
    edit(headers / "surrogates.h", "row(1, Atan)", "row(0, Atan)")
    told = missing_twins()
    added = f"add `row({CHARGES - 1}, Leaky<DivideByTau>)` to SCA_CHARGES at the foot of {NEURONS_H}"
    assert f"neuron 'lif': no C++ row: {added}" in told
    assert any(line.startswith("SCA_SURROGATES: expected the indices 0, 1, 2, ...") for line in told)
    assert any(line.startswith("SCA_CHARGES: expected the indices 0, 1, 2, ...") for line in told)


def test_a_row_without_a_struct_is_named(headers):
    edit(headers / "surrogates.h", "struct Erf {", "struct Other {")
    assert missing_twins() == [f"surrogate 'erf': no C++ twin: add `struct Erf` to {SURROGATES_H}"]


# ---- where a backend looks one up


X = torch.zeros(2, 1, 3)


def test_the_cpu_backend_names_a_struct_that_is_not_compiled_in(plant):
    if not registry()["cpu"].supports(X.device, X.dtype)[0]:
        pytest.skip("backend cpu can't run here")
    plant(cpp=("Nowhere", "Nowhere"))
    says = rf"Nowhere: expected a row of SCA_CHARGES in {NEURONS_H}, which is not compiled in"
    with pytest.raises(ValueError, match=says):
        F.neuron(X, "planted")
    assert F.neuron(X, "planted", backend="reference").spike_count.tolist() == [0, 0, 0]
    plant(cpp="Nowhere")
    with pytest.raises(ValueError, match=rf"Nowhere: expected a row of SCA_SURROGATES in {SURROGATES_H}"):
        F.lif(X, surrogate="planted")
    plant(cpp=None)
    with pytest.raises(ValueError, match=r"planted: its row names no C\+\+ twin"):
        F.neuron(X, "planted")


def test_the_cuda_backend_names_a_row_that_is_not_listed(plant):
    plant(cpp=("Nowhere", "Nowhere"))
    with pytest.raises(
        ValueError, match=rf"Nowhere: .* add `row\({CHARGES}, Nowhere\)` to SCA_CHARGES at the foot of {NEURONS_H}"
    ):
        NeuronParameters.of(config_of("planted"))
    plant(cpp="Nowhere")
    with pytest.raises(ValueError, match=rf"Nowhere: .* to SCA_SURROGATES at the foot of {SURROGATES_H}"):
        NeuronParameters.of(config_of("lif")._replace(surrogate="planted"))


def test_the_triton_backend_names_a_function_that_is_not_there(plant):
    # as good as those that take Triton
    neurons, derivatives = (types.ModuleType(f"sca_kernels.triton_kernels.{n}") for n in ("neurons", "surrogates"))
    plant(triton="nowhere")
    with pytest.raises(ValueError, match=f"nowhere_charge: no Triton twin: add a function .* to {TRITON}/neurons.py"):
        twins.triton_of_neuron(neurons, config_of("planted"), "charge")
    says = f"nowhere: no Triton twin: add a function `nowhere` to {TRITON}/surrogates.py"
    with pytest.raises(ValueError, match=says):
        twins.triton_of_surrogate(derivatives, config_of("lif")._replace(surrogate="planted"))
    plant(triton=None)
    with pytest.raises(ValueError, match="planted: its row names no Triton twin"):
        twins.triton_of_neuron(neurons, config_of("planted"), "charge")


def test_ids_are_those_of_the_list():
    for name, index in twins.listed("SCA_SURROGATES").items():
        surrogate = next(key for key, row in TABLE.items() if row.cpp == name)
        assert NeuronParameters.of(config_of(surrogate=surrogate)).surrogate == index
    charges = twins.listed("SCA_CHARGES")
    for config, charge, index in (  # written out, so that no list is compared with itself alone
        (config_of("if"), "IntegrateAndFire", 0),
        (config_of(tau=3.0), "Leaky<DivideByTau>", 1),
        (config_of(tau=4.0), "Leaky<MultiplyByRate>", 2),
        (config_of(tau=3.0, decay_input=False), "LeakyFullInput<DivideByTau>", 3),
        (config_of("plif", tau=3.0, decay_input=False), "LeakyFullInput<MultiplyByRate>", 4),
    ):
        assert NeuronParameters.of(config).charge == charges[charge] == index


# ---- when tests are collected


def test_tests_are_not_collected_while_a_twin_is_missing(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from sca_kernels.surrogates import TABLE\nTABLE['planted'] = TABLE['atan']._replace(triton='nowhere')\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "planted",
        "--collect-only",
        "tests/kernels/test_surrogates.py",
    ]
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert f"surrogate 'planted': no Triton twin: add a function `nowhere` to {TRITON}/surrogates.py" in told
    assert not re.search(r"\d+ tests collected", told)


def test_the_name_that_rows_had_before_still_works_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match="SurrogateRow"):
        assert surrogates.Row is SurrogateRow
