"""``memcalc fit``, as a person calls it."""

from __future__ import annotations

import re

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


def test_options_of_caches_optimizers_and_the_allocator_are_taken(memcalc):
    """Fewer bits let more in; an option of an optimizer and the allocator's settings reach the estimate."""
    asked = ("fit", "gpt2-tiny.yaml", "--memory", "2GiB", "--format", "json")
    decode = (
        *asked,
        "--mode",
        "decode",
        "--context-length",
        4096,
        "--caches",
        "quantized-quanto",
        "--cache-arg",
        "q_group_size=16",
    )
    two, four = (memcalc(*decode, "--cache-arg", f"nbits={bits}").json["choices"][0]["largest"] for bits in (2, 4))
    assert two > four > 0
    (static,) = memcalc(
        *asked, "--mode", "decode", "--caches", "static", "--max-cache-length", 64, "--largest", "context"
    ).json["choices"]  # fmt: skip
    assert static["largest"] == 63
    train = ("--optimizers", "sgd", "--precisions", "fp32", "--checkpointing", "full", "--sequence-length", 64)
    plain, kept = (memcalc(*asked, *train, *more).json["choices"][0] for more in ((), ("--optimizer-arg", "momentum=0.9")))
    assert kept["states_rounded"] > plain["states_rounded"]
    assert "expandable_segment is no setting" in memcalc(*asked, *train, "--allocator", "expandable_segment:True").err


def test_a_size_that_is_sought_and_given_is_an_error(memcalc):
    """Nothing is printed but the error, from a flag as from ``--set``."""
    for words in (("--micro-batch-size", 4), ("--set", "training.micro_batch_size=4")):
        answer = memcalc(*WORDS, *words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(
            "memcalc: training.micro_batch_size: 4 is given, and the largest batch is what is sought; "
        )


def test_help_names_what_an_option_is_of(memcalc, monkeypatch):
    """An option of the cache or of the optimizer is said to be: neither stands behind what names one; 80 columns hold it."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = memcalc("fit", "--help").out
    assert {"An option of the cache: nbits=4.", "An option of the optimizer: fused=true."} <= set(re.split(r"\s{2,}|\n", shown))
    assert max(map(len, shown.splitlines())) <= 80
