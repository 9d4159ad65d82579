"""State of neuron modules and what they record."""

import copy
import pickle
import resource

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.testing import activation, relative_l2


def test_modules_are_stateless_by_default():
    neuron, x = nn.LIF(), activation((4, 2, 3, 5))
    assert torch.equal(neuron(x), neuron(x))
    assert neuron.v is None


def test_stateful_calls_continue_where_the_last_one_ended():
    x = activation((8, 2, 3, 5))
    neuron = nn.LIF(stateful=True)
    parts = [neuron(x[:3]), neuron(x[3:])]
    assert torch.equal(torch.cat(parts), F.lif(x).spikes)


def test_reset_equals_a_fresh_module_and_touches_only_its_tree():
    x = activation((4, 2, 3, 5))
    inside, outside = (nn.LIF(stateful=True) for _ in range(2))
    tree = torch.nn.Sequential(inside)
    first = tree(x), outside(x)
    nn.reset(tree)
    assert torch.equal(tree(x), first[0])
    assert not torch.equal(outside(x), first[1])


@pytest.mark.parametrize("convert", ["half", "double", "bfloat16"])
def test_state_survives_conversion_in_float32(convert):
    x = activation((4, 2, 3, 5))
    neuron = nn.PLIF(stateful=True)
    neuron(x)
    v = neuron.v
    getattr(neuron, convert)()
    assert torch.equal(neuron.v, v)
    assert neuron.v.dtype == torch.float32
    neuron.to("meta")
    assert neuron.v.device.type == "meta"


def test_state_is_not_in_the_state_dict():
    neuron = nn.PLIF(stateful=True)
    keys = list(neuron.state_dict())
    neuron(activation((4, 2, 3, 5)))
    neuron.activity = nn.Activity()
    neuron(activation((4, 2, 3, 5)))
    assert list(neuron.state_dict()) == keys == ["w"]


def test_batch_size_change_is_an_error_that_says_reset():
    neuron = nn.LIF(stateful=True)
    neuron(activation((4, 2, 3, 5)))
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        neuron(activation((4, 3, 3, 5)))
    neuron.reset()
    neuron(activation((4, 3, 3, 5)))


def test_detach_cuts_the_graph_and_keeps_the_state():
    neuron, x = nn.LIF(stateful=True), activation((4, 2, 3, 5)).requires_grad_()
    neuron(x)
    v = neuron.v
    assert v.requires_grad
    nn.detach(torch.nn.Sequential(neuron))
    assert not neuron.v.requires_grad
    assert torch.equal(neuron.v, v)


def recorded(model, x, **options):
    model[1].activity = nn.Activity(**options)
    model(x)
    return model[1].activity


def network():
    return torch.nn.Sequential(torch.nn.Linear(6, 5), nn.LIF())


def test_activity_sums_counts_membrane_and_positions():
    model, x = network(), activation((4, 2, 6))
    activity = recorded(model, x)
    model(x)
    out = F.lif(model[0](x))
    assert torch.equal(activity.spike_count, 2 * out.spike_count)
    assert relative_l2(activity.membrane_l1, 2 * out.membrane_l1) <= 1e-7
    assert activity.positions.tolist() == [2 * 4 * 2] * 5
    activity.reset()
    assert activity.spike_count is None


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_activity_is_not_doubled_by_activation_checkpointing(use_reentrant):
    model, x = network(), activation((4, 2, 6)).requires_grad_()
    expected = recorded(model, x).spike_count
    model[1].activity.reset()
    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(model[1].activity.spike_count, expected)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_running_statistics_are_updated_once_under_activation_checkpointing(use_reentrant):
    x = activation((4, 2, 6)).requires_grad_()
    plain, again = nn.BatchNormLIF(6), nn.BatchNormLIF(6)
    plain(x).sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(again, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))


def test_activity_is_not_doubled_by_gradient_accumulation():
    """Two micro-batches count as their union."""
    model, x = network(), activation((4, 6, 6))
    whole = recorded(model, x)
    parts = nn.Activity()
    model[1].activity = parts
    for half in x.split(3, dim=1):
        model(half).sum().backward()
    assert torch.equal(parts.spike_count, whole.spike_count)
    assert torch.equal(parts.positions, whole.positions)


def test_activity_is_not_counted_in_an_extra_eval_pass():
    model, x = network(), activation((4, 2, 6))
    model.eval()
    assert recorded(model, x).spike_count is None
    assert recorded(model, x, training_only=False).spike_count is not None


def test_activity_of_a_pruned_group_lands_on_the_active_channels():
    group = nn.ChannelGroup(7)
    group.set_active([1, 4, 5])
    neuron = nn.LIF(group=group)
    neuron.activity = nn.Activity()
    x = activation((4, 2, 3, 5))
    neuron(x)
    assert neuron.activity.spike_count[group.active].tolist() == F.lif(x).spike_count.tolist()
    assert neuron.activity.positions[group.dormant].tolist() == [0] * 4


def test_memory_is_flat_over_a_thousand_steps():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), nn.BatchNormLIF(64), nn.LIF(stateful=True))
    model[1].activity = nn.Activity()
    x = activation((2, 16, 64))

    def steps(n):
        for _ in range(n):
            nn.reset(model)
            model(x).sum().backward()
            model.zero_grad()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = steps(200)
    assert steps(800) - before < 4096  # KiB; one leaked activation per step would be 6 MiB


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_share_groups_among_themselves_alone(copier):
    group = nn.ChannelGroup(4, "g")
    model = torch.nn.Sequential(
        nn.ChannelConv2d(3, 4, 3, out_group=group),
        nn.BatchNormLIF(4, group=group),
        nn.ChannelConv2d(4, 2, 1, in_group=group),
    )
    twin = copier(model)
    twin[0].out_group.set_active([0, 3])
    assert twin[1].group is twin[0].out_group is twin[2].in_group
    assert group.all_active
    x = torch.rand(4, 2, 3, 5, 5)
    assert twin(x).shape == model(x).shape


@pytest.mark.parametrize(
    ("indices", "says"),
    [([], "at least one"), ([0, 0], "unique"), ([4], r"\[0, 4\)"), ([-1], r"\[0, 4\)")],
    ids=["none", "duplicate", "too large", "negative"],
)
def test_group_rejects_bad_indices_and_keeps_what_it_had(indices, says):
    group = nn.ChannelGroup(4, "g")
    with pytest.raises(ValueError, match=says):
        group.set_active(indices)
    assert group.all_active


def test_group_sorts_and_knows_its_dormant_channels():
    group = nn.ChannelGroup(5)
    group.set_active(torch.tensor([3, 0]))
    assert group.active.tolist() == [0, 3]
    assert group.dormant.tolist() == [1, 2, 4]
    assert group.density == 0.4
    assert group.mask().tolist() == [True, False, False, True, False]


def test_wrong_width_is_named():
    group = nn.ChannelGroup(5, "g")
    with pytest.raises(ValueError, match="x: expected 5 channels"):
        nn.LIF(group=group)(activation((4, 2, 3)))
