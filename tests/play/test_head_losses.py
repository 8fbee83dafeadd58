"""Losses that never have a head's logits whole: against the same written out in torch and traced, and counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.played.against import _steps, heights
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 600, "num_hidden_layers": 2}  # fmt: skip
RECORD = Path(__file__).with_name("head_losses.json")
CASES = [
    (loss, precision, rows, tokens)
    for loss in ("liger", "chunked")
    for precision in ("bf16-pure", "amp-bf16", "fp32")
    for rows, tokens in ((2, 40), (3, 65))
]


def job(**keys: Any) -> dict[str, Any]:
    """A small llama."""
    return {"model": LLAMA, "optimizer": "sgd", "precision": "bf16-pure", "micro_batch_size": 2, "sequence_length": 40, **keys}


def named(*case: Any) -> str:
    """A case's name in the record."""
    return " ".join(map(str, case))


def record() -> None:
    """Trace every case anew (needs torch and transformers): python -m tests.play.test_head_losses."""
    from memcalc.engines.trace.estimate import Feed, trace_job
    from memcalc.job import read_job

    found = {}
    for loss, precision, rows, tokens in CASES:
        asked = job(model=f"py:tests.play.restated:{loss.capitalize()}", precision=precision, micro_batch_size=rows,
                    sequence_length=tokens, engine="trace")  # fmt: skip
        feed = Feed(inputs=[f"{name}=int64[{rows},{tokens}]<600" for name in ("input_ids", "labels")])
        one = heights(_steps(trace_job(read_job(asked), feed).tape, 2))
        found[named(loss, precision, rows, tokens)] = [one.top, one.net, one.saved]
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize(("loss", "precision", "rows", "tokens"), CASES)
def test_a_loss_is_what_the_same_operators_come_to_on_a_trace(loss, precision, rows, tokens):
    """What is saved and left is the restated loss's trace to the byte, and the highest point within a thousandth."""
    top, left, saved = json.loads(RECORD.read_text())[named(loss, precision, rows, tokens)]
    asked = job(cross_entropy=loss, precision=precision, micro_batch_size=rows, sequence_length=tokens)
    mine = heights(_steps(play_job(asked).events, 2))
    assert (mine.net, mine.saved) == (left, saved)
    assert abs(mine.top - top) <= 0.001 * top


def _made(asked: dict[str, Any], operator: str) -> list[int]:
    return [size for sign, size, what, _ in _steps(play_job(asked).events, 2) if sign == "+" and what == operator]


def test_ligers_chunks_by_hand():
    """80 rows in chunks of next_power_of_2(80 / ceil(600 / 64)) = 8: ten logits of 8 × 600, none whole."""
    made = [size for size in _made(job(cross_entropy="liger"), "mm") if size == 8 * 600 * 2]
    assert len(made) == 10
    assert not [size for size in _made(job(cross_entropy="liger"), "mm") if size == 80 * 600 * 2]
    # beside it the weight's gradient of each chunk: whole in BF16, then widened
    assert _made(job(cross_entropy="liger"), "_to_copy").count(600 * 64 * 4) == 10


def test_the_weights_gradient_is_there_from_forward_on():
    """Made in forward, it is the gradient in the end: saved for backward are both operands' gradients, and no operand."""
    plain, fused = (heights(_steps(play_job(job(cross_entropy=loss)).events, 2)).saved for loss in ("plain", "liger"))
    kept_by_plain = 80 * 600 * 4 + 80 * 8 + 4 + 80 * 64 * 2  # log-probabilities, labels, the total weight, the head's input
    assert fused == plain - kept_by_plain + 600 * 64 * 2 + 80 * 64 * 2


def test_cut_cross_entropy_by_hand():
    """Kept: one FP32 number and one place for each of 2 × 39 tokens, an average for each word; no logits at any time."""
    plain, cut = (heights(_steps(play_job(job(cross_entropy=loss)).events, 2)).saved for loss in ("plain", "cce"))
    kept = 78 * 4 + 78 * 8 + 600 * 4
    assert cut == plain - (80 * 600 * 4 + 80 * 8 + 4) + kept
    assert (
        max(size for sign, size, what, _ in _steps(play_job(job(cross_entropy="cce")).events, 2) if sign == "+") == 600 * 64 * 2
    )
    # under autocast the operands are cast by hand, and kept: the matrix beside its FP32 self
    assert _made(job(cross_entropy="cce", precision="amp-bf16"), "_to_copy").count(600 * 64 * 2) == 1


def test_a_frozen_head_gets_no_gradient():
    """Under adapters on other layers neither fused loss makes the weight's."""
    for loss in ("liger", "cce"):
        asked = job(cross_entropy=loss, lora={"r": 4, "target_modules": ["q_proj"]})
        assert 600 * 64 * 2 not in _made(asked, "zeros_like")


REFUSED = [
    ({"model": {"model_type": "bert"}, "cross_entropy": "chunked"}, InputError, "which has no language model's head"),
    (
        {"model": {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "cross_entropy": "cce"},
        InputError,
        "has no lang",
    ),
    ({"model": "gpt2", "cross_entropy": "liger"}, InputError, "training.cross_entropy: liger has no patch for gpt2"),
    ({"model": "gpt2", "cross_entropy": "cce"}, InputError, "has no patch for gpt2; use plain or chunked"),
    ({"implementation": "litgpt", "cross_entropy": "chunked"}, NotModelledError, "is not modelled of litgpt"),
    (
        {"cross_entropy": "liger", "lora": {"r": 4, "target_modules": ["lm_head"]}},
        NotModelledError,
        "on which an adapter stands",
    ),
    ({"cross_entropy": "ligger"}, InputError, "cross_entropy"),
]


@pytest.mark.parametrize(("keys", "kind", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_what_has_no_such_head_is_refused(keys, kind, said):
    """A family without a language model's head, or for which a library has no patch, is an error that says so."""
    with pytest.raises(kind) as refused:
        estimate_mapping(job(**keys))
    assert said in str(refused.value)


if __name__ == "__main__":
    record()
