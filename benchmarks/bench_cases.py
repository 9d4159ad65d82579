"""Take every figure of every case. pytest-benchmark drives the rounds; a round's setup runs the peers before ours."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from .cases import CASES, Case, label
from .measure import ratio, summary
from .results import NOT_MEASURED

FIGURES_TO_TAKE = [
    pytest.param(case, variant, id="-".join([case.id, *map(str, variant.values())]))
    for case in CASES.values()
    for variant in case.variants
]


@pytest.mark.parametrize(("case", "variant"), FIGURES_TO_TAKE)
def test_case(case: Case, variant: dict[str, Any], benchmark, figures, pytestconfig) -> None:
    rounds = pytestconfig.getoption("rounds") or case.rounds
    parties = case.build(**variant)
    if next(iter(parties.values())) is None:
        pytest.skip(f"{case.id}: {NOT_MEASURED}, what it needs is not here")
    present = [name for name, party in parties.items() if party is not None]
    samples: dict[str, list[float]] = defaultdict(list)

    ours, *peers = present
    backends: dict[str, str | None] = {}

    def take(name: str) -> None:
        if name == ours:
            value, backends[name] = case.sample_ours(parties[name])
        else:
            value = case.sample(parties[name])
        samples[name].append(value)

    benchmark.group = case.id
    benchmark.pedantic(
        take,
        args=(ours,),
        setup=lambda: [take(peer) for peer in peers] and None,
        rounds=rounds,
        warmup_rounds=case.warmup,
        iterations=1,
    )
    if benchmark.disabled:
        return

    taken = {name: values[-rounds:] for name, values in samples.items()}
    bars = {bar.peer: bar for bar in case.bars(**variant)}
    upward = {name: name not in bars or bars[name].at_most is None for name in peers}
    ratios = {
        name: ratio(taken[name], taken[ours]) if upward[name] else ratio(taken[ours], taken[name]) for name in peers
    }
    figures[case.id].append(
        {
            "shape": label(variant) or case.work,
            "variant": variant,
            "backend": backends[ours],
            "parties": {name: summary(taken[name]) if name in taken else NOT_MEASURED for name in parties},
            "details": {name: parties[name].details for name in present if hasattr(parties[name], "details")},
            "ratios": ratios,
            "bars": {
                name: {"text": bar.text(), "reached": bar.reached(ratios[name]["median"]) if name in ratios else None}
                for name, bar in bars.items()
            },
        }
    )
