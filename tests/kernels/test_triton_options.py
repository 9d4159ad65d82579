"""What a neuron may have beyond the defaults, by the Triton kernels: interpreted, against the reference, and compiled.
Each in a process of its own, with TRITON_INTERPRET=1 and without."""

from __future__ import annotations

import pytest

from sca_kernels.backends import registry
from sca_kernels.neurons import NEURONS
from sca_kernels.testing import poisoned_memory
from tests.kernels.problems import OPTIONS, assert_agrees, problem_of, run

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from sca_kernels import triton_kernels  # noqa: E402  after importorskip
from tests.kernels.compilation import compile_only, tile_loop  # noqa: E402

BACKEND, REFERENCE = registry()["triton"], registry()["reference"]
SHAPES = [
    ((2, 3, 3, 6, 6), False),  # planes
    ((11, 2, 2, 6, 6), False),  # in chunks of steps
    ((3, 3, 8, 2, 2), False),  # folded
    ((3, 3, 5, 3, 2), True),
    ((9, 2, 8, 2, 2), True),  # in chunks of steps
]
EACH = pytest.mark.parametrize(("turn", "option"), list(enumerate(OPTIONS)), ids=OPTIONS)
"""Each option, and its number: what it is tried with takes turns."""


@pytest.mark.interpreter
@pytest.mark.skipif(not triton_kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1 when Python starts")
@EACH
def test_options_agree_with_the_reference(turn, option):
    for at in (turn, turn + 2):
        given = problem_of(option, *SHAPES[at % len(SHAPES)], repeated=turn % 4 == 1, expanded=turn % 2 == 0)
        with poisoned_memory():
            ours = run(BACKEND, **given)
        assert_agrees(ours, run(REFERENCE, **given), bound=1e-5)


@pytest.mark.compile_only
@pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets here, it does not compile")
@EACH
def test_options_compile_and_fuse_nothing_in_front_of_the_threshold(monkeypatch, tmp_path, turn, option):
    kernels = compile_only(monkeypatch, (80, 90, 100)[turn % 3])
    given = problem_of(option, *SHAPES[turn % len(SHAPES)], repeated=turn % 4 == 1)
    x, steps, config, v_init = (given[name] for name in ("x", "time_steps", "config", "v_init"))
    threshold, grad_h = given.get("threshold"), given["grad_h"]
    rate = x.new_ones(x.shape[2]) if NEURONS[config.neuron].learnable_leak else None
    BACKEND.neuron_forward(x, steps, config, rate, rate, rate, v_init, None, True, None, threshold, True)
    BACKEND.neuron_backward(given["grad"], None, x, steps, config, rate, rate, rate, v_init, threshold, grad_h)
    forward, _ = kernels
    assert "fma.rn.f32" not in forward.asm["ptx"]
    assert config.divides_by_tau or not tile_loop(forward, tmp_path)["FFMA"]  # of which a division is made
