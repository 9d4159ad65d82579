"""Numbers packed into text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sca.packed import pack, unpack


def test_pack_and_unpack_keep_what_float32_keeps():
    values = [0.0, -1.5, 3e-30, math.inf, *np.random.default_rng(0).random(1000)]
    np.testing.assert_array_equal(unpack(pack(values)), np.asarray(values, np.float32))
    assert np.isnan(unpack(pack([math.nan]))).all()
    assert unpack(pack([])).size == 0


@pytest.mark.parametrize("text", ["", "%%%", "AAAA", pack([1.0, 2.0])[:-4], pack(range(9)) + "AAAA", None, 3])
def test_unpack_refuses_anything_else(text):
    with pytest.raises(ValueError, match="packed numbers"):
        unpack(text)


def test_unpack_does_not_inflate_without_bound():
    with pytest.raises(ValueError, match="at most 100"):
        unpack(pack([0.0] * 101), limit=100)
    assert unpack(pack([0.0] * 100), limit=100).size == 100
