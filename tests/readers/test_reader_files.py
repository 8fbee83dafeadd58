"""JSON as people's disks hold it: bounded, plain, each key once, errors in one line."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.errors import InputError
from memcalc.readers import files
from memcalc.readers.files import load_json, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_any_json_is_read_as_json_reads_it(value, escaped):
    """What json writes, escapes or not, with colons in strings or not, comes back the same."""
    assert parse_json(json.dumps(value, ensure_ascii=escaped).encode(), "x") == value


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"b": {"a" :1,"a":2}}', '[{"a": 1, "a": 1}]', '{"\\u0061": 1, "a": 2}', '{"x": ":", "a": 1, "a": 2}',
     '{"x": [{"y": [{"a": 1, "a": 2}]}]}'],
)  # fmt: skip
def test_a_key_given_twice_is_refused_wherever_it_stands(text):
    """A repeated key is found at any depth, beside strings with colons and behind escapes."""
    with pytest.raises(InputError, match=r"^x: a is given twice in one object; keep one of the two$"):
        parse_json(text.encode(), "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"a": 1,\n"b": ', r"is cut short at line 2; fetch or write it again"),
        (b'{"a": "tex', "is cut short at line 1"),
        (b'{"a": 1', "is cut short at line 1"),
        (b'{"a": 1}}', r"is not JSON \(line 1, column 9: extra data\)"),
        (b"{a: 1}", r"is not JSON \(line 1, column 2"),
        (b'{"a": NaN}', r"holds a number that cannot be read \(NaN\)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds a number that cannot be read"),
        (b"[" * 200_000, "is nested without end"),
        (b'{"a": "\xff"}', r"is not UTF-8 text \(line 1\)"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text"),
        (b"\x80\x04\x95", "is not UTF-8 text"),
    ],
)
def test_what_is_no_json_is_one_line(data, reason):
    """Each way a file can be no JSON is one error in one line."""
    with pytest.raises(InputError, match=reason) as refusal:
        parse_json(data, "x")
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_byte_order_mark_and_infinity_are_read():
    """Windows editors write the mark and transformers writes Infinity; both are read."""
    assert parse_json(b'\xef\xbb\xbf{"time_step_limit": [0.0, Infinity]}', "x") == {"time_step_limit": [0.0, float("inf")]}


def test_files_are_bounded_and_regular(tmp_path, monkeypatch):
    """A file over the limit, a folder, a pipe and a missing file are refused before they are read."""
    monkeypatch.setattr(files, "MIB", 1)
    (tmp_path / "big.json").write_text("[" + " " * 100 + "]")
    os.mkfifo(tmp_path / "pipe.json")
    for name, reason in (
        ("big.json", "is larger than 64 MiB"), (".", "is a folder"), ("pipe.json", "is not a regular file"),
        ("none.json", "does not exist"), ("a" * 5000, "does not exist"), ("a\0b", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            load_json(tmp_path / name, "model", limit=64)


def test_a_config_of_seventeen_mebibytes_is_refused(tmp_path):
    """The limit of a config is 16 MiB."""
    (tmp_path / "config.json").write_text('{"x": "' + "a" * 17 * 2**20 + '"}')
    with pytest.raises(InputError, match="is larger than 16 MiB"):
        load_json(tmp_path / "config.json", "model")
