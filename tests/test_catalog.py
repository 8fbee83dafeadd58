"""The files that ship: found by name, in a checkout and in an installed package alike."""

from __future__ import annotations

import pytest

from memcalc import catalog
from memcalc.catalog import find_shipped, shipped
from memcalc.errors import InputError


def test_every_kind_is_named_by_its_files():
    """A name is its file's stem, in order, and each file is there."""
    for kind in ("models", "devices"):
        found = shipped(kind)
        assert len(found) > 40
        assert list(found) == sorted(found)
        assert all(path.is_file() and path.name == f"{name}.yaml" for name, path in found.items())


def test_unknown_kind_is_empty():
    """Nothing of a kind that nothing ships is an empty catalogue, not a fault."""
    assert shipped("spaceships") == {}


def test_names_are_lower_case_and_plain():
    """A shipped name can be typed as it stands: no capitals, spaces, slashes or colons."""
    for kind in ("models", "devices"):
        for name in shipped(kind):
            assert name == name.lower()
            assert not set(name) & set(" /:\\"), name


def test_found_whatever_the_case_and_with_its_organisation():
    """``gpt2``, ``GPT2`` and ``openai-community/gpt2`` are one file."""
    paths = {find_shipped("models", name) for name in ("gpt2", "GPT2", "openai-community/gpt2")}
    assert [path.name for path in paths] == ["gpt2.yaml"]


def test_unknown_name_names_its_neighbours():
    """A slip of the pen is answered with the name that was meant."""
    with pytest.raises(InputError, match=r"model: gpt3 is not one of the shipped models; did you mean .*gpt2"):
        find_shipped("models", "gpt3", "model")


def test_a_wheel_carries_its_own_folder(tmp_path, monkeypatch):
    """An installed package's ``_configs`` comes before any ``configs`` that happens to lie beside it."""
    package = tmp_path / "memcalc"
    for folder, name in (("memcalc/_configs/models", "inside"), ("configs/models", "beside")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.yaml").write_text("name: x\n")
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert list(shipped("models")) == ["inside"]
