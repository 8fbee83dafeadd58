"""Snapshots: what is written against PyTorch's own functions for them, what is read against the original, hostile files."""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.history import replay_history
from memcalc.allocator.replay import replay
from memcalc.allocator.settings import parse_settings
from memcalc.allocator.snapshot import export_snapshot, read_snapshot, rows_of, settings_of, tape_of
from memcalc.errors import InputError
from memcalc.tape.events import Alloc, Buffer, Free, Mark
from tests.allocator.test_replay import TAPE

VISUALISER = {
    "APPENDS", "BINGET", "BININT", "BININT1", "BININT2", "EMPTY_DICT", "EMPTY_LIST", "FRAME", "LONG1", "LONG_BINGET", "MARK",
    "MEMOIZE", "PROTO", "SETITEMS", "SHORT_BINUNICODE", "STOP", "TUPLE2", "APPEND", "NEWFALSE", "BINPUT", "BINUNICODE",
    "EMPTY_TUPLE", "NEWTRUE", "NONE", "BINFLOAT", "TUPLE", "TUPLE1", "TUPLE3", "SETITEM",
}  # fmt: skip
"""Opcodes that pytorch torch/utils/viz/MemoryViz.js:unpickle reads."""


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "max_split_size_mb:20"])
def test_pytorch_reads_what_is_written(tmp_path, text):
    """PyTorch's own summary, trace and plots accept the file, and its reserved and allocated sums are the replay's."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    path = tmp_path / "snapshot.pickle"
    played = replay(TAPE, text)
    export_snapshot(played, path)
    data = pickle.loads(path.read_bytes())
    assert sum(segment["total_size"] for segment in data["segments"]) == played.series["reserved"][-1]
    assert sum(segment["allocated_size"] for segment in data["segments"]) == played.series["allocated"][-1]
    assert sum(segment["requested_size"] for segment in data["segments"]) == played.series["requested"][-1]
    assert f"segments: {len(data['segments'])}" in viz.segsum(data)
    assert f"{len(data['device_traces'][0])} entries" in viz.trace(data)
    for plot in (viz.trace_plot, viz.segment_plot):
        assert "snapshot.pickle" in plot(data)
    lines = []
    viz.memory(data, format_flamegraph=lambda text: lines.extend(text.splitlines()) or "")
    assert any("aten.addmm.default" in line and "layers.0.mlp" in line for line in lines)


def test_the_visualiser_knows_every_opcode(tmp_path):
    """The file has only what the visualiser's own unpickler reads, and an ``unknown`` category, without which it stumbles."""
    path = tmp_path / "snapshot.pickle"
    export_snapshot(TAPE, path)
    opcodes = list(pickletools.genops(path.read_bytes()))
    assert {opcode.name for opcode, *_ in opcodes} <= VISUALISER
    assert opcodes[0][1] == 4
    assert "unknown" in {entry["category"] for entry in read_snapshot(path)["device_traces"][0]}


@pytest.mark.parametrize("text", ["", "expandable_segments:True"])
def test_a_written_snapshot_replays_as_a_history(tmp_path, text):
    """Read back, its events replay without a difference, and its tape has the peaks of the first."""
    path = tmp_path / "snapshot.pickle"
    export_snapshot(TAPE, path, text)
    data = read_snapshot(path)
    assert settings_of(data) == parse_settings(text)
    again = replay_history(rows_of(data), settings_of(data))
    first = replay(TAPE, text)
    assert again.difference is None
    assert again.matched == len(rows_of(data))
    second = replay(tape_of(data), text)
    for measure in ("requested", "allocated", "reserved"):
        assert second.peak(measure).bytes == first.peak(measure).bytes == getattr(again.peaks, measure)
    assert second.at(second.peak().event).roles == first.at(first.peak().event).roles


def test_running_out_is_in_the_trace(tmp_path):
    """Where memory ends, the trace ends with an oom entry that has the room left and no address."""
    path = tmp_path / "snapshot.pickle"
    tape = [Mark("forward"), Alloc(Buffer("a", 2**20, "parameter")), Alloc(Buffer("b", 2**21, "activation"))]
    export_snapshot(tape, path, capacity=3 * 2**20)
    last = read_snapshot(path)["device_traces"][0][-1]
    assert (last["action"], last["size"], last["device_free"], "addr" in last) == ("oom", 2**21, 2**20, False)


def test_a_free_of_an_older_block_is_passed_over():
    """A real trace may begin after the program did: frees of what it never saw are not in the tape."""
    entries = [
        {"action": "free_requested", "addr": 5, "size": 512, "stream": 0},
        {
            "action": "alloc",
            "addr": 9,
            "size": 700,
            "stream": 3,
            "frames": [{"filename": "m.py", "line": 4, "name": "forward"}],
        },
        {"action": "snapshot", "size": 0},
    ]
    assert tape_of({"device_traces": [entries]}) == [Alloc(Buffer("forward", 700, "activation", stream=3))]


class Evil:
    def __reduce__(self):
        return print, ("never",)


HOSTILE = {
    "a call": pickle.dumps({"segments": [], "device_traces": [[Evil()]]}),
    "a class": pickle.dumps({"segments": [], "device_traces": OrderedDict()}),
    "a set": pickle.dumps({"segments": set(), "device_traces": []}),
    "old protocol call": pickle.dumps(Evil(), protocol=0),
    "bytes": pickle.dumps(b"x" * 300),
    "a number that fills the file": b"\x80\x04\x8b\x00\x00\x00\x10" + b"\x01" * 64 + b".",
    "nothing": b"",
    "text": b"not a pickle at all",
    "no stop": b"\x80\x04}",
    "empty stack": b"\x80\x04.",
    "a string longer than the file": b"\x80\x04X\xff\xff\xff\x7fabc.",
    "a frame longer than the file": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "unhashable key": b"\x80\x04}]]s.",
    "missing memo": b"\x80\x04h\x07.",
    "memo far away": b"\x80\x04}r\xff\xff\xff\xff.",
    "deep nesting": b"\x80\x04" + b"]" * 300000 + b"a" * 299999 + b".",
    "two pickles": pickle.dumps({}) * 2,
    "a list": pickle.dumps([]),
    "no traces": pickle.dumps({"segments": []}),
    "a trace of numbers": pickle.dumps({"segments": [], "device_traces": [[1]]}),
    "a trace that is no list": pickle.dumps({"segments": [], "device_traces": [7]}),
    "a negative size": pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc", "addr": 0, "size": -1}]]}),
    "a text for a size": pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc", "addr": 0, "size": "9"}]]}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, capsys, kind):
    """Whatever else a file holds, it runs nothing, and the error is one line that names the file."""
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(InputError) as caught:
        read_snapshot(path)
    assert "snapshot.pickle" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_broken_files_are_refused(tmp_path_factory, data):
    """A true file cut short or with bytes altered is read as plain data or refused; nothing else happens."""
    path = tmp_path_factory.mktemp("broken") / "snapshot.pickle"
    whole = pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc", "addr": 1, "size": 2, "stream": 0}] * 3]})
    text = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if text:
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text))
    with suppress(InputError):
        read_snapshot(path)


def test_size_is_bounded(tmp_path):
    """A file over the limit is not opened, nor a missing one."""
    from memcalc.allocator.unpickle import load

    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps("x" * 1000))
    with pytest.raises(InputError, match="more than the 100 that are read"):
        load(path, largest=100)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load(tmp_path / "missing.pickle")


def test_a_freed_tape_leaves_only_cache(tmp_path):
    """After everything is freed, the segments are there, whole and inactive."""
    buffer = Buffer("a", 700, "activation")
    export_snapshot([Alloc(buffer), Free(buffer)], tmp_path / "s.pickle")
    (segment,) = read_snapshot(tmp_path / "s.pickle")["segments"]
    assert [(block["size"], block["state"]) for block in segment["blocks"]] == [(2**21, "inactive")]
