"""sca.data.readers: every official format against a second reader, real bytes, and files that are none."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
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


def in_order(events: list[files.Event]) -> list[files.Event]:
    """By their times; those of one time stay as they stood."""
    return sorted(events, key=lambda event: event[0])


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


@st.composite
def atis_bytes(draw: st.DrawFn) -> bytes:
    """Records of any times, and marks of the clock anywhere, which may hold anything beside."""
    side = st.integers(0, 33)
    record = st.tuples(side, st.one_of(side, st.just(240)), *[st.integers(0, 255)] * 3)
    return b"".join(map(bytes, draw(st.lists(record, min_size=1, max_size=40))))


@st.composite
def aedat2_bytes(draw: st.DrawFn) -> bytes:
    """A header of any text, or none; any addresses of a DVS128, and any times."""
    text = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12)
    lines = draw(st.lists(text, max_size=3))
    header = ("#!AER-DAT2.0\r\n" + "".join(f"#{line}\r\n" for line in lines)).encode("latin-1")
    events = draw(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=40))
    return draw(st.sampled_from([header, b""])) + b"".join(struct.pack(">II", *event) for event in events)


@st.composite
def aedat3_bytes(draw: st.DrawFn) -> bytes:
    """Packets of polarity events, some of which are not valid, with room for more; others, of any size, between."""
    event = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 127), st.integers(0, 127), st.integers(0, 1))
    content, overflow = files.AEDAT3_HEADER, draw(st.integers(0, 2**20))
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            size, capacity = draw(st.integers(0, 40)), draw(st.integers(0, 3))
            kind = draw(st.sampled_from([0, 2, 3, 5, 2**16 - 1]))
            content += struct.pack("<HHIIIIII", kind, 1, size, 4, 9, capacity, capacity, 0) + b"\x01" * size * capacity
            continue
        events = draw(st.lists(event, max_size=8))
        invalid = draw(st.sets(st.integers(0, 7))) & set(range(len(events)))
        content += files.aedat3_packet(events, draw(st.integers(0, 2)), overflow, invalid)
    return content


ANY_BYTES = {"atis": atis_bytes(), "aedat 2.0": aedat2_bytes(), "aedat 3.1": aedat3_bytes()}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_read_finds_in_any_bytes_what_a_second_reader_finds(name, tmp_path_factory, data):
    ending, sensor, _, read = FORMATS[name]
    file = tmp_path_factory.mktemp("recordings") / f"recording{ending}"
    file.write_bytes(data.draw(ANY_BYTES[name]))
    expected = in_order(read(file))
    if not expected:
        with pytest.raises(ValueError, match=f"^{file}: expected events, got none"):
            readers.read(file, sensor)
        return
    assert rows(readers.read(file, sensor, unsorted="sort")) == expected


def by_spikingjelly(name: str, file: Path) -> list[files.Event]:
    utils = files.spikingjelly("utils")
    if name == "aedat 2.0":
        cifar10_dvs = files.spikingjelly("cifar10_dvs")
        read = getattr(cifar10_dvs, "_load_origin_data", None) or cifar10_dvs.load_origin_data
    else:
        read = {"atis": utils.load_ATIS_bin, "aedat 3.1": utils.load_aedat_v3}[name]
    found = read(file)
    return rows(Events(*(np.asarray(found[key]).astype(np.int64) for key in "txyp")))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMATS)
def test_read_gives_the_events_that_spikingjelly_finds(name, seed, tmp_path):
    """In what it can read: it takes a mark of N-MNIST's clock for an event, and looks neither at the valid bit of
    AEDAT 3.1 nor at the number of events in a packet."""
    ending, sensor, write, _ = FORMATS[name]
    file = tmp_path / f"recording{ending}"
    events = files.random_events(500, sensor, seed, last=2**23)
    if name == "aedat 3.1":
        signal = struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 2, 2, 2) + bytes(16)
        late = [(t + (1 << 31), x, y, p) for t, x, y, p in events[400:]]
        file.write_bytes(
            files.AEDAT3_HEADER
            + files.aedat3_packet(events[:123])
            + signal
            + files.aedat3_packet(events[123:400])
            + files.aedat3_packet(events[400:], overflow=1)
        )
        events = events[:400] + late
    else:
        write(file, events)
    assert by_spikingjelly(name, file) == events
    assert rows(readers.read(file, sensor)) == events


def test_read_takes_no_mark_for_an_event_as_spikingjelly_does(tmp_path):
    file = tmp_path / "recording.bin"
    file.write_bytes(struct.pack("15B", 1, 2, 0x80, 0, 7, 0, 240, 0, 0, 9, 3, 4, 0, 0, 11))
    assert by_spikingjelly("atis", file) == [(7, 1, 2, 1), (9, 0, 240, 0), (11, 3, 4, 0)]
    assert rows(readers.read(file, ATIS)) == files.read_atis(file) == [(7, 1, 2, 1), (11 + 2**13, 3, 4, 0)]


def test_read_takes_a_row_of_240_for_a_row_where_the_camera_has_as_many(tmp_path):
    file = tmp_path / "recording.bin"
    file.write_bytes(struct.pack("10B", 1, 240, 0x80, 0, 7, 3, 4, 0, 0, 11))
    assert rows(readers.read(file, (260, 250))) == [(7, 1, 240, 1), (11, 3, 4, 0)]


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


def test_read_sorts_no_clock_that_begins_anew(tmp_path):
    file = tmp_path / "recording.aedat"
    files.write_aedat2(file, [(9, 1, 1, 1), (7, 1, 1, 1), (2**32 - 5, 1, 1, 1), (3, 2, 2, 1)])
    with pytest.raises(ValueError, match=r"its clock begins anew: 4,294,967,291 µs, then 3 µs"):
        readers.read(file, DVS128, unsorted="sort")


def test_read_sorts_what_runs_backwards_where_that_is_wanted(tmp_path):
    file = tmp_path / "recording.bin"
    late = [(30, 1, 1, 1), (10, 2, 2, 0), (30, 3, 3, 1), (10, 4, 4, 0)]
    files.write_atis(file, late)
    assert rows(readers.read(file, ATIS, unsorted="sort")) == [late[1], late[3], late[0], late[2]]


@pytest.mark.parametrize("name", FORMATS)
def test_read_sorts_without_losing_events(name, tmp_path):
    ending, sensor, write, read = FORMATS[name]
    file = tmp_path / f"recording{ending}"
    shuffled = files.random_events(200, sensor, last=50)
    np.random.default_rng(1).shuffle(shuffled)
    write(file, shuffled)
    assert rows(readers.read(file, sensor, unsorted="sort")) == in_order(read(file)) == in_order(shuffled)


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
    if damage == "events without room":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 0, 5, 5) + content[header:])
        return file, sensor, f"byte {header}: expected a packet of events of 8 bytes, got 5 of 8 in 0"
    if damage == "events of another size":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 1, 1, 12, 4, 0, 1, 1, 1) + bytes(12))
        return file, sensor, f"byte {header}: expected a packet of events of 8 bytes, got 1 of 12 in 1"
    if damage == "invalid events alone":
        file.write_bytes(content[:header] + files.aedat3_packet([(1, 1, 1, 1)], invalid=[0]))
        return file, sensor, "expected events, got none"
    if damage == "packets of other types alone":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8))
        return file, sensor, "expected events, got none"
    if damage == "version 1":
        file.write_bytes(b"#!AER-DAT1.0\r\n" + content)
        return file, sensor, "expected AEDAT 2.0 or 3.1, got #!AER-DAT1.0"
    if damage == "another format":
        files.write_atis(file, files.random_events(64, ATIS))
        return file, sensor, "byte 0: expected an address of the DVS128"
    if damage == "more events than room":
        file.write_bytes(content[:header] + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 1, 2, 2) + b"\x00" * 8)
        return file, sensor, f"byte {header}: expected a packet of events of 8 bytes, got 2 of 8 in 1"
    file.write_bytes(b"")
    return file, sensor, "expected events, got none|header"


EVERY = ("one byte less", "one byte more", "another sensor", "backwards", "empty")
DAMAGES = [f"{kind}: {damage}" for kind in FORMATS for damage in EVERY]
DAMAGES += [f"aedat 2.0: {one}" for one in ("header alone", "its clock begins anew", "another camera", "version 4")]
DAMAGES += [f"aedat 3.1: {one}" for one in ("header alone", "half a header", "a packet beyond the end")]
DAMAGES += [f"aedat 2.0: {one}" for one in ("version 1", "another format")]
DAMAGES += [f"aedat 3.1: {one}" for one in ("more events than room", "events without room", "events of another size")]
DAMAGES += [f"aedat 3.1: {one}" for one in ("invalid events alone", "packets of other types alone", "version 4")]


@pytest.mark.parametrize("name", DAMAGES)
def test_read_names_the_file_and_the_place_of_a_damage(name, tmp_path):
    file, sensor, message = spoiled(name, tmp_path)
    with pytest.raises(ValueError, match=rf"^{file}.*({message})"):
        readers.read(file, sensor)


@pytest.mark.parametrize("name", FORMATS)
def test_read_of_a_part_gives_the_first_events_or_names_the_file(name, tmp_path):
    ending, sensor, write, _ = FORMATS[name]
    file = tmp_path / f"recording{ending}"
    events = files.random_events(20, sensor)
    write(file, events)
    content = file.read_bytes()
    found = [outcome(file, sensor, content[:length]) for length in range(len(content))]
    read = [rows(events) for events in found if isinstance(events, Events)]
    assert 0 < len(read) < len(found)
    assert all(one == events[: len(one)] for one in read)


def outcome(file: Path, sensor: tuple[int, int], content: bytes) -> Events | None:
    """The events, or None where the error names the file."""
    try:
        return readers.read(file, sensor, content=content)
    except ValueError as error:
        if not str(error).startswith(str(file)):
            raise
        return None


def spoil(content: bytes, draw: random.Random) -> bytes:
    """Cut, changed, or with bytes put in or left out somewhere."""
    spoilt, place = bytearray(content), draw.randrange(len(content))
    kind = draw.choice(["cut", "change", "put in", "leave out"])
    if kind == "cut":
        return bytes(spoilt[:place])
    if kind == "change":
        spoilt[place] = draw.randrange(256)
    elif kind == "put in":
        spoilt[place:place] = draw.randbytes(draw.randrange(1, 9))
    else:
        del spoilt[place : place + draw.randrange(1, 40)]
    return bytes(spoilt)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*FORMATS, ".npy", ".npz", ".h5", ".mat"])
def test_read_gives_events_of_the_sensor_or_names_the_file(name, tmp_path):
    """Whatever a file holds; nothing stays open."""
    ending, sensor, write, _ = FORMATS.get(name, (name, DVS128, files.write_arrays, None))
    if ending in (".h5", ".mat"):
        package = {".h5": "h5py", ".mat": "scipy"}[ending]
        pytest.importorskip(package, reason=f"{package}, which writes the file, is not installed")
    file = tmp_path / f"recording{ending}"
    write(file, files.random_events(12, sensor))
    content, draw = file.read_bytes(), random.Random(0)
    held = open_files()
    found = [outcome(file, sensor, spoil(content, draw)) for _ in range(250)]
    assert open_files() == held
    read = [events for events in found if events is not None]
    assert len(read) < 200
    for events in read:
        assert {len(values) for values in events} == {len(events.t)}
        assert len(events.t) > 0
        assert (np.diff(events.t.astype(np.int64)) >= 0).all()
        for values, side in ((events.x, sensor[1]), (events.y, sensor[0]), (events.p, 2)):
            assert values.min() >= 0
            assert values.max() < side


def open_files() -> set[str]:
    """What this process has open; nothing where the system doesn't tell."""
    listed = Path("/proc/self/fd")
    return {os.path.realpath(entry) for entry in listed.iterdir()} if listed.is_dir() else set()


def read_apart(file: Path) -> str:
    """The class and text of the error that reading it in another process ends with; nothing else may end it."""
    code = (
        "import sys; from pathlib import Path; from sca.data import readers\n"
        "try: readers.read(Path(sys.argv[1]), (128, 128))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr}"
    return done.stdout


def test_read_names_a_matlab_file_of_an_unknown_type_of_numbers(tmp_path):
    """SciPy takes the type of an array's numbers, a byte of the file, for a place in a table that ends before."""
    pytest.importorskip("scipy", reason="SciPy is not installed")
    file = tmp_path / "recording.mat"
    files.write_arrays(file, files.random_events(12, DVS128))
    content = bytearray(file.read_bytes())
    assert content[176:180] == struct.pack("<I", 9)  # miDOUBLE
    content[176] = 255
    file.write_bytes(content)
    assert f"ValueError {file}: expected" in read_apart(file)


def test_read_names_a_group_that_holds_itself(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = tmp_path / "recording.h5"
    with h5py.File(file, "w") as stream:
        stream["events"] = h5py.SoftLink("/")
    assert f"ValueError {file}: expected arrays or fields t, x, y and p" in read_apart(file)


@pytest.mark.parametrize("case", ["two groups", "another group", "a link to nowhere", "text", "a number each"])
def test_read_names_an_hdf5_file_without_events(case, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = tmp_path / "recording.h5"
    with h5py.File(file, "w") as stream:
        if case == "a link to nowhere":
            stream["events"] = h5py.SoftLink("/nowhere")
        elif case == "another group":
            stream["events/labels"] = [1, 2, 3]
        else:
            for place, (name, values) in ((p, item) for p in ("left", "right") for item in GOOD.items()):
                if place == "left" or case == "two groups":
                    held = {"text": ["a", "b", "c"], "a number each": values[0]}.get(case, values)
                    stream[f"{place}/{name}"] = held
    with pytest.raises(ValueError, match=f"^{file}.*expected (arrays or fields|numbers) t, x, y"):
        readers.read(file, DVS128)


@pytest.mark.parametrize(
    "held",
    [{}, {"out2": np.ones((5, 4))}, {"out1": np.ones((4, 5))}, {"out1": "text"}, {"out1": {"t": [1], "x": [1]}}],
    ids=["nothing", "another name", "rows for columns", "text", "a struct"],
)
def test_read_names_a_matlab_file_without_events(held, tmp_path):
    io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    file = tmp_path / "recording.mat"
    io.savemat(file, held)
    with pytest.raises(ValueError, match=rf"^{file}: expected an array out1 of numbers \[N, 4\]"):
        readers.read(file, DVS128)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("stored", list("bBhHiIfdqQ"))
def test_read_takes_a_matlab_file_as_matlab_writes_it(stored, order, tmp_path):
    """Which stores numbers of the class double in the smallest type that holds them all."""
    file = tmp_path / "recording.mat"
    events = files.random_events(30, (100, 100), last=100)
    files.write_mat(file, files.mat_matrix(events, stored, order=order), order=order)
    assert rows(readers.read(file, (100, 100))) == events


@pytest.mark.parametrize("count", [1, 2, 3, 30])
@pytest.mark.parametrize("stored", ["B", "H", "d"])
def test_read_takes_a_matlab_file_of_few_events(count, stored, tmp_path):
    """One event of 4 bytes is stored beside its type."""
    file = tmp_path / "recording.mat"
    events = files.random_events(count, (100, 100), last=100)
    files.write_mat(file, files.mat_matrix(events, stored))
    assert rows(readers.read(file, (100, 100))) == events


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_read_finds_the_array_among_others_in_a_matlab_file(compressed, tmp_path):
    io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    file = tmp_path / "recording.mat"
    events = files.random_events(300, DVS128)
    others = {
        "a": "text", "b": {"out1": np.ones((2, 4))}, "c": np.array([[1 + 2j]]), "d": sparse.csc_matrix(np.eye(3)),
        "e": np.array([[1, "cell"]], object), "f": np.zeros((0, 0)), "g": np.array([[True]]), "out": 1, "out11": 2,
    }  # fmt: skip
    io.savemat(file, {**others, "out1": np.array(events, np.float64), "z": np.ones((2, 4))}, do_compression=compressed)
    assert rows(readers.read(file, DVS128)) == events


def test_read_takes_compressed_arrays_side_by_side_in_a_matlab_file(tmp_path):
    """These alone are not filled up to a multiple of 8 bytes."""
    file = tmp_path / "recording.mat"
    events = files.random_events(50, DVS128)
    packed = [zlib.compress(files.mat_matrix(events, name=name)) for name in ("first", "out1")]
    files.write_mat(file, *(struct.pack("<II", 15, len(content)) + content for content in packed))
    assert any(len(content) % 8 for content in packed)
    assert rows(readers.read(file, DVS128)) == events


def test_read_names_a_matlab_file_that_is_compressed_a_thousand_times(tmp_path):
    file = tmp_path / "recording.mat"
    content = files.mat_matrix([(1, 2, 3, 1)])
    for _ in range(1500):
        packed = zlib.compress(content, 0)
        content = struct.pack("<II", 15, len(packed)) + packed
    files.write_mat(file, content)
    with pytest.raises(ValueError, match=f"^{file}: expected"):
        readers.read(file, DVS128)


def test_read_names_a_matlab_file_that_is_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = tmp_path / "recording.mat"
    with h5py.File(file, "w", userblock_size=512) as stream:
        stream["out1"] = np.ones((4, 5))
    content = file.read_bytes()
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    file.write_bytes(head + content[128:])
    with pytest.raises(ValueError, match=f"^{file}: expected .*7.3"):
        readers.read(file, DVS128)


@pytest.mark.parametrize(
    "elements",
    [
        [],
        [files.mat_matrix([], "d")],
        [files.mat_matrix([(1, 2, 3)])],
        [files.mat_matrix([(1, 2, 3, 1)])[:-1]],
        [files.mat_matrix([(1, 2, 3, 1)], array_class=4)],
        [files.mat_matrix([(1, 2, 3, 1)], array_class=99)],
        [struct.pack("<II", 14, 2**32 - 1)],
        [struct.pack("<II", 15, 8) + b"no zlib."],
        [files.mat_element(14, b"")],
        [files.mat_element(14, bytes(64))],
        [files.mat_matrix([(1, 2, 3, 1)]).replace(struct.pack("<ii", 1, 4), struct.pack("<ii", -1, -4))],
        [files.mat_matrix([(1, 2, 3, 1)]).replace(struct.pack("<ii", 1, 4), struct.pack("<ii", 2**31 - 1, 4))],
        [files.mat_matrix([(1, 2, 3, 1)]).replace(struct.pack("<II", 6, 0), struct.pack("<II", 6 | 0x800, 0))],
    ],
    ids=[
        *("nothing", "no event", "three columns", "cut", "text", "an unknown class", "a length beyond the end"),
        *("damaged compression", "an empty array", "zeros", "sides below 0", "sides beyond the end", "complex"),
    ],
)
def test_read_names_what_is_wrong_in_a_matlab_file(elements, tmp_path):
    file = tmp_path / "recording.mat"
    files.write_mat(file, *elements)
    with pytest.raises(ValueError, match=f"^{file}: expected"):
        readers.read(file, DVS128)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "u2", "i4"])
def test_read_finds_the_array_among_others_of_a_matlab_file(compressed, kind, tmp_path):
    io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    file, events = tmp_path / "recording.mat", files.random_events(33, DVS128, last=1000)
    others = {"a": "text", "out": np.ones((3, 5)), "z": 1 + 2j, "list": {"t": [1, 2]}}
    io.savemat(file, {**others, "out1": np.array(events).astype(kind), "zz": 5}, do_compression=compressed)
    assert rows(readers.read(file, DVS128)) == events


def test_read_names_the_row_of_a_matlab_file(tmp_path):
    io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    file = tmp_path / "recording.mat"
    io.savemat(file, {"out1": np.array([[5, 1, 2, 1], [6, 1, 128, 0]], np.float64)})
    with pytest.raises(ValueError, match=f"^{file}, row 1: expected y from 0 to 127, the sensor's, got 128"):
        readers.read(file, DVS128)


def test_read_refuses_objects(tmp_path):
    file = tmp_path / "recording.npy"
    np.save(file, np.array([[1, 2, 3, None]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=f"^{file}: expected arrays .*allow_pickle"):
        readers.read(file, DVS128)


@pytest.mark.parametrize("kind", ["u1", "i2", ">i4", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_read_takes_numbers_of_any_type(kind, order, tmp_path):
    events = files.random_events(30, (100, 100), last=100)
    np.save(tmp_path / "recording.npy", np.array(events).astype(kind, order=order))
    assert rows(readers.read(tmp_path / "recording.npy", (100, 100))) == events


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "times",
    [[np.inf] * 3, [1.0, 2.0, np.inf], [-np.inf, 1.0, 2.0], [1e300] * 3, np.array([2**63] * 3, np.uint64)],
    ids=["infinite", "infinite at last", "infinite at first", "1e300", "2^63"],
)
def test_read_names_times_that_no_clock_shows(times, tmp_path):
    file = tmp_path / "recording.npz"
    np.savez(file, **{**GOOD, "t": times})
    with pytest.raises(ValueError, match=rf"^{file}, event \d: expected whole numbers t"):
        readers.read(file, DVS128)


@pytest.mark.filterwarnings("error")
def test_read_names_coordinates_that_are_infinite(tmp_path):
    file = tmp_path / "recording.npz"
    np.savez(file, **{**GOOD, "x": [1, np.inf, 1]})
    with pytest.raises(ValueError, match=f"^{file}, event 1: expected .*got inf"):
        readers.read(file, DVS128)


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
