"""The picture of the rooms is that of the house as it stands."""

from __future__ import annotations

import subprocess
import sys

from .tree import ROOT


def test_the_picture_of_the_rooms_is_up_to_date(tmp_path):
    drawn = tmp_path / "rooms.svg"
    subprocess.run([sys.executable, str(ROOT / ".ci" / "rooms"), str(drawn)], check=True)
    assert drawn.read_text() == (ROOT / "docs" / "rooms.svg").read_text(), "run: .ci/rooms docs/rooms.svg"
