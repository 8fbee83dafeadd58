"""``memcalc list``, ``version`` and ``textbook``."""

from __future__ import annotations

import pytest

from memcalc.catalog import shipped


def test_models_are_listed_with_their_exact_counts(memcalc):
    """At least forty shipped models, each of which can be estimated by the name it is listed under."""
    rows = memcalc("list", "models", "--format", "json").json
    assert len(rows) >= 40
    assert {row["name"] for row in rows} == set(shipped("models"))
    assert {row["name"]: row["parameters"] for row in rows}["gpt2"] == 124_439_808


@pytest.mark.parametrize("kind", ["optimizers", "models", "gpus", "precisions", "implementations"])
@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_every_catalogue_has_every_format(memcalc, kind, form):
    """Each list prints in each format and names what everyone looks for."""
    answer = memcalc("list", kind, "--format", form)
    wanted = {"optimizers": "torch:AdamW", "models": "llama-3.1-8b", "gpus": "h100-80gb", "precisions": "amp-bf16",
              "implementations": "torchtitan"}  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    assert wanted[kind] in answer.out


def test_a_list_can_be_narrowed(memcalc):
    """A text keeps the rows that contain it."""
    rows = memcalc("list", "models", "llama", "--format", "json").json
    assert rows
    assert all("llama" in str(row).lower() for row in rows)


def test_version_names_itself_and_python(memcalc):
    """The version is the package's, and optional packages are looked up without being imported."""
    from importlib.metadata import version

    assert memcalc("version").out.startswith(f"memcalc {version('memcalc')} (Python 3.")
    assert memcalc("version", "--format", "json").json["memcalc"] == version("memcalc")


def test_the_textbook_is_audited(memcalc):
    """Each claim stands beside exact figures; Adam's 12P holds to the byte and Sophia's 8P only without the master."""
    claims = memcalc("textbook", "gpt2", "--format", "json").json["claims"]
    by = {(row["claim"].split()[0], row["accounting"]): row for row in claims}
    assert by["Adam's", "momentum, variance and FP32 master"]["verdict"] == "holds"
    assert by["Sophia", "momentum and Hessian diagonal alone"]["bytes_per_parameter"] == 8
    assert by["Sophia", "the same accounting as Adam's 12P, with the master"]["bytes_per_parameter"] == 12
    assert any(row["verdict"].startswith("does not") for row in claims if row["claim"].startswith("8-bit"))
    assert memcalc("textbook", "gpt2").code == 0


def test_a_narrow_terminal_has_no_sources(memcalc, monkeypatch):
    """At 80 columns no name of an argument is broken: sources are left out, and a line says where they are."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = memcalc("list", "implementations").out
    assert "make_vocab_size_divisible_by," in shown
    assert "pytorch/torchtitan" not in shown
    assert "sources are left out for want of width" in shown
    monkeypatch.setenv("COLUMNS", "120")
    assert "pytorch/torchtitan" in memcalc("list", "implementations").out
