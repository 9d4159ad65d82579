"""Which channels went and came: churn, overlap and moving ranks, of logs made by hand and of a run."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sca.packed import pack
from sca.report.channels import (
    MOST_CHANNELS,
    Churn,
    active_sets,
    chance_overlap,
    check_channels,
    churn,
    jaccard,
    overlaps,
    rank_correlation,
    rank_correlations,
    recorded,
)
from sca.report.html import page
from sca.report.runs import read_runs
from sca.training import RunFolder, run
from tests.framework.watched import Watch, tiny

NOTHING = {"kept": [0], "pruned": [0], "low": None, "high": None, "cut": None}


def log(channels: int, *moves: tuple[list[int], list[int]], group: str = "a", scored: bool = True) -> list[dict]:
    """Updates of one group, all of whose channels are active at first, by what went and what came; channel c scores
    c + 1."""
    active, updates = set(range(channels)), []
    for step, (pruned, regrown) in enumerate(moves, 1):
        change = {"before": len(active), "pruned": len(pruned), "regrown": len(regrown), "scores": NOTHING}
        change |= {"pruned_channels": pruned, "regrown_channels": regrown}
        if scored:
            change["all_scores"] = pack(c + 1 if c in active else math.nan for c in range(channels))
        active = active - set(pruned) | set(regrown)
        updates.append({"step": 10 * step, "active": {group: len(active)}, "groups": {group: change}})
    return updates


# --- active sets and churn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scored", [True, False])
def test_active_sets_are_all_channels_but_those_that_went_and_did_not_come_back(scored):
    updates = log(6, ([0, 1, 2], []), ([3], [1]), ([], [0]), scored=scored)
    check_channels(updates)
    assert np.flatnonzero(active_sets(updates)["a"]).tolist() == [0, 1, 4, 5]
    assert active_sets([]) == {}


def test_active_sets_begin_with_the_channels_that_had_scores():
    updates = log(6, ([0, 1], []), ([2], []))[1:]  # as of a model that was pruned before
    check_channels(updates)
    assert np.flatnonzero(active_sets(updates)["a"]).tolist() == [3, 4, 5]


def test_churn_counts_what_came_back_at_any_later_update():
    updates = log(6, ([0, 1, 2], []), ([3], [1]), ([1], [0]), ([], [1, 3]))
    assert churn(updates) == [Churn(10, 3, 0, 2), Churn(20, 1, 1, 1), Churn(30, 1, 1, 1), Churn(40, 0, 2, 0)]


def test_churn_adds_up_over_groups():
    both = log(4, ([0], []), ([], [0]))
    for update, other in zip(both, log(5, ([1, 2], []), ([3], [2]), group="b"), strict=True):
        update["groups"] |= other["groups"]
    assert churn(both) == [Churn(10, 3, 0, 2), Churn(20, 1, 2, 0)]


def test_a_log_of_before_tells_no_channels():
    updates = log(4, ([0], []), ([1], []))
    for key in ("pruned_channels", "regrown_channels", "all_scores"):
        del updates[0]["groups"]["a"][key]
    assert recorded(updates) == []
    assert active_sets(updates) == {}
    assert rank_correlations(updates, "a") == [None]
    check_channels(updates)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"pruned_channels": [0]}, "line 1: groups.a.pruned_channels: expected 2 indices in rising order, got [0]"),
        (0, {"pruned_channels": [1, 0]}, "line 1: groups.a.pruned_channels: expected 2 indices in rising order"),
        (0, {"pruned_channels": [1, 1]}, "line 1: groups.a.pruned_channels: expected 2 indices in rising order"),
        (0, {"pruned_channels": [0, 9]}, "line 1: groups.a.pruned_channels: expected channels that were active"),
        (1, {"pruned_channels": [0]}, "line 2: groups.a.pruned_channels: expected channels that were active"),
        (1, {"regrown_channels": [4]}, "line 2: groups.a.regrown_channels: expected channels that were dormant"),
        (1, {"before": 3}, "line 2: groups.a.all_scores: expected scores of 3 active channels"),
        (0, {"all_scores": "?"}, "line 1: groups.a.all_scores: expected packed numbers"),
        (0, {"all_scores": pack([1.0] * 5)}, "line 1: groups.a.all_scores: expected scores of 6 active channels"),
        (1, {"all_scores": pack([1.0] * 4)}, "line 2: groups.a: expected 4 of 6 channels to be active before"),
        (0, {"all_scores": pack([1.0] * (MOST_CHANNELS + 1))}, "line 1: groups.a.all_scores: expected packed numbers"),
    ],
)
def test_a_log_that_contradicts_itself_is_refused_by_line(number, change, message):
    updates = log(6, ([0, 1], []), ([2], [0]))
    updates[number]["groups"]["a"] |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        check_channels(updates)


def test_a_group_of_more_channels_than_there_are_is_refused_before_memory_is():
    updates = log(2, ([0], []), scored=False)
    updates[0]["groups"]["a"]["before"] = 10**12
    with pytest.raises(ValueError, match=r"line 1: groups\.a\.before: expected at most 65,536, got 1000000000000"):
        check_channels(updates)


# --- overlap -------------------------------------------------------------------------------------------------------


def mask(size: int, *channels: int) -> np.ndarray:
    return np.isin(np.arange(size), channels)


def test_jaccard_is_shared_of_all():
    assert jaccard(mask(6, 0, 1, 2), mask(6, 1, 2, 3)) == 2 / 4
    assert jaccard(mask(6, 0), mask(6, 1)) == 0
    assert jaccard(mask(6), mask(6)) == 1


@pytest.mark.parametrize(("total", "a", "b"), [(6, 3, 3), (6, 1, 5), (5, 5, 2), (7, 0, 3), (4, 0, 0), (6, 5, 4)])
def test_chance_overlap_is_the_mean_over_all_sets(total, a, b):
    from itertools import combinations

    first = mask(total, *range(a))
    values = [jaccard(first, mask(total, *chosen)) for chosen in combinations(range(total), b)]
    assert chance_overlap(total, a, b) == pytest.approx(sum(values) / len(values))


def test_chance_overlap_of_a_wide_group_is_near_the_ratio_of_means():
    assert chance_overlap(4096, 1024, 1024) == pytest.approx(256 / (2048 - 256), rel=1e-3)


def test_overlaps_pair_groups_by_name_and_width():
    first = {"a": mask(4, 0, 1), "b": mask(4, 0), "c": mask(4, 0)}
    second = {"c": mask(5, 0), "a": mask(4, 1, 2), "d": mask(4, 0)}
    found = overlaps(first, second)
    assert list(found) == ["a"]
    assert found["a"].measured == 1 / 3
    assert found["a"].chance == pytest.approx((1 * 0 + 4 / 3 + 1 * 1) / 6)


# --- ranks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
        ([1, 2, 3], [1, 2, math.inf], 1.0),
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [1], None),
        ([], [], None),
    ],
)
def test_rank_correlation_is_spearmans(a, b, expected):
    found = rank_correlation(np.array(a, dtype="f4"), np.array(b, dtype="f4"))
    assert found == (None if expected is None else pytest.approx(expected))


def test_rank_correlations_are_over_the_channels_active_at_both_updates():
    updates = log(6, ([0], []), ([5], [0]), ([], []))
    second = updates[1]["groups"]["a"]
    second["all_scores"] = pack([math.nan, 5, 4, 3, 2, 1])  # of 1 to 5, in the other order
    assert rank_correlations(updates, "a") == [pytest.approx(-1), pytest.approx(-1)]
    del second["all_scores"]
    assert rank_correlations(updates, "a") == [None, None]


# --- a run ---------------------------------------------------------------------------------------------------------

CONFIG = tiny(epochs=3, limit_train=96)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Three finished runs that differ in their seed."""
    parent = tmp_path_factory.mktemp("channels")
    for seed in range(3):
        with RunFolder(parent / f"seed{seed}") as held:
            run(CONFIG.changed(seed=seed), held, Watch())
    return [parent / f"seed{seed}" for seed in range(3)]


def test_the_log_of_a_run_leads_to_the_channels_of_its_network(folders):
    from sca.structure.groups import find_groups
    from sca.training import load_pruned

    (told,) = read_runs(folders[:1])
    held = {name: members.group for name, members in find_groups(load_pruned(folders[0])).items()}
    sets = active_sets(told.updates)
    assert set(sets) == {name for name, group in held.items() if group.prunable}
    for name, active in sets.items():
        assert np.flatnonzero(active).tolist() == held[name].active.tolist()
    moves = churn(told.updates)
    assert [one.pruned for one in moves] == [update["pruned"] for update in told.updates]
    assert [one.regrown for one in moves] == [update["regrown"] for update in told.updates]
    assert 0 < sum(one.returned for one in moves) <= sum(one.regrown for one in moves)


def text_of(content: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", content).split())


def test_pages_show_churn_ranks_and_overlap(folders):
    one, several = (text_of(page(read_runs(some))) for some in (folders[:1], folders))
    (told, *_) = read_runs(folders)
    moves = churn(told.updates)
    pruned, returned = sum(m.pruned for m in moves), sum(m.returned for m in moves)
    for words in (
        f"Of {pruned:,} channels pruned, {returned:,} came back at a later update, {returned / pruned:.0%}",
        "rank correlation with the next update, by layer",
        "of the channels pruned, came back later (%)",
    ):
        assert words in one
        assert words in several
    assert "Channels shared" not in one
    assert "Channels shared by runs A, B, C" in several
    assert "Channels shared by each two of A, B, C" in several
    sets = [active_sets(run.updates) for run in read_runs(folders)]
    pairs = [overlaps(sets[a], sets[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    for name in sets[0]:
        mean, chance = (sum(getattr(pair[name], what) for pair in pairs) / 3 for what in ("measured", "chance"))
        assert f"{mean:.2f} ({chance:.2f})" in several
    first, second = (np.concatenate(list(one.values())) for one in sets[:2])
    matrix = several.partition("Channels shared by each two of A, B, C")[2].partition("</svg>")[0]
    assert f"{jaccard(first, second):.2f}".removeprefix("0") in matrix


def test_a_page_of_logs_of_before_has_none_of_it(folders, tmp_path):
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders[:2]]
    for copy in copies:
        file = copy / "updates.jsonl"
        updates = [json.loads(line) for line in file.read_text().splitlines()]
        for update in updates:
            for change in update["groups"].values():
                for key in ("pruned_channels", "regrown_channels", "all_scores"):
                    del change[key]
        file.write_text("".join(json.dumps(update) + "\n" for update in updates))
    text = text_of(page(read_runs(copies)))
    for words in ("Channels shared", "came back", "rank correlation"):
        assert words not in text
    for words in ("channels per update", "pruned", "regrown"):  # the counts are still there
        assert words in text


def test_networks_of_other_widths_are_not_compared(folders, tmp_path):
    with RunFolder(tmp_path / "wider") as held:
        run(CONFIG.changed(width=0.25, epochs=1), held, Watch())
    text = text_of(page(read_runs([*folders[:2], tmp_path / "wider"])))
    assert "Channels shared by runs A, B" in text
    assert "Channels shared by runs A, B, C" not in text
