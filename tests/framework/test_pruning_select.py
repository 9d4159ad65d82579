"""choose() (checklist: schedule met exactly, stable top-k under ties; floors)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sca.pruning.allocation import by_cost, by_place, by_value
from sca.pruning.select import Candidates, choose, largest_count


def candidates(score: list[float], active: list[int] | None = None, growth: list[float] | None = None, floor: int = 1):
    mask = torch.ones(len(score), dtype=torch.bool) if active is None else torch.tensor(active, dtype=torch.bool)
    grow = None if growth is None else torch.tensor(growth, dtype=torch.float64)
    return Candidates(mask, torch.tensor(score, dtype=torch.float64), grow, floor)


def indices(masks: list[torch.Tensor]) -> list[list[int]]:
    return [mask.nonzero().flatten().tolist() for mask in masks]


@st.composite
def groups(draw, growing: bool = True) -> list[Candidates]:
    """A few groups with many ties, some channels dormant, none empty."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 12))
        levels = st.lists(st.integers(0, 3).map(float), min_size=size, max_size=size)
        active = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(any))
        made.append(candidates(draw(levels), active, draw(levels) if growing else None, draw(st.integers(1, 3))))
    return made


@given(
    made=groups(),
    share=st.floats(0, 1),
    regrow=st.integers(0, 20),
    allocation=st.sampled_from([by_value, by_place]),
    pruned=st.booleans(),
)
def test_choose_takes_exactly_the_count_where_floors_permit(made, share, regrow, allocation, pruned) -> None:
    total = sum(g.active.numel() for g in made)
    count = max(1, round(share * total))
    chosen = choose(made, count, min(regrow, count - 1), allocation=allocation, regrow_pruned=pruned)
    floors = sum(min(g.floor, int(g.active.sum())) for g in made)
    assert sum(int(mask.sum()) for mask in chosen) == max(count, floors)
    for group, mask in zip(made, chosen, strict=True):
        kept = int((mask & group.active).sum())
        assert mask.any()
        assert pruned or kept >= min(group.floor, int(group.active.sum()))


@given(made=groups(growing=False), share=st.floats(0, 1))
def test_choose_without_growth_only_cuts(made, share) -> None:
    chosen = choose(made, max(1, round(share * sum(int(g.active.sum()) for g in made))), regrow=2)
    assert all(not bool((mask & ~g.active).any()) for g, mask in zip(made, chosen, strict=True))


@given(made=groups(), regrow=st.integers(0, 5), multiple=st.integers(1, 5))
def test_choose_rounds_every_group_to_the_nearest_multiple_or_its_size(made, regrow, multiple) -> None:
    total = sum(g.active.numel() for g in made)
    count = max(regrow + 1, total // 2)
    plain = choose(made, count, regrow)
    for group, exact, mask in zip(made, plain, choose(made, count, regrow, round_to=multiple), strict=True):
        n, size = int(mask.sum()), group.active.numel()
        m = int(exact.sum())
        assert n == size or n % multiple == 0
        assert n >= min(m, group.floor)
        assert 2 * abs(n - m) <= multiple or n == size or n - multiple < max(1, min(m, group.floor))
        assert bool((mask | ~exact).all()) if n >= m else bool((exact | ~mask).all())  # no more changes than that


@given(made=groups(), share=st.floats(0, 1), allocation=st.sampled_from([by_value, by_place]))
def test_choose_is_nested_in_the_count(made, share, allocation) -> None:
    total = sum(g.active.numel() for g in made)
    count = max(1, round(share * (total - 1)))
    smaller, larger = (choose(made, k, allocation=allocation) for k in (count, count + 1))
    assert all(bool((b | ~a).all()) for a, b in zip(smaller, larger, strict=True))


def test_choose_breaks_ties_by_group_and_then_by_index() -> None:
    assert indices(choose([candidates([1, 1, 1]), candidates([1, 1, 1])], 4)) == [[0, 1, 2], [0]]
    assert indices(choose([candidates([0, 1, 0, 1, 1])], 2)) == [[1, 3]]


def test_choose_global_ranks_all_channels_together_and_leaves_one() -> None:
    assert indices(choose([candidates([9, 8, 7]), candidates([1, 3, 2])], 3)) == [[0, 1], [1]]


def test_choose_honours_floors_before_the_ranking() -> None:
    made = [candidates([9, 8, 7, 6]), candidates([1, 3, 2, 0], floor=2)]
    assert indices(choose(made, 4)) == [[0, 1], [1, 2]]
    assert indices(choose(made, 2)) == [[0], [1, 2]]  # the floors need three


@pytest.mark.parametrize("sizes", [(4, 8, 16), (6, 10, 30), (3, 5, 7)])
def test_choose_by_layer_gives_all_groups_the_same_density_to_within_a_channel(sizes: tuple[int, ...]) -> None:
    made = [candidates((torch.rand(c) * 10**i).tolist()) for i, c in enumerate(sizes)]
    for count in range(len(sizes), sum(sizes) + 1):
        chosen = choose(made, count, allocation=by_place)
        for size, mask in zip(sizes, chosen, strict=True):
            assert abs(int(mask.sum()) - size * count / sum(sizes)) <= 1


def test_choose_by_cost_cuts_groups_by_their_share_of_channels_and_connections() -> None:
    """All at the same share that they precede per cost: density = 1 - c * cost."""
    sizes, each = (20, 40, 80), (1.0, 10.0, 50.0)
    prices = [torch.full((size,), price, dtype=torch.float64) for size, price in zip(sizes, each, strict=True)]
    costs = [1 / sum(sizes) + price / (20 + 400 + 4000) for price in each]
    made = [candidates(torch.rand(size).tolist()) for size in sizes]
    for count in 40, 70, 100, 130:
        chosen = [int(mask.sum()) for mask in choose(made, count, allocation=by_cost, prices=prices)]
        cut = [1 - n / size for n, size in zip(chosen, sizes, strict=True)]
        assert sum(chosen) == count
        for share, cost, size in zip(cut, costs, sizes, strict=True):
            assert share == pytest.approx(cut[0] * cost / costs[0], abs=1.5 / size + 1.5 / 20 * cost / costs[0])


@pytest.mark.parametrize("allocation", [by_place, by_cost])
def test_choose_regrows_where_groups_lack_channels_not_where_they_are_cheap(allocation) -> None:
    """What is kept and what is regrown together have the sizes that groups get without regrowth."""
    sizes, each = (20, 40, 80), (1.0, 10.0, 50.0)
    prices = [torch.full((size,), price, dtype=torch.float64) for size, price in zip(sizes, each, strict=True)]
    dense = [candidates(torch.rand(size).tolist()) for size in sizes]
    masks = choose(dense, 70, allocation=allocation, prices=prices)
    pruned = [
        candidates(group.score.tolist(), mask.tolist(), torch.rand(len(mask)).tolist())
        for group, mask in zip(dense, masks, strict=True)
    ]
    again = choose(pruned, 70, regrow=20, allocation=allocation, prices=prices)
    for before, after in zip(masks, again, strict=True):
        assert abs(int(after.sum()) - int(before.sum())) <= 1
    assert sum(int((after & ~before).sum()) for before, after in zip(masks, again, strict=True)) >= 18


def test_choose_regrows_the_most_promising_and_not_what_it_cut() -> None:
    made = [candidates([5, 4, 3, 0, 0], active=[1, 1, 1, 0, 0], growth=[9, 9, 9, 1, 2])]
    assert indices(choose(made, 3, regrow=1)) == [[0, 1, 4]]
    assert indices(choose(made, 3, regrow=2, regrow_pruned=True)) == [[0, 1, 2]]  # 1 and 2 were cut, then regrown


def test_choose_keeps_more_where_too_few_are_dormant() -> None:
    made = [candidates([5, 4, 3, 0], active=[1, 1, 1, 0], growth=[0, 0, 0, 0])]
    assert indices(choose(made, 3, regrow=2)) == [[0, 1, 3]]


def test_choose_regrows_more_where_too_few_are_active() -> None:
    made = [candidates([5, 0, 0, 0], active=[1, 0, 0, 0], growth=[0, 1, 2, 3])]
    assert indices(choose(made, 3)) == [[0, 2, 3]]


@given(target=st.floats(0, 1.2))
def test_largest_count_is_the_last_that_does_not_exceed_the_target(target: float) -> None:
    found = largest_count(2, 10, lambda count: count / 10, target)
    assert found == max([2, *(k for k in range(2, 11) if k / 10 <= target)])
