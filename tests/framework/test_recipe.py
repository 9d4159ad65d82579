"""Recipes: preset, then file, then command line; what is wrong in a file is told with its line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sca.cli import app
from sca.pruning import PruneSettings
from sca.training import PRESETS, Recipe, TrainConfig

TOML = """\
# a recipe
preset = "paper"
data = "digits"
epochs = 7
reference = "none"

[neuron_arguments]
v_threshold = 0.5
"""


def written(tmp_path, text: str, name: str = "recipe.toml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_recipe_command_line_goes_over_the_file_and_the_file_over_the_preset(tmp_path):
    recipe = Recipe(
        file=written(tmp_path, TOML), settings=["lr=0.5", "neuron_arguments.alpha=2"], options={"density": 0.4}
    )
    paper = TrainConfig.from_preset("paper", data="digits")
    arguments = {**paper.neuron_arguments, "v_threshold": 0.5, "alpha": 2}
    assert recipe.config() == paper.changed(epochs=7, lr=0.5, density=0.4, neuron_arguments=arguments)
    assert Recipe("fast", written(tmp_path, TOML)).config().lr == TrainConfig().lr  # the command line's preset


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("lr=1", "lr", 1.0),
        ("lr=1e-3", "lr", 1e-3),
        ("augment=false", "augment", False),
        ("min_channels=none", "min_channels", None),
        ("reference=none", "reference", None),
        ("target = parameters", "target", "parameters"),
        ("data_dir=12", "data_dir", "12"),
        ("neuron_arguments={tau = 3.0}", "neuron_arguments", {**TrainConfig().neuron_arguments, "tau": 3.0}),
    ],
)
def test_recipe_setting_is_read_as_its_field_asks(setting, field, value):
    read = getattr(Recipe(settings=[setting]).config(), field)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("field", TrainConfig.__dataclass_fields__)
def test_recipe_settings_reach_every_field(field):
    value = getattr(TrainConfig.from_preset("fast"), field)
    text = json.dumps(value) if isinstance(value, bool) else "none" if value is None else value
    if isinstance(value, dict):
        text = "{}"
    if isinstance(value, tuple):
        text = list(value)
    assert getattr(Recipe("fast", settings=[f"{field}={text}"]).config(), field) == value


def test_recipe_of_a_stored_configuration_is_that_configuration(tmp_path):
    config = TrainConfig.from_preset("paper", data="digits", neuron_arguments={"surrogate": "erf"}, min_channels=3)
    file = written(tmp_path, json.dumps(config.to_dict(), indent=2), "config.json")
    assert Recipe(file=file).config() == config
    assert Recipe(file=file, options={"seed": 4}).config() == config.changed(seed=4)
    with pytest.raises(ValueError, match="preset: expected none beside"):
        Recipe("fast", file)


def test_recipe_of_an_earlier_versions_configuration_has_defaults_for_what_that_lacks(tmp_path):
    kept = (
        "data",
        "model",
        "width",
        "time_steps",
        "neuron",
        "neuron_arguments",
        "epochs",
        "batch_size",
        "density",
        "lr",
    )
    config = TrainConfig.from_preset("paper", data="digits", density=0.4)
    file = written(tmp_path, json.dumps({name: config.to_dict()[name] for name in kept}), "config.json")
    assert Recipe(file=file).config() == TrainConfig(**{name: getattr(config, name) for name in kept})


def test_configuration_is_told_in_order_data_network_training_pruning_run():
    order = [*TrainConfig.from_preset("paper").to_dict()]
    places = [
        order.index(name) for name in ("data", "model", "epochs", "density", "prune_interval", "reference", "seed")
    ]
    assert places == sorted(places)
    assert order[0] == "data"
    assert len(order) == len(set(order)) == len(TrainConfig.__dataclass_fields__)


def test_configuration_hands_all_settings_of_pruning_to_the_schedule_and_tells_objects_by_name():
    def by_luck(group):
        """A criterion of the user's own."""

    config = TrainConfig.from_preset("digits", criterion=by_luck, seed=7)
    assert set(config.plan_arguments) == set(PruneSettings.__dataclass_fields__)
    assert (config.plan_arguments["criterion"], config.plan_arguments["seed"]) == (by_luck, 7)
    assert json.loads(json.dumps(config.to_dict()))["criterion"].endswith("by_luck")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('epochs = 3\nmodle = "vgg5"\n', "line 2: modle: expected a field of the configuration; did you mean model"),
        ("epochs = 3\n\nlr = fast\n", "line 3: not TOML"),
        ('lr = "fast"\n', "line 1: lr: expected float, got 'fast'"),
        ("seed = 1\nepochs = 0\n", "line 2: epochs: expected at least 1, got 0"),
        ('preset = "papr"\n', f"line 1: preset: expected one of {', '.join(PRESETS)}, got 'papr'; did you mean paper"),
        ('\nmodel = "vgg6"\n', "line 2: model: expected one of preresnet18"),
        ("[neuron_arguments]\n# too short\ntau = 0.5\n", "line 3: tau: expected a time constant > 1"),
        ("[lr]\nvalue = 1\n", "line 1: lr: expected float"),
        ("epochs = 1\ndata = ['digits']\n", "line 2: data: expected str, got ['digits']"),
    ],
    ids=["field", "syntax", "type", "range", "preset", "model", "neuron", "table", "list"],
)
def test_train_tells_the_line_of_what_is_wrong_in_a_recipe(tmp_path, text, message):
    file = written(tmp_path, text)
    result = CliRunner().invoke(app, ["train", "--config", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert f"{file}, {message}" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_recipe_does_not_blame_the_file_for_what_the_command_line_overrides(tmp_path):
    recipe = Recipe(file=written(tmp_path, "epochs = 3\n"), options={"epochs": 0})
    with pytest.raises(ValueError, match=r"^epochs: expected at least 1"), recipe.located():
        recipe.config()


def test_train_show_config_prints_what_config_reads_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["train", "--preset", "paper", "--seed", "3", "--show-config"])
    assert shown.exit_code == 0
    file = written(tmp_path, shown.output, "whole.json")
    assert Recipe(file=file).config() == TrainConfig.from_preset("paper", seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]
