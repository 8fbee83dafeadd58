"""Padded and packed batches: the played step against the trace of the same inputs, masks by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.played.against import _steps, heights
from benchmarks.played.cases import GEMMA3, ROTARY
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError

MODELS = {
    "llama": {"model_type": "llama", **ROTARY},
    "window": {"model_type": "mistral", **ROTARY, "sliding_window": 80},
    "kinds": {"model_type": "gemma3_text", **GEMMA3},
}
RECORD = Path(__file__).with_name("given_masks.json")
CASES = [
    (model, batch, attention, precision, tokens)
    for model in ("llama", "window", "kinds")
    for batch in ("padded", "packed")
    for attention, precision, tokens in (("auto", "bf16-pure", 96), ("eager", "amp-fp16", 65), ("efficient", "bf16-pure", 57))
]


def job(model: str, batch: str, attention: str = "auto", precision: str = "bf16-pure", tokens: int = 96) -> dict[str, Any]:
    """A small decoder."""
    return {"model": MODELS[model], "optimizer": "sgd", "precision": precision, "micro_batch_size": 2,
            "sequence_length": tokens, "attention": attention, "batch": batch}  # fmt: skip


def record() -> None:
    """Trace every case anew (needs torch and transformers): python -m tests.play.test_given_masks."""
    from memcalc.engines.trace.estimate import trace_job
    from memcalc.job import read_job

    found = {}
    for case in CASES:
        one = heights(_steps(trace_job(read_job({**job(*case), "engine": "trace"})).tape, 2))
        found[" ".join(map(str, case))] = [one.top, one.net, one.saved]
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_with_a_mask_or_positions_of_its_own_is_its_trace(case):
    """What is saved and left is the trace's to the byte, and the highest point within a thousandth."""
    top, left, saved = json.loads(RECORD.read_text())[" ".join(map(str, case))]
    mine = heights(_steps(play_job(job(*case)).events, 2))
    assert (mine.net, mine.saved) == (left, saved)
    assert abs(mine.top - top) <= 0.001 * top


def test_masks_by_hand():
    """A boolean mask of 2 × 96 × 96 for all layers, and for each of them another of 2 B an element that its kernel keeps."""
    full, padded = (heights(_steps(play_job(job("llama", batch)).events, 2)).saved for batch in ("full", "padded"))
    square = 2 * 96 * 96
    repeated = 2 * 2 * (8 - 2) * 96 * 16 * 2  # under a mask keys and values are repeated for every head
    assert padded == full + 2 * (2 * square + repeated)


def test_flash_attention_takes_no_mask():
    """Asked for by name it is refused, with the reason."""
    with pytest.raises(InputError, match="cannot serve this model"):
        estimate_mapping(job("llama", "padded", attention="flash"))


def test_inputs_are_counted():
    """The mask, or the positions, are 8 B for each token."""
    full, padded = (estimate_mapping(job("llama", batch)).components.inputs for batch in ("full", "packed"))
    assert padded == full + 2 * 96 * 8


def test_families_whose_masks_are_not_known_are_said():
    """The peak of a family that does not heed them here is unknown, and the way out is named."""
    for model in ("gpt2", {"model_type": "bert"}):
        found = estimate_mapping({"model": model, "optimizer": "sgd", "batch": "padded", "sequence_length": 64})
        assert found.peak.requested is None
        assert "training.batch: padded is not modelled of" in " ".join(found.warnings)


def test_losses_that_count_labels_are_refused():
    """How many labels count is not known of a padded batch."""
    with pytest.raises(NotModelledError, match="leaves open how many labels count"):
        estimate_mapping({**job("llama", "padded"), "cross_entropy": "cce"})


if __name__ == "__main__":
    record()
