"""LoRA on models of two sides, T5's with lists inside their layers: the played step against traces of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.play.traced import record, require_traced

T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 4, "num_heads": 4, "vocab_size": 131}
SIDES = {
    "d_model": 32, "vocab_size": 131, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "bart": {**SIDES, "max_position_embeddings": 64},
    "whisper": {**SIDES, "max_source_positions": 40, "max_target_positions": 40, "num_mel_bins": 8, "pad_token_id": 0,
                "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = ({"r": 4}, {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1})
WAYS: tuple[dict[str, Any], ...] = ({"precision": "bf16-pure"}, {"precision": "amp-bf16", "gradient_accumulation_steps": 2})
CASES = [(model, options, way) for model in MODELS for options in OPTIONS for way in WAYS]
RECORD = Path(__file__).with_name("adapted.json")


def job(model: str, options: dict[str, Any], way: dict[str, Any]) -> dict[str, Any]:
    """A small model under adapters; Whisper's targets have no default."""
    targets = {"target_modules": ["q_proj", "v_proj"]} if model == "whisper" else {}
    return {"model": {"model_type": model, **MODELS[model]}, "optimizer": "sgd", "micro_batch_size": 2, "sequence_length": 17,
            "attention": "eager", "lora": {**targets, **options}, **way}  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{model}-{options}-{way}" for model, options, way in CASES])
def test_a_step_with_adapters_on_both_sides_is_its_trace(number):
    """What is saved and left is the trace's to the byte, and both peaks within a thousandth."""
    require_traced(job(*CASES[number]), RECORD, number)


if __name__ == "__main__":
    record((job(*case) for case in CASES), RECORD)
