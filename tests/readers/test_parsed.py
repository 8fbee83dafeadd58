"""The JSON copies of shipped models against their YAML."""

from __future__ import annotations

import json

from memcalc.catalog import shipped
from memcalc.readers import parsed
from memcalc.readers.yaml import load_yaml


def spelled(value):
    """A value with its types, so that 1, 1.0 and true differ."""
    return repr(value)


def test_every_shipped_model_has_a_copy_that_says_the_same():
    """No model is left out, and each copy has the keys, order, values and types of its YAML."""
    assert parsed.COPIES.read_text(encoding="utf-8") == parsed.copies(), "python docs/generate.py"
    for name, file in shipped("models").items():
        assert spelled(parsed.parsed(file)) == spelled(load_yaml(file)), name


def test_a_file_that_was_changed_is_read_as_yaml(tmp_path):
    """One byte more, or other bytes under the same name and length, and the copy is not taken; nor is it where no file is."""
    real = shipped("models")["gpt2"]
    file = tmp_path / "gpt2.yaml"
    assert parsed.parsed(file) is None
    file.write_bytes(real.read_bytes())
    assert parsed.parsed(file) == load_yaml(real)
    file.write_bytes(real.read_bytes() + b"\n")
    assert parsed.parsed(file) is None
    file.write_bytes(real.read_bytes().replace(b"1", b"2"))
    assert parsed.parsed(file) is None


def test_copies_that_cannot_be_read_cost_nothing(tmp_path, monkeypatch):
    """Without the copies, or with half of them, models are read from their YAML."""
    for text in (None, "{", json.dumps({}), '{\n"gpt2": [1, '):
        copies = tmp_path / "parsed.json"
        if text is not None:
            copies.write_text(text)
        monkeypatch.setattr(parsed, "COPIES", copies)
        parsed._copies.cache_clear()
        assert parsed.parsed(shipped("models")["gpt2"]) is None
    parsed._copies.cache_clear()
