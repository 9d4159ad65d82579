"""sca: no option and no setting, whatever its value, ends in a traceback, names nothing, or leaves a file behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import sca.bench
import sca.cli.cells
import sca.cli.display
import sca.cli.load
import sca.training
from sca.bench import BenchConfig
from sca.cli import app
from sca.experiments.table1 import Table1Config
from sca.settings import settings
from sca.training import TrainConfig

#: Values of the command line that some option takes, and many do not.
HOSTILE = [
    *("", "x", "'x'", "none", "true", "[]", "{}", "[/b]", "../..", "a\nb", "\udcff", "1979-05-27", "x" * 5000),
    *("nan", "inf", "-inf", "-1", "-0.0", "0", "0x10", "1_0", "1e-320", "1e300", "1e400", "65537"),
    *("9223372036854775807", "99999999999999999999", "9" * 5000, "0.5,0.5", "1,,2", ",", "1,2,nan", "meta", "/", "."),
]
#: Made once: typer takes as long for it as a command takes to refuse a value.
ROOT = typer.main.get_command(app)
NO_NUMBER = ("nan", "inf", "-inf", "x", "[]", "{}", "1979-05-27", "9" * 5000)
FIELDS = settings(TrainConfig)
NEURON_ARGUMENTS = (
    *("tau", "v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha", "beta", "backend"),
    *("eps", "momentum", "affine", "track_running_stats", "stateful", "process_group", "per_channel", "dtype", "width"),
)


@pytest.fixture(autouse=True)
def nothing_is_trained(tmp_path, monkeypatch) -> Iterator[None]:
    """Whatever is accepted ends where work would begin; a command leaves nothing in the current folder."""

    def reached(*arguments: Any, **options: Any) -> None:
        raise ValueError("work begins")

    monkeypatch.setattr(sca.training, "run", reached)
    monkeypatch.setattr(sca.training, "Trainer", reached)
    for module in (sca.training, sca.cli.load):  # loaded before: at its first use it would keep what stands in here
        monkeypatch.setattr(module, "load_data", lambda config: None)
    monkeypatch.setattr(sca.bench, "measure", reached)
    monkeypatch.chdir(tmp_path)
    yield
    assert os.listdir(tmp_path) == []


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output, in one line."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            ROOT.main(list(arguments), "sca")
        except SystemExit as end:
            return int(end.code), " ".join(re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).split())
    raise AssertionError("expected the command to end the process")


@pytest.mark.parametrize("field", FIELDS)
def test_set_of_any_field_is_accepted_or_refused_by_its_name(field):
    for value in HOSTILE:
        code, output = command("train", "--set", f"{field}={value}", "--show-config")
        assert code in (0, 2), (value, output)
        if code:
            named = (field, "prune_start") if field == "prune_stop" else (field,)
            assert output.startswith(tuple(f"error: {name}: expected" for name in named)), (value, output)
        if {int, float} & {*FIELDS[field].kinds}:
            assert code or value not in NO_NUMBER, value


@pytest.mark.parametrize("name", NEURON_ARGUMENTS)
def test_set_of_any_neuron_argument_is_accepted_or_refused_by_its_name(name):
    for value in HOSTILE:
        code, output = command("train", "--set", f"neuron_arguments.{name}={value}", "--show-config")
        assert code in (0, 2), (value, output)
        assert code == 0 or output.startswith(f"error: {name}: "), (value, output)
        assert code or value not in ("nan", "inf", "-inf", "[]", "{}", "1979-05-27"), value


@pytest.mark.parametrize("field", FIELDS)
def test_train_config_refuses_values_of_no_use_by_the_name_of_their_field(field):
    for value in (object(), b"x", [1], (1,), 1j, float("nan"), 10**400, -(10**400)):
        with pytest.raises(ValueError, match=f"^{field}: expected"):
            TrainConfig.from_preset("digits", **{field: value})


def test_v_threshold_of_a_file_is_no_text(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('[neuron_arguments]\nv_threshold = "1"\n')
    code, output = command("train", "--config", str(file), "--show-config")
    file.unlink()
    assert code == 2
    assert output == f"error: {file}, line 2: v_threshold: expected a number, got str"


def options() -> Iterator[Any]:
    """Every option and argument of every command that takes a value."""
    for path in (["train"], ["eval"], ["report"], ["bench"], ["bench", "table1"]):
        found = ROOT
        for name in path:
            found = found.commands[name]
        for parameter in found.params:
            if not getattr(parameter, "is_flag", False):
                yield pytest.param(path, parameter, id="-".join([*path, parameter.name]))


@pytest.mark.parametrize(("path", "parameter"), [*options()])
def test_any_option_is_accepted_or_refused_by_its_name(path, parameter, tmp_path):
    is_argument = parameter.param_type_name == "argument"
    for value in HOSTILE:
        if is_argument:
            code, output = command(*path, "--", value)
        else:
            run = ["absent"] if path[0] in ("eval", "report") else []
            code, output = command(*path, parameter.opts[0], value, *run)
        assert code == 2, (value, output)
        assert "Traceback" not in output
        said = {parameter.name, parameter.opts[0], parameter.opts[0].strip("-").replace("-", "_"), "work begins"}
        said |= {"run:"} if path[0] in ("eval", "report") else set()
        said |= {"set:", "expected a field", "preset:"} if parameter.name in ("setting", "preset") else set()
        assert any(words in output for words in said), (value, output)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        *((BenchConfig, field, value) for field in ("width", "size", "in_channels", "rounds", "round_to", "seed")
          for value in (float("nan"), float("inf"), -1, 10**30)),
        *((BenchConfig, field, (value,)) for field in ("time_steps", "batch_size", "densities")
          for value in (float("nan"), -1, 10**30)),
        *((Table1Config, "connectivities", (value,)) for value in (float("nan"), -1.0, 2.0)),
        *((Table1Config, "seeds", value) for value in (0, 10**9)),
    ],
)  # fmt: skip
def test_bench_configs_refuse_numbers_out_of_range(make, field, value):
    recipe = {"recipe": TrainConfig.from_preset("digits")} if make is Table1Config else {}
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        make(**recipe, **{field: value})


def test_seeds_of_a_table_end_where_seeds_end():
    with pytest.raises(ValueError, match=r"^seeds: expected at most 2, got 3"):
        Table1Config(TrainConfig.from_preset("digits", seed=2**63 - 2), seeds=3)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "1e3"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500", "LOCAL_RANK": "x"}, "LOCAL_RANK"),
    ],
    ids=str,
)
def test_train_names_the_environment_variable_that_is_off(environment, name, monkeypatch):
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    code, output = command("train")
    assert code == 2
    assert f"error: {name}: expected a number from" in output


@pytest.mark.parametrize("arguments", [["train"], ["bench"], ["bench", "table1"]], ids=" ".join)
def test_a_command_that_ends_before_its_work_removes_the_folders_that_it_made(arguments):
    code, output = command(*arguments, "--out", str(Path("a", "b", "c")))
    assert (code, output) == (2, "error: work begins")
