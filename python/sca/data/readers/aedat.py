"""AEDAT, versions 2.0 and 3.1: the first line tells which (iniVation's "AEDAT file formats").

DVS-CIFAR10 is 2.0, DVS128 Gesture 3.1.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .events import Events, checked, columns, only, records

_END_OF_HEADER = b"#!END-HEADER\r\n"
_PACKET = np.dtype(
    [
        ("type", "<u2"),
        ("source", "<u2"),
        ("size", "<u4"),
        ("time_offset", "<u4"),
        ("overflow", "<u4"),
        ("capacity", "<u4"),
        ("number", "<u4"),
        ("valid", "<u4"),
    ]
)
_POLARITY, _EVENT_BYTES = 1, 8
# Text from # to the end of its line. An event may begin with that byte, too, but bytes of its time are no text.
_COMMENT = re.compile(rb"#[\t\x20-\xff]*\r?\n")
# Of the DVS128: a signal from outside, and no pixel's event.
_SPECIAL = 0x8000


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """An ``.aedat`` file of version 2.0 or 3.1.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    first = content[: content.find(b"\n")].strip()
    if first.startswith(b"#!AER-DAT3."):
        return _version_3(file, content, sensor, unsorted)
    if first.startswith(b"#!AER-DAT2.") or not first.startswith(b"#!AER-DAT"):  # old ones have no such line
        return _version_2(file, content, sensor, unsorted)
    raise ValueError(
        f"{file}: expected AEDAT 2.0 or 3.1, got {first[:20].decode('ascii', 'replace')}; take the data set's official "
        "files, or convert it to .npz with arrays t, x, y, p"
    )


def _version_2(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """32 bits of address and 32 of time in microseconds, the highest byte first. An address of the DVS128 holds, from
    the lowest bit on, the polarity (1 = OFF) and 7 bits each of a coordinate; both count down, and the first runs along
    the columns of the picture as the camera stood (as the authors' MATLAB script and SpikingJelly have it)."""
    start = 0
    while comment := _COMMENT.match(content, start):
        start = comment.end()
    address, t = columns(records(file, content, _EVENT_BYTES, start), ">u4")
    if len(t) and address.max() >> 16:
        first = int((address >> 16 != 0).argmax())
        raise ValueError(
            f"{file}, byte {start + _EVENT_BYTES * first:,}: expected an address of the DVS128, 16 bits, got "
            f"{address[first]:#x}: another camera, or damaged"
        )
    kept, address, t = only(address & _SPECIAL == 0, address, t)
    events = Events(t, 127 - (address >> 8), 127 - (address >> 1 & 0x7F), ~address & 1)
    return checked(events, file, sensor, unsorted, lambda number: f"byte {start + _EVENT_BYTES * kept(number):,}")


def _version_3(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """Packets of events; those of polarity are 8 bytes each, the lowest first: from the lowest bit on valid, polarity
    (1 = ON), 15 bits of y, 15 of x; then the time in microseconds, of which the packet's head holds the bits above the
    31st."""
    start = content.find(_END_OF_HEADER)
    if start < 0:
        raise ValueError(f"{file}: expected a header that ends with #!END-HEADER, got none: truncated, or damaged")
    start += len(_END_OF_HEADER)
    packets, firsts, overflows = [], [], []
    while start < len(content):
        if len(content) - start < _PACKET.itemsize:
            raise ValueError(
                f"{file}, byte {start:,}: expected the head of a packet, got the end of the file: truncated"
            )
        head = np.frombuffer(content, _PACKET, 1, start)[0]
        first = start + _PACKET.itemsize
        length = int(head["capacity"]) * int(head["size"])
        if length > len(content) - first:
            raise ValueError(
                f"{file}, byte {start:,}: expected a packet of {length:,} bytes, got {len(content) - first:,}: "
                "truncated, or damaged"
            )
        if head["type"] == _POLARITY and (length or head["number"]):
            if head["size"] != _EVENT_BYTES or head["number"] > head["capacity"]:
                raise ValueError(
                    f"{file}, byte {start:,}: expected a packet of events of {_EVENT_BYTES} bytes, got "
                    f"{head['number']} of {head['size']} in {head['capacity']}: damaged"
                )
            packets.append(np.frombuffer(content, np.uint8, _EVENT_BYTES * int(head["number"]), first))
            firsts.append(first)
            overflows.append(int(head["overflow"]))
        start = first + length
    if not packets:
        raise ValueError(f"{file}: expected events, got none")
    sizes = [len(packet) // _EVENT_BYTES for packet in packets]
    data, t = columns(np.concatenate(packets).reshape(-1, _EVENT_BYTES), "<u4")
    if any(overflows):
        t = t + (np.repeat(np.array(overflows, np.int64), sizes) << 31)
    kept, data, t = only(data & 1 == 1, data, t)
    ends = np.cumsum(sizes)

    def place(number: int) -> str:
        event = kept(number)
        packet = int(np.searchsorted(ends, event, "right"))
        return f"byte {firsts[packet] + _EVENT_BYTES * (event - int(ends[packet]) + sizes[packet]):,}"

    events = Events(t, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1)
    return checked(events, file, sensor, unsorted, place)
