"""Plan and the curves (checklist: schedule met exactly)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca.pruning.schedule import DENSITY_CURVES, REGROW_CURVES, Plan

unit = st.floats(0, 1)


@pytest.mark.parametrize("name", DENSITY_CURVES)
@given(a=unit, b=unit, final=st.floats(0.01, 1))
def test_density_curves_fall_from_one_to_the_final_density(name: str, a: float, b: float, final: float) -> None:
    curve = DENSITY_CURVES[name]
    assert curve(1.0, final) == pytest.approx(final)
    assert curve(0.0, final) == pytest.approx(final if name == "constant" else 1)
    early, late = sorted((a, b))
    assert curve(early, final) >= curve(late, final) - 1e-12
    assert final - 1e-12 <= curve(a, final) <= 1 + 1e-12


def test_cubic_density_is_that_of_zhu_and_gupta() -> None:
    assert DENSITY_CURVES["cubic"](0.5, 0.2) == pytest.approx(0.2 + 0.8 / 8)


def test_regrow_curves_go_to_exactly_zero_or_stay() -> None:
    assert [REGROW_CURVES["cosine"](p, 0.3) for p in (0, 0.5, 1)] == pytest.approx([0.3, 0.15, 0])
    assert REGROW_CURVES["cosine"](1, 0.3) == 0
    assert [REGROW_CURVES["constant"](p, 0.1) for p in (0, 0.5, 1)] == [0.1] * 3


def test_plan_updates_on_its_grid_and_reaches_the_final_density_at_the_last() -> None:
    plan = Plan(start=10, stop=35, interval=10, density=0.25)
    assert [step for step in range(60) if plan.is_update(step)] == [10, 20, 30]
    assert plan.last == 30
    assert [plan.density_at(step) for step in (10, 20, 30)] == pytest.approx([1, 0.25 + 0.75 / 8, 0.25])
    assert [plan.regrows_at(step) for step in (10, 20, 25, 30, 40)] == [True, True, False, False, False]


def test_plan_with_one_update_cuts_to_the_final_density_at_once() -> None:
    plan = Plan(start=5, stop=5, interval=1, density=0.5)
    assert plan.density_at(5) == 0.5
    assert not plan.regrows_at(5)


def test_plan_regrow_count_is_a_share_of_the_active_or_of_all_channels() -> None:
    cosine = Plan(start=1, stop=3, interval=1, regrow_fraction=0.5)
    assert [cosine.regrow_count(step, 40, 100) for step in (1, 2, 3)] == [20, 10, 0]
    constant = Plan(start=1, stop=3, interval=1, regrow_fraction=0.05, regrow_schedule="constant")
    assert [constant.regrow_count(step, 40, 100) for step in (1, 2, 3)] == [5, 5, 5]
    assert constant.regrow_count(2, 3, 100) == 2  # something is always kept for its score


def test_plan_floor_defaults_to_eight_or_a_sixteenth_clipped_to_the_group() -> None:
    plan = Plan(start=1, stop=1, interval=1)
    assert [plan.floor(c) for c in (4, 64, 128, 200, 512)] == [4, 8, 8, 13, 32]
    assert Plan(start=1, stop=1, interval=1, min_channels=0).floor(64) == 1
    assert Plan(start=1, stop=1, interval=1, min_channels=3).floor(2) == 2


@pytest.mark.parametrize(
    ("setting", "value", "error", "words"),
    [
        ("density", 0.0, ValueError, "(0, 1]"),
        ("density", 1.5, ValueError, "1.5"),
        ("regrow_fraction", 1.0, ValueError, "[0, 1)"),
        ("start", 0, ValueError, "at least 1"),
        ("stop", 3, ValueError, "at least 4"),
        ("interval", 0, ValueError, "at least 1"),
        ("interval", 2.0, TypeError, "float"),
        ("min_channels", -1, ValueError, "at least 0"),
        ("round_to", 0, ValueError, "at least 1"),
        ("target", "flops", ValueError, "channels, parameters, synops"),
        ("schedule", "step", ValueError, "constant, cubic, linear, cosine"),
        ("criterion", "wanda", ValueError, "weight_l1"),
        ("allocation", "uniform", ValueError, "global, layer, synops"),
        ("regrow", "momentum", ValueError, "bn_gamma, random"),
        ("regrow_schedule", "linear", ValueError, "cosine, constant"),
        ("regrow_init", "ones", ValueError, "keep, zero, reinit"),
    ],
)
def test_plan_refuses_a_bad_setting_by_name(setting: str, value: object, error: type, words: str) -> None:
    with pytest.raises(error) as caught:
        Plan(**{"start": 4, "stop": 8, "interval": 2, setting: value})
    assert str(caught.value).startswith(f"{setting}:")
    assert words in str(caught.value)
