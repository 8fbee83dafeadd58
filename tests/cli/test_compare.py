"""``memcalc compare``: rows, differences, order."""

from __future__ import annotations

import csv
import io

TEN = "adam,adamw,adam8bit,adamw8bit,sgd,sgd-momentum,adagrad,sophia,came,lion"


def test_ten_optimizers_side_by_side(memcalc):
    """One footprint an optimizer, in the order given, all of one model."""
    shown = memcalc("compare", "gpt2", "--optimizers", TEN, "--format", "json").json["footprints"]
    assert len(shown) == 10
    assert {one["model"]["name"] for one in shown} == {"gpt2"}
    assert shown[4]["components"]["optimizer_states"] == 0
    assert shown[5]["components"]["optimizer_states"] == 4 * 124_439_808


def test_precisions_multiply_the_rows(memcalc):
    """Every precision is shown with every optimizer."""
    rows = list(csv.DictReader(io.StringIO(
        memcalc("compare", "gpt2", "--optimizers", "adam,sgd", "--precisions", "fp16,fp32", "--format", "csv").out
    )))  # fmt: skip
    assert [(row["optimizer"], row["precision"]) for row in rows] == [
        ("torch:Adam", "fp16"), ("torch:SGD", "fp16"), ("torch:Adam", "fp32"), ("torch:SGD", "fp32"),
    ]  # fmt: skip


def test_rows_are_sorted_on_request_and_held_against_the_first(memcalc):
    """Sorted by peak the smallest comes first and the others show how much more they take."""
    answer = memcalc("compare", "gpt2", "--optimizers", "adam,sgd", "--precisions", "fp32", "--sort", "peak")
    lines = [line for line in answer.out.splitlines() if "torch:" in line and "·" not in line]
    assert lines[0].startswith("torch:SGD")
    assert "+" in lines[1]
    assert "%" in lines[1]


def test_no_optimizers_is_an_error(memcalc):
    """Compare without anything to compare says how to ask."""
    answer = memcalc("compare", "gpt2")
    assert (answer.code, answer.out) == (2, "")
    assert "--optimizers: is missing" in answer.err


def test_a_narrow_terminal_keeps_what_differs(memcalc, monkeypatch):
    """At 80 columns no line is longer, and the columns that tell rows apart are there; no line ends in padding."""
    monkeypatch.setenv("COLUMNS", "80")
    answer = memcalc("compare", "gpt2", "--optimizers", TEN, "--precisions", "fp16,amp-bf16")
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "to first" in answer.out
    assert all(line == line.rstrip() for line in answer.out.splitlines())
