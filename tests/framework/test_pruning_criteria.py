"""The registered criteria: one shared test for all, and what each is by definition."""

from __future__ import annotations

import pytest
import torch

from sca.pruning.criteria import CRITERIA, Criterion, GroupContext, NormObservation, Observation
from sca_kernels import nn as snn

C = 6


def context(seed: int = 0, **changes) -> GroupContext:
    source, group = snn.ChannelGroup(4), snn.ChannelGroup(C, "g")
    source.set_active([0, 2, 3])
    group.set_active([0, 1, 3, 5])
    conv = snn.ChannelConv2d(4, C, 3, in_group=source, out_group=group)
    norm = snn.BatchNormLIF(C, group=group)
    torch.nn.init.normal_(norm.weight)
    positions = 50 * group.mask().long()
    fields = {
        "group": group,
        "name": "g",
        "active": group.active,
        "spike_count": torch.tensor([10, 0, 0, 25, 0, 50]),
        "membrane_l1": torch.tensor([5.0, 20.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        "positions": positions,
        "producers": (conv,),
        "consumers": (),
        "norms": (norm,),
        "generator": torch.Generator().manual_seed(seed),
    }
    criterion = CRITERIA[changes.pop("observer", "sca")]
    if isinstance(criterion, Criterion):
        fields["observed"] = criterion.observe(norms() if criterion.observes == "norms" else observation())
    return GroupContext(**{**fields, **changes})


def observation() -> Observation:
    """Four active channels, of which the second fires whenever the first does, and the last never."""
    generator = torch.Generator().manual_seed(2)
    spikes = (torch.rand(3, 5, 4, 2, 2, generator=generator) < 0.4).float()
    spikes[:, :, 1] = torch.maximum(spikes[:, :, 0], spikes[:, :, 1])
    spikes[:, :, 3] = 0
    gradient = torch.randn(spikes.shape, generator=generator)
    return Observation(spikes, gradient, lambda: 2 * spikes - 0.5)


def norms() -> NormObservation:
    """Four active channels."""
    return NormObservation(*torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))


def test_criteria_are_found_by_file() -> None:
    assert set(CRITERIA) >= {
        *("sca", "sca_unclipped", "rate", "weight_l1", "bn_gamma", "random"),
        *("taylor", "taylor_global", "taylor_norm", "redundancy"),
    }


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_gives_each_active_channel_a_finite_reproducible_score(name: str) -> None:
    torch.manual_seed(0)
    group = context(observer=name)
    score = CRITERIA[name](group)
    assert score.dtype == torch.float64
    assert score.shape == (C,)
    assert score.device.type == "cpu"
    assert not score.requires_grad
    assert score[group.active].isfinite().all()
    assert (score[group.active] >= 0).all()
    torch.manual_seed(0)
    assert torch.equal(score, CRITERIA[name](context(observer=name)))


def test_criterion_sca_is_the_mean_of_spike_plus_potential() -> None:
    assert CRITERIA["sca"](context())[[0, 1, 3, 5]].tolist() == pytest.approx([0.3, 0.4, 0.52, 1.0])


def test_criterion_sca_ranks_a_busy_channel_above_a_silent_one() -> None:
    """|v| alone would not: channel 5 fires at every step, so that its potential is reset to 0."""
    score = CRITERIA["sca"](context())
    assert score[5] > score[1]


def test_criterion_rate_is_spikes_per_position() -> None:
    assert CRITERIA["rate"](context())[[0, 1, 3, 5]].tolist() == pytest.approx([0.2, 0.0, 0.5, 1.0])


def test_criterion_weight_l1_sums_the_filter_over_its_active_inputs() -> None:
    group = context()
    (conv,) = group.producers
    expected = conv.weight.detach()[:, [0, 2, 3]].abs().sum((1, 2, 3)).double()
    torch.testing.assert_close(CRITERIA["weight_l1"](group), expected)


def test_criterion_bn_gamma_is_its_absolute_value() -> None:
    group = context()
    (norm,) = group.norms
    torch.testing.assert_close(CRITERIA["bn_gamma"](group), norm.weight.detach().abs().double())


def test_criterion_random_draws_from_the_given_generator_alone() -> None:
    first, second = context(0), context(1)
    state = torch.get_rng_state()
    assert not torch.equal(CRITERIA["random"](first), CRITERIA["random"](second))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["sca", "rate"])
def test_criterion_without_activity_raises_by_group(name: str) -> None:
    with pytest.raises(RuntimeError, match="group 'g': no activity was recorded"):
        CRITERIA[name](context(positions=torch.zeros(C, dtype=torch.int64)))


@pytest.mark.parametrize(("name", "lacking"), [("weight_l1", "producers"), ("bn_gamma", "norms")])
def test_criterion_without_its_module_raises_by_group(name: str, lacking: str) -> None:
    with pytest.raises(ValueError, match=f"criterion '{name}': group 'g' has no"):
        CRITERIA[name](context(**{lacking: ()}))


def test_criterion_weight_l1_ranks_a_selected_group_by_the_weights_that_read_it() -> None:
    group, sink = snn.ChannelGroup(C, "g"), snn.ChannelGroup(3)
    sink.set_active([0, 2])
    conv = snn.ChannelConv2d(C, 3, 3, in_group=group, out_group=sink)
    score = CRITERIA["weight_l1"](context(group=group, producers=(), consumers=(conv,)))
    torch.testing.assert_close(score, conv.weight.detach()[[0, 2]].abs().sum((0, 2, 3)).double())
    with pytest.raises(ValueError, match="group 'g' has no layer"):
        CRITERIA["weight_l1"](context(producers=()))


def test_criterion_weight_l1_reads_a_transposed_convolution_by_its_columns() -> None:
    source, group = snn.ChannelGroup(4), snn.ChannelGroup(C, "g")
    source.set_active([0, 2, 3])
    makes, reads = (
        snn.ChannelConvTranspose2d(4, C, 3, in_group=source, out_group=group),
        snn.ChannelConvTranspose2d(C, 3, 2),
    )
    reads.in_group = group
    score = CRITERIA["weight_l1"](context(group=group, producers=(makes,)))
    torch.testing.assert_close(score, makes.weight.detach()[[0, 2, 3]].abs().sum((0, 2, 3)).double())
    score = CRITERIA["weight_l1"](context(group=group, producers=(), consumers=(reads,)))
    torch.testing.assert_close(score, reads.weight.detach().abs().sum((1, 2, 3)).double())


def test_criterion_taylor_is_the_mean_change_of_each_sample_in_units_of_its_layer() -> None:
    seen = observation()
    by_hand = (seen.spikes * seen.gradient).sum((0, 3, 4)).abs().sum(0).double()
    score = CRITERIA["taylor"](context(observer="taylor"))[[0, 1, 3, 5]]
    torch.testing.assert_close(score, by_hand / by_hand.norm())
    assert score[3] == 0  # what never fires changes nothing


def test_criterion_taylor_global_is_the_change_itself_whatever_the_layer() -> None:
    seen = observation()
    by_hand = (seen.spikes * seen.gradient).sum((0, 3, 4)).abs().sum(0).double()
    score = CRITERIA["taylor_global"](context(observer="taylor_global"))
    torch.testing.assert_close(score[[0, 1, 3, 5]], by_hand)
    weaker = Observation(seen.spikes, seen.gradient / 8, seen.potentials)
    observed = CRITERIA["taylor_global"].observe(weaker)
    torch.testing.assert_close(CRITERIA["taylor_global"](context(observed=observed)), score / 8)


def test_criterion_redundancy_is_one_minus_the_correlation_with_a_busier_channel() -> None:
    trains = observation().spikes.transpose(0, 2).flatten(1).double()
    correlation = torch.corrcoef(trains[:3]).abs()
    score = CRITERIA["redundancy"](context(observer="redundancy"))[[0, 1, 3, 5]]
    assert trains.sum(1).argmax() == 1
    assert score[1] == 1  # the busiest has nobody to repeat
    assert score[0].item() == pytest.approx(1 - correlation[0, trains[:3].sum(1) > trains[0].sum()].max().item())
    assert score[3] == 0


def test_criterion_redundancy_correlates_graded_activations_as_well() -> None:
    seen = observation()
    graded = Observation(seen.spikes * torch.rand(seen.spikes.shape), None, seen.potentials)
    trains = graded.spikes.transpose(0, 2).flatten(1).double()
    correlation, total = torch.corrcoef(trains[:3]).abs(), trains[:3].sum(1)
    score = CRITERIA["redundancy"](context(observed=CRITERIA["redundancy"].observe(graded)))[[0, 1, 3]]
    for channel in range(3):
        busier = correlation[channel, total > total[channel]]
        assert score[channel].item() == pytest.approx(1 - busier.max().item() if busier.numel() else 1, abs=1e-5)


def test_criterion_redundancy_keeps_one_of_two_that_fire_alike() -> None:
    spikes = (torch.rand(2, 8, 1, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float().expand(2, 8, 4, 3)
    observed = CRITERIA["redundancy"].observe(Observation(spikes, None, lambda: spikes))
    score = CRITERIA["redundancy"](context(observed=observed))[[0, 1, 3, 5]]
    assert score.tolist() == pytest.approx([1, 0, 0, 0], abs=1e-12)


def test_criterion_sca_unclipped_is_the_mean_potential_before_the_reset() -> None:
    score = CRITERIA["sca_unclipped"](context(observer="sca_unclipped"))[[0, 1, 3, 5]]
    potentials = 2 * observation().spikes - 0.5
    torch.testing.assert_close(score, potentials.abs().double().mean((0, 1, 3, 4)))
