"""YAML from strangers: plain data is read, everything else is one error with a file and a line."""

from __future__ import annotations

import math
import os
import re
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memcalc.errors import InputError
from memcalc.readers.yaml import MAX_DEPTH, MAX_SIZE, load_yaml, load_yaml_with_lines

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "j: holds nothing; give it at least one key: value"),
        ("# only a comment\n", "j: holds nothing"),
        ("---\n", "j: holds nothing"),
        ("a: 1\na: 2\n", "j:2: the key 'a' is already given on line 1; keep one of the two"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "j:4: the key 'b' is already given on line 2"),
        ("1: x\n0x1: y\n", "j:2: the key 1 is already given on line 1"),
        ("a: !!python/object/apply:os.system [ls]", "j:1: !!python/object/apply:os.system is a tag memcalc does not read"),
        ("a: 1\nb: !!python/name:os.system", "j:2: !!python/name:os.system is a tag"),
        ("a: !!binary aGk=", "j:1: !!binary is a tag"),
        ("a: !mine 1", "j:1: !!mine is a tag"),
        ("!!map [a]", "j:1: !!map is a tag"),
        ("a:\n\t- b\n", "j:2: is indented with a tab; indent with spaces"),
        ("a: [1, 2", "j:1: is not YAML"),
        ("a: 'never closed\n", "is not YAML .*quoted scalar"),
        ("a: b: c", "j:1: is not YAML .*mapping values are not allowed"),
        ("a: *nowhere", "j:1: is not YAML .*undefined alias"),
        ("a: &a [*a]", r"j:1: \*a is an alias inside itself; write the value out"),
        ("x: 1\na: &a {b: *a}", r"j:2: \*a is an alias inside itself"),
        ("a\n--- \nb", "is not YAML .*single document"),
        ("? [a, b]\n: c", "j:1: a key is a mapping or a list; write it as plain text"),
        ("ok: 1\nn: " + "9" * 5000, "j:2: a number has too many digits; write it as plain text"),
        ("a: 1\nb: \x00", r"j:2: holds the control character '\\x00'; save it as plain text"),
        ("a: \ud800", "j:1: holds the control character"),
        ("[" * 100_000, f"j:1: is nested deeper than {MAX_DEPTH} levels; flatten it"),
        ("- " * 1000 + "x", "is nested deeper than"),
        (BOMB, "j:[5-7]: holds more than 1,000,000 values once its aliases are written out; split it"),
    ],
)
def test_hostile_text_is_one_error_with_a_line(text, told):
    """Each trick is refused in one line that says where and what to do, and quickly."""
    start = time.perf_counter()
    with pytest.raises(InputError, match=told) as caught:
        load_yaml(text, "j")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("j")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "x.yaml:1: is not UTF-8 text"),
        (b"a: 1\nb: \xff\xfe", "x.yaml:2: is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "x.yaml:1: is not UTF-8 text"),
        (b"PK\x03\x04", "x.yaml:1: holds the control character"),
        (b"#" * (MAX_SIZE + 1), "is larger than 4 MiB"),
    ],
)
def test_hostile_file_is_one_error(tmp_path, content, told):
    """Binary, a wrong encoding and a file without end are refused by name."""
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        load_yaml(file)


def test_what_is_no_file_is_told(tmp_path):
    """A folder, a missing file and a pipe (which would wait for ever) are each refused."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "none.yaml", "does not exist"), (pipe, "not a regular file")):
        with pytest.raises(InputError, match=told):
            load_yaml(path)


def test_too_much_text_is_refused():
    """Text over the limit is refused before it is parsed."""
    with pytest.raises(InputError, match="larger than 4 MiB"):
        load_yaml("a" * (MAX_SIZE + 1))


def test_plain_values_are_read_as_their_kinds():
    """Numbers, booleans, null and text come back as themselves; dates and times of day stay text; 1e-4 is a number."""
    read = load_yaml(
        "i: 12\nu: 1_000\nh: 0x1F\nf: 1.5\ne: 1e-4\nbig: 7e9\nn: ~\nempty:\nt: true\noff: off\n"
        "d: 2024-01-01\nc: 1:30\nz: '007'\nv: 1.2.3\ns: 24GiB\nm: -5\np: +.5"
    )
    assert read == {
        "i": 12, "u": 1000, "h": 31, "f": 1.5, "e": 1e-4, "big": 7e9, "n": None, "empty": None, "t": True, False: False,
        "d": "2024-01-01", "c": "1:30", "z": "007", "v": "1.2.3", "s": "24GiB", "m": -5, "p": 0.5,
    }  # fmt: skip
    assert math.isnan(load_yaml("x: .nan")["x"])
    assert load_yaml("x: -.inf")["x"] == -math.inf


def test_aliases_and_merges_are_read():
    """Honest anchors work, and a key may override one that a merge brings."""
    text = "base: &base {a: 1, b: 2}\njob:\n  <<: *base\n  b: 3\nagain: *base\n"
    assert load_yaml(text) == {"base": {"a": 1, "b": 2}, "job": {"a": 1, "b": 3}, "again": {"a": 1, "b": 2}}


def test_byte_order_mark_is_passed_over(tmp_path):
    """A file saved by Notepad reads like any other."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(file) == {"a": 1, "b": 2}


def test_every_key_and_entry_has_its_line():
    """Dotted paths lead to lines, through lists and flow style, for annotations in CI."""
    text = "# jobs\njobs:\n- model: gpt2\n  training: {micro_batch_size: 4,\n    sequence_length: 8}\n-\n  model: x\n"
    value, lines = load_yaml_with_lines(text)
    assert value["jobs"][1] == {"model": "x"}
    assert lines == {
        "jobs": 2, "jobs.0": 3, "jobs.0.model": 3, "jobs.0.training": 4, "jobs.0.training.micro_batch_size": 4,
        "jobs.0.training.sequence_length": 5, "jobs.1": 7, "jobs.1.model": 7,
    }  # fmt: skip


def test_error_carries_its_line_as_a_number():
    """The line of a broken file can be used without parsing the message."""
    with pytest.raises(InputError) as caught:
        load_yaml("a: 1\nb: [", "j")
    assert caught.value.line == 2


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126)).filter(
    lambda word: not re.fullmatch(r"[-+]?\.?[0-9][0-9_.]*[eE][-+]?[0-9]+|[-+]?0o[0-7_]+", word)
)
"""Words but those that are numbers here, as in JSON, and that YAML 1.1, by which PyYAML writes, leaves without quotes: 0E0."""
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_written_is_read_back(value):
    """Whatever plain data PyYAML writes comes back equal, and JSON is read as the YAML it is."""
    import json

    if value is not None:
        assert load_yaml(yaml.safe_dump(value)) == value
        assert load_yaml(json.dumps(value)) == value
    assert [load_yaml(text) for text in ("0E0", '"0E0"', "'0o7'")] == [0.0, "0E0", "0o7"]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    """No text at all makes anything but a value or an InputError."""
    told = ""
    try:
        load_yaml(text)
    except InputError as error:
        told = str(error)
    assert "\n" not in told
