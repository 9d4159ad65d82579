"""sca: every command through its entry point, one real process, and errors in one line without a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from sca.bench import BenchConfig
from sca.cli import app
from sca.cli.endings import told
from sca.cli.errors import fail
from sca.cli.terminal import use_any_encoding
from sca.data import DATASETS
from sca.experiments.table1 import Table1Config
from sca.models import MODELS
from sca.models.parts import NEURONS
from sca.pruning.allocation import ALLOCATIONS
from sca.pruning.criteria import CRITERIA
from sca.pruning.growth import REGROWTH
from sca.pruning.schedule import DENSITY_CURVES
from sca.pruning.settings import EXTENSIONS
from sca.settings import settings, summary
from sca.training import PRESETS, RunFolder, TrainConfig
from sca.training.losses import LOSSES
from sca_kernels import doctor
from sca_kernels.surrogates import TABLE

TINY = [
    *("--model", "vgg5", "--width", "0.125", "--time-steps", "2", "--epochs", "2", "--batch-size", "32"),
    *("--limit-train", "96", "--limit-test", "64", "--reference", "none"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose a lot where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sca(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plain(text: str) -> str:
    """Without styles and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = sca("train", *TINY, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, plain(result.output)


def test_train_prints_one_line_per_epoch_and_one_table(finished):
    folder, output = finished
    assert len(re.findall(r"epoch +\d/2 +loss \d", output)) == 2
    for figure in ("train", "test", "density", "firing", "samples/s"):
        assert re.search(rf"epoch 2/2 .*{figure}", output)
    for row in ("test accuracy", "parameters", "connectivity", "SynOps", "energy", "training", "inference"):
        assert row in output
    assert "not measured" in output  # the dense network's accuracy, without a dense run
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "curves.png").exists()


def test_eval_and_report_read_a_finished_run(finished):
    folder, _ = finished
    accuracy = json.loads((folder / "summary.json").read_text())["compacted"]["accuracy"]
    assert f"test accuracy {100 * accuracy:.2f} % of 64 images" in plain(sca("eval", folder).output)
    report = plain(sca("report", folder).output)
    for word in ("Conn", "MACs", "Energy"):
        assert word in report


def test_eval_computes_in_the_precision_of_the_run(finished, tmp_path, monkeypatch):
    folder, _ = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "precision": "bfloat16", "device": "cuda"}))
    seen = []
    monkeypatch.setattr(
        "sca.training.evaluation.accuracy", lambda model, batches, precision: seen.append(precision) or 1
    )
    assert sca("eval", copy).exit_code == 0  # on the CPU, where there is no GPU
    assert seen == ["bfloat16"]


def test_train_refuses_a_folder_that_holds_a_run_until_told(finished):
    folder, _ = finished
    result = sca("train", *TINY, "--out", folder)
    assert result.exit_code == 2
    assert "already holds a run" in plain(result.output)
    assert sca("train", "--resume", "--out", folder).exit_code == 0
    changed = sca("train", "--resume", "--out", folder, "--lr", "0.3")
    assert changed.exit_code == 2
    assert "lr: the run in" in plain(changed.output)


def test_doctor_lists_the_backends():
    output = plain(sca("doctor").output)
    assert "reference" in output
    assert "cpu" in output
    assert "sca_kernels[triton]" in output  # not taken for markup


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], f"data: expected one of {', '.join(DATASETS)}, got 'mnist'; did you mean nmnist?"),
        (["--model", "vgg7"], "model: expected one of preresnet18"),
        (["--density", "0"], "density: expected a share in (0, 1], got 0.0"),
        (["--density", "1.5"], "density"),
        (["--criterion", "luck"], "criterion: expected one of"),
        (["--allocation", "fair"], "allocation: expected one of"),
        (["--neuron", "relu"], "neuron: expected one of if, lif, plif"),
        (["--preset", "slow"], f"preset: expected one of {', '.join(PRESETS)}, got 'slow'"),
        (["--preset", "papr"], "did you mean paper?"),
        (["--set", "epoch=3"], "epoch: expected a field of the configuration; did you mean epochs?"),
        (["--set", "cutout=wide"], "cutout: expected int, got 'wide'"),
        (["--set", "epochs"], "set: expected field=value, got 'epochs'"),
        (["--set", "model=vgg9"], "model: given twice"),
        (["--set", "neuron_arguments.tua=2"], "tua: neither an argument of this network nor of its neuron 'lif'"),
        (["--config", "nowhere.toml"], "config: expected a readable file, got nowhere.toml"),
        (["--stem", "cifar"], "stem: neither an argument of this network"),
        (["--density", "0.01", "--set", "min_channels=8"], "density: expected at least 0."),
        (["--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "data_dir: expected the files of cifar10"),
        (["--data-dir", "nowhere"], "data_dir: digits ship with scikit-learn"),
        (["--reference", "nowhere"], "reference: expected the folder of a dense run"),
        (["--resume"], "resume: expected --out"),
        (["--device", "warp"], "device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_reports_bad_input_in_one_line_before_work_starts(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = sca("train", *TINY[:-2], *arguments)
    assert result.exit_code == 2, result.output
    assert message in plain(result.output)
    assert "Traceback" not in result.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_train_reports_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    result = sca("train", *TINY, "--out", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "out: expected a folder to write to" in plain(result.output)


def test_eval_reports_a_damaged_model_by_name(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    result = sca("eval", copy)
    assert result.exit_code == 2
    assert "model.safetensors" in plain(result.output)
    assert sca("eval", tmp_path).exit_code == 2


COMMANDS = get_command(app).commands
FIELDS = settings(TrainConfig)


@pytest.mark.parametrize("field", FIELDS)
def test_train_has_an_option_for_every_field_and_its_help_is_the_fields_first_sentence(field):
    assert FIELDS[field].doc, "a string below the field says what it is"
    options = {option.name: option for option in COMMANDS["train"].params}
    if FIELDS[field].kinds == (dict,):
        assert field not in options  # --set field.key=value
        return
    flag = "--" + field.replace("_", "-")
    assert options[field].opts == [flag]
    assert options[field].secondary_opts == ([f"--no-{flag[2:]}"] if FIELDS[field].default is True else [])
    assert options[field].help == summary(FIELDS[field].doc)
    assert options[field].default is None


@pytest.mark.parametrize(
    ("path", "config", "others"),
    [
        (
            "train",
            TrainConfig,
            {"preset", "config", "setting", "out", "resume", "overwrite", "show_config", "list_names"},
        ),
        ("bench", BenchConfig, {"out"}),
        ("bench table1", Table1Config, {"preset", "config", "setting", "out"}),
    ],
)
def test_options_that_are_no_field_are_few(path, config, others):
    command = COMMANDS[path.split()[0]]
    for name in path.split()[1:]:
        command = command.commands[name]
    fields = {*settings(config), *(FIELDS if config is Table1Config else ())}
    assert {option.name for option in command.params} - fields == others


def test_train_options_are_read_as_their_fields_ask():
    arguments = ("--no-augment", "--min-channels", "none", "--lr", ".5", "--prune-start", "0", "--stem", "none")
    shown = json.loads(sca("train", *arguments, "--compile", "--show-config").output)
    assert [shown[name] for name in ("augment", "min_channels", "lr", "prune_start", "stem", "compile")] == [
        *(False, None, 0.5, 0.0, None, True)
    ]
    refused = sca("train", "--epochs", "many")
    assert (refused.exit_code, refused.output) == (2, "error: epochs: expected int, got 'many'\n")


def test_train_list_prints_every_registered_name_with_a_sentence():
    output = sca("train", "--list").output
    for registry in (
        MODELS,
        DATASETS,
        CRITERIA,
        NEURONS,
        TABLE,
        LOSSES,
        DENSITY_CURVES,
        REGROWTH,
        ALLOCATIONS,
        PRESETS,
    ):
        for name in registry:
            assert re.search(rf"^ .*\b{name}\b", output, re.M), name
    for name in FIELDS:
        assert (f"\n{name}: " in f"\n{output}") == (isinstance(FIELDS[name].source, str) or name in EXTENSIONS), name
    lines = {tuple(line.split(maxsplit=1)) for line in output.splitlines() if line.startswith("  ")}
    assert ("rate", "Spikes per neuron and time step.") in {(name, told.strip()) for name, told in lines}
    assert ("paper", summary(PRESETS["paper"].__doc__)) in {(name, told.strip()) for name, told in lines}


@pytest.mark.parametrize("model", ["preresnet20", "resnet19", "sew_resnet18"])
def test_train_prunes_and_compacts_residual_networks(tmp_path, model):
    small = ["--model", model, "--width", "0.0625", "--set", "min_channels=1", "--limit-train", "64", "--epochs", "1"]
    result = sca("train", *TINY, *small, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "test accuracy" in plain(sca("eval", tmp_path / "run").output)


def test_help_imports_no_torch():
    script = """
import sys
from sca.cli import app
for command in (["train"], ["bench"], ["bench", "table1"]):
    app([*command, "--help"], standalone_mode=False)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_paths_are_printed_as_they_are_and_commands_quoted(tmp_path):
    odd = tmp_path / "runs" / "[/b]run [red]x :smile:"
    result = sca("train", *TINY, "--epochs", "1", "--out", odd)
    assert result.exit_code == 0, result.output
    assert f"in {odd}: curves.png, metrics.jsonl, model.safetensors" in plain(result.output)
    assert f"sca report {shlex.quote(str(odd))}" in plain(result.output)
    assert f"report in {odd}/report.html" in plain(sca("report", odd).output)
    assert f"error: lr: the run in {odd} has another value" in plain(
        sca("train", "--resume", "--out", odd, "--lr", "3").output
    )
    with told() as ending:
        ending.folder = RunFolder(odd, "resume")
    ending.folder.close()
    assert shlex.split(ending.resumable.partition(": ")[2]) == ["sca", "train", "--resume", "--out", str(odd)]


def test_commands_work_in_ascii_beside_a_notebook_with_any_name_of_a_folder(tmp_path):
    """What a process that a notebook started on a bare server is given: no UTF-8, and a backend that is not there."""
    name = b"r \xc3\xa9[/b] \xff"  # the last byte is no text in any encoding of UTF
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"MPLBACKEND": "module://no.such_backend", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}

    def process(*arguments: object) -> tuple[int, bytes]:
        command = [sys.executable, "-m", "sca", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    code, output = process("train", *TINY, "--epochs", "1", "--out", name)
    assert code == 0, output
    assert b"in " + name + b": curves.png, metrics.jsonl, model.safetensors" in output
    assert b"test accuracy" in output
    assert (tmp_path / os.fsdecode(name) / "curves.png").read_bytes().startswith(b"\x89PNG")
    code, output = process("report", name)
    assert code == 0, output
    assert b"Cost per sample" in output
    assert b"\x1b" not in output
    code, output = process("train", "--resume", "--out", name, "--lr", "3")
    assert code == 2, output
    assert b"error: lr: the run in " + name + b" has another value" in output


def test_doctor_tells_a_fix_to_its_end_in_a_narrow_pipe(monkeypatch):
    rows = [doctor.Row("x", False, "why " * 50, "pip install " + "'sca_kernels[a-very-long-extra]' " * 9)]
    monkeypatch.setattr(doctor, "report", lambda: rows)
    monkeypatch.setenv("COLUMNS", "30")
    assert rows[0].fix.strip() in plain(sca("doctor").output)


def test_signs_that_an_encoding_lacks_are_written_in_ascii(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    use_any_encoding()
    stream.write("1 ± 2 µJ \u2014 é \udcff")
    stream.flush()
    assert stream.buffer.getvalue() == b"1 +- 2 uJ \\u2014 \\xe9 \xff"


@pytest.mark.parametrize("value", ["1", ""])
def test_no_color_asks_for_none(monkeypatch, capsys, value):
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fail("x")
    assert ("\x1b" in capsys.readouterr().err) is not bool(value)


def test_train_without_matplotlib_ends_with_its_table(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = sca("train", *TINY, "--epochs", "1", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "test accuracy" in plain(result.output)
    assert "curves.png" not in result.output
    assert "no curves.png: pictures need matplotlib: pip install 'sca_kernels[train]'" in caplog.text


def test_too_little_memory_is_told_in_a_sentence(monkeypatch, tmp_path):
    def full(*_, **__):
        raise RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore")

    monkeypatch.setattr("sca.training.loop.Trainer.train_step", full)
    result = sca("train", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "error: out of memory ([enforce] DefaultCPUAllocator: can't allocate memory" in plain(result.output)
    assert "more" not in result.output


def test_train_reads_a_recipe_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_bytes("# größer\r\nepochs = 3\r\n".encode("utf-8-sig"))
    shown = sca("train", "--config", file, "--show-config")
    assert json.loads(shown.output)["epochs"] == 3


def test_train_interrupted_as_a_process_writes_its_checkpoint_and_resumes(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from sca.cli import main; main()", "train"]
    long = [*TINY, "--epochs", "2000", "--out", str(folder)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *long], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    for line in process.stdout:
        if "epoch" in line and "loss" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130, rest
    assert "interrupted; go on with: sca train --resume --out" in plain(rest)
    assert "Traceback" not in rest
    assert (folder / "checkpoint.safetensors").exists()
    assert "test accuracy" in plain(sca("eval", folder).output)


NETWORK = """
import torch


def build():
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10)
    return torch.nn.Sequential(*layers)
"""


def test_convert_prints_the_report_of_a_users_file(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, ["convert", "mynet.py:build", "--example", "4,3,8,8", "--no-measure", "--json", "report.json"]
    )
    assert result.exit_code == 0, result.output
    assert "ChannelConv2d" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["state_dict_equal"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.py:build", "--example", "4"], "network: expected a file"),
        (["no_such_module:build", "--example", "4"], "network: expected a module that can be imported"),
        (["build", "--example", "4"], "network: expected module:function or file.py:function"),
        (["torch:nothing", "--example", "4"], "network: expected a function or class nothing in torch"),
        (["torch.nn:Identity", "--example", "4,x"], "example: expected a shape such as"),
        (["torch.nn:Identity", "--example", "4,3", "--depth", "deep"], "depth: expected one of neurons, layers, loop"),
        (["torch.nn:Identity", "--example", "4,3"], "expected something to convert, found nothing"),
    ],
)
def test_convert_names_what_is_off(arguments, says):
    result = CliRunner().invoke(app, ["convert", *arguments])
    assert result.exit_code == 2
    assert says in " ".join((result.output + result.stderr).split())
