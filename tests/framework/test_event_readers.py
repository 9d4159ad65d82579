"""sca.data.readers: every official format against a second reader, real bytes, and files that are none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sca.data import readers
from sca.data.readers import Events
from tests.framework import event_files as files

NMNIST = os.environ.get("SCA_KERNELS_NMNIST_DIR")
DVS128, ATIS = (128, 128), (34, 34)
FORMATS = {
    "atis": (".bin", ATIS, files.write_atis, files.read_atis),
    "aedat 2.0": (".aedat", DVS128, files.write_aedat2, files.read_aedat2),
    "aedat 3.1": (".aedat", DVS128, files.write_aedat3, files.read_aedat3),
}


def rows(events: Events) -> list[files.Event]:
    return list(zip(*(values.tolist() for values in events), strict=True))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 2**32 - 1), last=st.sampled_from([1, 9_000, 2**31]))
def test_read_gives_the_events_that_a_second_reader_finds(name, tmp_path_factory, count, seed, last):
    ending, sensor, write, read = FORMATS[name]
    file = tmp_path_factory.mktemp("recordings") / f"recording{ending}"
    events = files.random_events(count, sensor, seed, min(last, 2**23 + 40_000) if name == "atis" else last)
    write(file, events)
    assert read(file) == events
    assert rows(readers.read(file, sensor)) == events


def test_read_adds_what_the_clock_of_nmnist_has_passed(tmp_path):
    """A mark is no event, and stands for 2^13 microseconds in all later times."""
    file = tmp_path / "recording.bin"
    marks = [(2**23 - 1, 1, 2, 1), (2**23 + 5, 3, 4, 0), (2**23 + 2 * 2**13, 5, 6, 1)]
    files.write_atis(file, marks)
    assert len(file.read_bytes()) == 5 * (len(marks) + 3)
    assert rows(readers.read(file, ATIS)) == marks


def test_read_takes_what_stands_for_the_clock_for_an_event_of_a_taller_sensor(tmp_path):
    file = tmp_path / "recording.bin"
    files.write_atis(file, events := [(5, 1, 240, 1), (6, 2, 239, 0)])
    assert rows(readers.read(file, (260, 250))) == events


def test_read_takes_the_overflow_of_a_packet_into_times(tmp_path):
    file = tmp_path / "recording.aedat"
    events = files.random_events(40, DVS128, first=2**31 - 50_000, last=2**31 + 50_000)
    files.write_aedat3(file, events)
    assert rows(readers.read(file, DVS128)) == events
    assert events[-1][0] > 2**31


def test_read_ends_a_header_of_aedat_2_at_the_first_line_that_is_no_comment(tmp_path):
    """A byte of an event may be that of #, and bytes of an event those of a line's end."""
    file = tmp_path / "recording.aedat"
    events = [(0x230D0A, 127 - 0x23, 127 - 0x0D // 2, 0), (0x23232323, 127, 127 - 0x23 // 2, 0)]
    files.write_aedat2(file, events)
    assert file.read_bytes().count(b"#") > files.AEDAT2_HEADER.count(b"#") + 4
    assert rows(readers.read(file, DVS128)) == events
    files.write_aedat2(file, events, header=b"")
    assert rows(readers.read(file, DVS128)) == events


def test_read_leaves_out_what_no_pixel_of_a_dvs128_sent(tmp_path):
    file = tmp_path / "recording.aedat"
    events = files.random_events(5, DVS128)
    files.write_aedat2(file, events)
    with open(file, "ab") as stream:
        stream.write(struct.pack(">II", 0x8000, 200_000))
    assert rows(readers.read(file, DVS128)) == events


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".mat"])
def test_read_takes_arrays_of_other_programs(ending, tmp_path):
    pytest.importorskip({".h5": "h5py", ".mat": "scipy"}.get(ending, "numpy"))
    file = tmp_path / f"recording{ending}"
    events = files.random_events(50, (260, 346))
    files.write_arrays(file, events)
    assert rows(readers.read(file, (260, 346))) == events


def test_read_takes_plain_columns_in_the_order_that_is_told(tmp_path):
    events = files.random_events(20, DVS128)
    held = files.columns(events)
    np.save(tmp_path / "recording.npy", np.stack([held[name] for name in "xytp"], 1))
    assert rows(readers.read(tmp_path / "recording.npy", DVS128, columns="xytp")) == events


def test_read_takes_polarities_of_minus_one_and_one(tmp_path):
    events = files.random_events(20, DVS128)
    held = files.columns(events)
    np.savez(tmp_path / "recording.npz", **{**held, "p": 2 * held["p"] - 1})
    assert rows(readers.read(tmp_path / "recording.npz", DVS128)) == events


def test_read_sorts_what_runs_backwards_where_that_is_wanted(tmp_path):
    file = tmp_path / "recording.bin"
    late = [(30, 1, 1, 1), (10, 2, 2, 0), (30, 3, 3, 1), (10, 4, 4, 0)]
    files.write_atis(file, late)
    assert rows(readers.read(file, ATIS, unsorted="sort")) == [late[1], late[3], late[0], late[2]]


def spoiled(name: str, folder: Path) -> tuple[Path, tuple[int, int], str]:
    """A file that is damaged so, its sensor, and what the message says of it."""
    kind, _, damage = name.partition(": ")
    ending, sensor, write, _ = FORMATS[kind]
    file = folder / f"recording{ending}"
    events = files.random_events(20, sensor)
    write(file, events)
    content = file.read_bytes()
    header = {"aedat 2.0": len(files.AEDAT2_HEADER), "aedat 3.1": len(files.AEDAT3_HEADER)}.get(kind, 0)
    if damage == "one byte less":
        file.write_bytes(content[:-1])
        return file, sensor, "byte .*(has|got) "
    if damage == "one byte more":
        file.write_bytes(content + b"\x00")
        return file, sensor, "byte .*(has 1|end of the file)"
    if damage == "header alone":
        file.write_bytes(content[:header])
        return file, sensor, "expected events, got none"
    if damage == "half a header":
        file.write_bytes(content[: header - 5])
        return file, sensor, "header|records of 8 bytes"
    if damage == "another sensor":
        return file, (16, 16), r"byte \d+.*expected [xy] from 0 to 15"
    if damage == "backwards":
        write(file, [(500, 1, 1, 1), (400, 2, 2, 1)])
        return file, sensor, r"byte [\d,]+: times run backwards: 500 µs, then 400 µs.*--unsorted sort"
    if damage == "its clock begins anew":
        write(file, [(2**32 - 5, 1, 1, 1), (3, 2, 2, 1)])
        return file, sensor, "its clock begins anew: 4,294,967,291 µs, then 3 µs"
    if damage == "another camera":
        file.write_bytes(content[:header] + struct.pack(">II", 1 << 22, 0))
        return file, sensor, f"byte {header}: expected an address of the DVS128, 16 bits, got 0x400000"
    if damage == "version 4":
        file.write_bytes(b"#!AER-DAT4.0\r\n" + content)
        return file, sensor, "expected AEDAT 2.0 or 3.1, got #!AER-DAT4.0"
    if damage == "a packet beyond the end":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 10**6, 1, 1) + b"\x00" * 8)
        return file, sensor, f"byte {header}: expected a packet of 8,000,000 bytes, got 8"
    if damage == "more events than room":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 1, 2, 2) + b"\x00" * 8)
        return file, sensor, f"byte {header}: expected a packet of events of 8 bytes, got 2 of 8 in 1"
    file.write_bytes(b"")
    return file, sensor, "expected events, got none|header"


EVERY = ("one byte less", "one byte more", "another sensor", "backwards", "empty")
DAMAGES = [f"{kind}: {damage}" for kind in FORMATS for damage in EVERY]
DAMAGES += [f"aedat 2.0: {one}" for one in ("header alone", "its clock begins anew", "another camera", "version 4")]
DAMAGES += [f"aedat 3.1: {one}" for one in ("header alone", "half a header", "a packet beyond the end")]
DAMAGES += ["aedat 3.1: more events than room"]


@pytest.mark.parametrize("name", DAMAGES)
def test_read_names_the_file_and_the_place_of_a_damage(name, tmp_path):
    file, sensor, message = spoiled(name, tmp_path)
    with pytest.raises(ValueError, match=rf"^{file}.*({message})"):
        readers.read(file, sensor)


GOOD = {"t": [1, 2, 3], "x": [1, 1, 1], "y": [0, 0, 0], "p": [0, 1, 1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": [1, 3, 2]}, "event 2: times run backwards"),
        ({"x": [1, 1, 128]}, "event 2: expected x from 0 to 127, the sensor's, got 128"),
        ({"y": [-1, 0, 0]}, "event 0: expected y from 0 to 127"),
        ({"p": [0, 1, 2]}, "event 2: expected polarities 0 and 1, or -1 and 1, got 2"),
        ({"t": [0.1, 0.2, 0.3]}, "event 0: expected whole numbers t, got 0.1; times are microseconds"),
        ({"t": [np.nan, 2, 3]}, "event 0: expected whole numbers t"),
        ({"t": [1, 2]}, "of one length each"),
        ({"t": [[1, 2, 3]]}, "of one length each"),
        ({"p": ["a", "b", "c"]}, "expected numbers t, x, y, p"),
        ({"t": np.array([1, None, 2])}, "allow_pickle"),
        ({name: [] for name in "txyp"}, "expected events, got none"),
        ({"t": None}, "got arrays x, y, p"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_read_names_what_is_wrong_with_arrays(changes, message, tmp_path):
    file = tmp_path / "recording.npz"
    held = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    np.savez(file, **{name: np.asarray(value) for name, value in held.items()})
    with pytest.raises(ValueError, match=rf"^{file}.*{message}"):
        readers.read(file, DVS128)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".mat"])
@pytest.mark.parametrize("content", [b"", b"not what it says", bytes(1000)], ids=["empty", "text", "zeros"])
def test_read_names_an_array_file_that_is_none(ending, content, tmp_path):
    pytest.importorskip({".h5": "h5py", ".mat": "scipy"}.get(ending, "numpy"))
    file = tmp_path / f"recording{ending}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file}: expected"):
        readers.read(file, DVS128)


def test_read_names_a_format_that_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"recording.txt: expected a recording that ends in .bin, .aedat, .mat"):
        readers.read(tmp_path / "recording.txt", DVS128)


@pytest.mark.skipif(NMNIST is None, reason="SCA_KERNELS_NMNIST_DIR is not set")
def test_read_reads_real_recordings_as_the_second_reader():
    found = {split: sorted(Path(NMNIST, split).glob("*/*.bin")) for split in ("Train", "Test")}
    assert {split: len(listed) for split, listed in found.items()} == {"Train": 905, "Test": 95}
    every = [readers.read(file, ATIS) for listed in found.values() for file in listed]
    assert sum(len(events.t) for events in every) == 4_133_231
    assert all((np.diff(events.t) >= 0).all() and events.x.max() < 34 and events.y.max() < 34 for events in every)
    for file in found["Test"][::12]:
        assert rows(readers.read(file, ATIS)) == files.read_atis(file)
