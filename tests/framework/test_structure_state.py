"""The structure travels with the state_dict, and as plain values from one model to another."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings

import pytest
import torch
from torch import nn

import sca
from sca.structure import restore_structure, structure_of
from sca.structure.groups import find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import (
    ConcatNet,
    ConvNet,
    DepthwiseNet,
    ResidualNet,
    TiedNet,
    active,
    batch,
    loss_of,
    stripped,
)

NETS = [ConvNet, ResidualNet, DepthwiseNet, ConcatNet, TiedNet]


def pruned(net: type[nn.Module] = ConvNet) -> nn.Module:
    torch.manual_seed(0)
    model = net()
    loss_of(model)
    for members in find_groups(model).values():
        channels = members.group.num_channels
        members.group.set_active(torch.randperm(channels)[: max(1, channels // 2)])
    return model.eval()


def stored(state: dict, weights_only: bool = True) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="load_state_dict")
        yield


@pytest.mark.parametrize("net", NETS)
def test_load_state_dict_restores_the_active_channels(net, no_warning) -> None:
    model, fresh = pruned(net), net().eval()
    assert stored(model.state_dict()).keys() == net().state_dict().keys()  # no new keys
    fresh.load_state_dict(stored(model.state_dict()))
    assert active(fresh) == active(model)
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))


def test_load_state_dict_of_a_dense_network_makes_all_channels_active(no_warning) -> None:
    model = pruned()
    model.load_state_dict(ConvNet().state_dict())
    assert all(members.group.all_active for members in find_groups(model).values())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.Sequential(m)])
def test_load_state_dict_restores_through_wrappers_and_in_parts(wrap, no_warning) -> None:
    model = pruned()
    wrapped = wrap(ConvNet())
    wrapped.load_state_dict(wrap(model).state_dict())
    inner = sca.structure.wrappers.unwrapped(wrapped)
    assert active(inner if isinstance(inner, ConvNet) else inner[0]) == active(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_of_a_state_dict_keep_the_structure(copied, no_warning) -> None:
    model, fresh = pruned(), ConvNet()
    fresh.load_state_dict(copied(model.state_dict()))
    assert active(fresh) == active(model)


def test_load_state_dict_by_assignment_on_the_meta_device(no_warning) -> None:
    model = pruned()
    with torch.device("meta"):
        fresh = ConvNet().eval()
    fresh.load_state_dict(model.state_dict(), assign=True)
    assert active(fresh) == active(model)
    assert torch.equal(fresh(batch()[0]), model(batch()[0]))


def test_a_state_without_metadata_warns_once_where_the_model_is_pruned() -> None:
    model = pruned()
    before = active(model)
    for _ in range(2):
        with pytest.warns(UserWarning, match="the state does not say which") as caught:
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        assert len([w for w in caught if "load_state_dict" in str(w.message)]) == 1
    assert active(model) == before


def test_a_pruned_state_warns_once_where_the_model_has_no_groups() -> None:
    with pytest.warns(UserWarning, match="has no channel groups to keep them so") as caught:
        stripped(ConvNet()).load_state_dict(pruned().state_dict())
    assert len([w for w in caught if "load_state_dict" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stripped(ConvNet()).load_state_dict(ConvNet().state_dict())  # of a dense network: nothing is lost
        ConvNet().load_state_dict({**ConvNet().state_dict()})


def test_a_state_of_another_width_is_refused_by_name() -> None:
    class Wider(nn.Module):
        """A neuron has no parameter whose size would tell."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.neuron = snn.LIF(group=snn.ChannelGroup(channels, "g"))

    wide = Wider(8)
    wide.neuron.group.set_active([5, 7])
    with pytest.raises(RuntimeError, match=r"neuron\.group: expected \[4\] channels, got \[8\]"):
        Wider(4).load_state_dict(wide.state_dict())
    damaged = wide.state_dict()
    damaged._metadata["neuron"]["channels"]["group"][0][2] = [5, 5]
    with pytest.raises(RuntimeError, match=r"neuron\.group: indices: expected unique channels"):
        Wider(8).load_state_dict(damaged)


@pytest.mark.parametrize("net", NETS)
def test_structure_is_plain_and_gives_another_model_the_same(net) -> None:
    model, fresh = pruned(net), net().eval()
    structure = json.loads(json.dumps(structure_of(model)))
    restore_structure(fresh, structure)
    assert active(fresh) == active(model)
    assert structure_of(fresh) == structure


def test_structure_gives_groups_to_a_model_that_has_none() -> None:
    model = sca.models.build("vgg5", in_channels=1, image_size=8)
    bare = stripped(model)
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active(range(0, members.group.num_channels, 2))
    for module in bare.modules():
        if hasattr(module, "features_per_channel"):
            module.features_per_channel = 1
    bare.load_state_dict({**model.state_dict()})
    restore_structure(bare, structure_of(model))
    x = torch.rand(2, 1, 8, 8)
    assert structure_of(bare) == structure_of(model)
    assert torch.equal(bare.eval()(x), model.eval()(x))


def test_structure_of_a_model_without_groups_is_empty() -> None:
    assert structure_of(nn.Linear(2, 2)) == {"groups": {}, "carried": {}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["groups"].pop("first"), "group 'first': expected 6 channels, as in the model, got no such group"),
        (lambda s: s["groups"]["first"].update(channels=7), "group 'first': expected 6 channels, .* got 7"),
        (lambda s: s["groups"]["first"].update(active=[9]), r"expected unique channels in \[0, 6\)"),
        (lambda s: s["groups"]["first"].update(active="all"), "what sca.structure.structure_of gives"),
        (lambda s: s["groups"]["first"].pop("prunable"), "prunable"),
        (lambda s: s.pop("groups"), "what sca.structure.structure_of gives"),
        (lambda s: s["carried"]["conv1"].update(out_group=["third"]), "names of groups, got"),
    ],
)
def test_structure_that_does_not_fit_is_refused_and_changes_nothing(change, words) -> None:
    model = pruned()
    structure, before = structure_of(model), active(model)
    change(structure)
    if "first" not in structure.get("groups", ["first"]):
        structure["carried"] = {}
    with pytest.raises(ValueError, match=words):
        restore_structure(model, structure)
    assert active(model) == before


def test_structure_names_the_module_that_it_does_not_fit() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = snn.ChannelConv2d(2, 5, 3)

    with pytest.raises(ValueError, match=r"structure: conv1\.out_group: expected 5 channels, as the module has, got 6"):
        restore_structure(Bare(), structure_of(pruned()))
    with pytest.raises(ValueError, match=r"structure: conv1\.out_group: .*got no such module"):
        restore_structure(nn.Linear(2, 2), structure_of(pruned()))
