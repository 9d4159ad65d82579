"""sca.save and sca.load: one file, any network, nothing half-written and nothing half-read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sca
from sca import checkpoint, saving
from sca.checkpoint import CheckpointError
from sca.models import MODELS
from sca.models.parts import NEURONS
from sca.structure import structure_of
from sca.structure.groups import find_groups
from sca.structure.record import require_structure
from tests.framework.plain_nets import Decoder, Signals
from tests.framework.pruning_nets import SETTINGS, ConcatNet, ConvNet, DepthwiseNet, TiedNet, batch, loss_of, stripped

SMALL = {"in_channels": 2, "image_size": 8, "width": 0.25, "time_steps": 2}
IMAGES = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def prune(model: nn.Module) -> nn.Module:
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active(range(0, members.group.num_channels, 2))
    return model.eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", ["vgg5", "resnet20", "preresnet20"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_registry_model_is_rebuilt(name: str, compacted: bool, file: Path, recwarn) -> None:
    model = prune(sca.models.build(name, **SMALL))
    model = sca.compact(model) if compacted else model
    sca.save(model, file)
    back = sca.load(file)
    assert type(back) is type(model)
    assert not back.training
    if not compacted:
        assert structure_of(back) == structure_of(model)
    assert torch.equal(back(IMAGES), model(IMAGES))
    assert not [w for w in recwarn if "load_state_dict" in str(w.message)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_every_family_is_rebuilt_with_every_neuron(name: str, neuron: str, file: Path) -> None:
    model = sca.models.build(name, neuron=neuron, **{**SMALL, "width": 1 / 16, "image_size": 32})
    sca.save(model, file)
    back = sca.load(file)
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("net", [ConvNet, ConcatNet, DepthwiseNet, TiedNet])
def test_a_network_of_ones_own_gets_structure_and_weights(net, file: Path) -> None:
    model = net()
    loss_of(model)
    sca.save(prune(model), file)
    fresh = net().eval()
    assert sca.load(file, fresh) is fresh
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))
    assert structure_of(fresh) == structure_of(model)
    with pytest.raises(ValueError, match=rf"model: expected an instance of .*{net.__name__} for .*model\.safetensors"):
        sca.load(file)


def test_a_network_whose_groups_were_found_gets_them_back(file: Path) -> None:
    model = stripped(ConvNet())
    sca.attach_groups(model, batch()[0])
    sca.save(prune(model), file)
    fresh = sca.load(file, stripped(ConvNet()).eval())
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))
    assert structure_of(fresh) == structure_of(model)


@pytest.mark.parametrize("net", [Decoder, Signals])
def test_layers_of_every_kind_get_their_structure_back(net, file: Path) -> None:
    model, x = net(), torch.rand(2, 2, 8, 8)
    sca.attach_groups(model, x)
    sca.save(prune(model), file)
    fresh = sca.load(file, net().eval())
    assert torch.equal(fresh(x), model(x))
    assert structure_of(fresh) == structure_of(model)
    structure = structure_of(model)
    for place in structure["carried"].values():
        for role in place.keys() & {"in_group", "out_group"}:
            wrong = {"groups": {"wrong": {"channels": 3, "active": None, "prunable": True}}}
            name = next(name for name, roles in structure["carried"].items() if roles is place)
            with pytest.raises(ValueError, match=rf"{name}\.{role}: expected .* channels, as the module has, got 3"):
                require_structure(net(), wrong | {"carried": {name: {role: ["wrong"]}}})


def test_a_network_without_groups_is_saved_as_well(file: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    sca.save(model, file)
    fresh = sca.load(file, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_file_is_safetensors_with_the_names_of_the_state_dict(file: Path) -> None:
    model = prune(sca.models.build("vgg5", **SMALL))
    sca.save(model, file)
    tensors = load_file(file)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_the_file_says_what_the_network_is_and_how_it_was_pruned(file: Path) -> None:
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, "criterion": lambda group: group.spike_count})
    sca.save(model, file, plan=scheduler.plan)
    told = saving.describe(file)
    assert told["plan"]["density"] == 0.5
    assert "lambda" in told["plan"]["criterion"]
    assert told["class"].endswith("ConvNet")
    assert told["versions"]["torch"] == torch.__version__
    assert told["structure"]["groups"]["first"] == {"channels": 6, "active": None, "prunable": True}


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrapped_models_are_saved_and_loaded_as_what_is_in_them(wrap, file: Path) -> None:
    model = prune(ConvNet())
    sca.save(wrap(model), file)
    assert sorted(load_file(file)) == sorted(model.state_dict())
    fresh = ConvNet().eval()
    sca.load(file, wrap(fresh))
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))


def test_dtypes_are_kept(file: Path) -> None:
    sca.save(sca.models.build("vgg5", **SMALL).to(torch.bfloat16), file)
    back = sca.load(file)
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in back.parameters() if p.dim() == 4)


def test_what_does_not_fit_is_named_and_changes_nothing(file: Path) -> None:
    sca.save(prune(ConvNet()), file)
    for other, words in (
        (ConvNet(first=7), r"conv1\.weight: expected \[7, 2, 3, 3\], as in the model, got \[6, 2, 3, 3\]"),
        (DepthwiseNet(), "no such tensor"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        structure = structure_of(other)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: does not fit the model \(.*{words}"):
            sca.load(file, other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        assert structure_of(other) == structure
    renamed = ConvNet()
    renamed.norm1.group.name = "other"
    with pytest.raises(CheckpointError, match="group 'first': expected"):
        sca.load(file, renamed)


def test_damaged_and_foreign_files_are_refused(file: Path, tmp_path: Path) -> None:
    model = sca.models.build("vgg5", **SMALL)
    sca.save(model, file)
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:-4] + b"\1\2\3\4", b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            sca.load(file)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    with pytest.raises(CheckpointError, match="expected format sca-model-1, got None"):
        sca.load(file)
    torch.save(model.state_dict(), file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        sca.load(file)
    with pytest.raises(FileNotFoundError):
        sca.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [],
        lambda d: {},
        lambda d: {**d, "structure": None},
        lambda d: {**d, "architecture": {**d["architecture"], "width": 1e3}},
        lambda d: {**d, "architecture": {"name": "vgg5", "image_size": 8, "nonsense": 1}},
        lambda d: {**d, "architecture": {"name": ["vgg5"]}},
        lambda d: {**d, "structure": {**d["structure"], "groups": {"conv1": {}}}},
    ],
)
def test_made_up_descriptions_are_refused(change, file: Path) -> None:
    """Their digest is right."""
    model = sca.models.build("vgg5", **SMALL)
    sca.save(model, file)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    file.write_bytes(checkpoint.sealed(tensors, json.dumps(change(saving.describe(file))), saving.FORMAT))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        sca.load(file)


def test_save_refuses_what_is_no_model_or_no_plan_and_leaves_the_file(file: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    sca.save(nn.Linear(2, 2), file)
    before = file.read_bytes()
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        sca.save("model", file)
    with pytest.raises(TypeError, match=r"plan: expected what scheduler\.plan is, or None, got dict"):
        sca.save(nn.Linear(2, 2), file, plan={})
    with pytest.raises(TypeError, match=r"model: expected dense tensors in its state_dict, got .* in _extra_state"):
        sca.save(Extra(2, 2), file)
    with pytest.raises(OSError, match="nowhere"):
        sca.save(nn.Linear(2, 2), file.parent / "nowhere" / "file")
    assert file.read_bytes() == before
