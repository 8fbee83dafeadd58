"""``memcalc fit``, as a person calls it."""

from __future__ import annotations

import pytest

WORDS = (
    "fit",
    "gpt2-tiny.yaml",
    "--memory",
    "2GiB",
    "--sequence-length",
    128,
    "--optimizers",
    "sgd",
    "--precisions",
    "bf16-pure",
)
TINY = """
model_type: llama
hidden_size: 64
intermediate_size: 176
num_hidden_layers: 2
num_attention_heads: 4
num_key_value_heads: 2
vocab_size: 99
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-tiny.yaml").write_text(TINY)


def test_a_table_answers_in_one_screen(memcalc):
    """A line a way of training, with its batch; by default with checkpointing and without."""
    answer = memcalc(*WORDS)
    assert answer.code == 0
    assert answer.out.count("torch:SGD") == 2
    assert "batch" in answer.out
    assert "kept" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100


def test_a_narrow_terminal_cuts_no_figure_short(memcalc, monkeypatch):
    """At 80 columns whole columns are left out, which is said, and nothing that stays is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    answer = memcalc(*WORDS)
    assert "…" not in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "left out for want of width" in answer.out.replace("\n", " ")


def test_json_holds_every_figure_in_bytes(memcalc):
    """One object, the choices in order, bytes as whole numbers."""
    told = memcalc(*WORDS, "--format", "json").json
    assert told["largest"] == "batch"
    first, second = told["choices"]
    assert first["largest"] > second["largest"] > 0
    assert first["peak_allocated"] > first["peak_at_one"] > first["states_rounded"] > 0


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_other_forms_have_a_line_a_way(memcalc, form):
    """CSV and Markdown have a header and a row each."""
    lines = memcalc(*WORDS, "--format", form).out.strip().splitlines()
    assert len(lines) == (3 if form == "csv" else 4)


def test_exit_codes_say_whether_anything_fits(memcalc):
    """1 where nothing fits, 2 where nothing was asked for that can be."""
    assert memcalc("fit", "llama-3.1-8b", "--memory", "4GiB", "--optimizers", "sgd", "--precisions", "fp32").code == 1
    answer = memcalc("fit", "llama-3.1-8b")
    assert (answer.code, "hardware.gpu: is missing" in answer.err) == (2, True)
