"""Parts of a model that no gradient comes to: the traced step makes no states for them, and neither does the played one."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
SIDE = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64}  # fmt: skip
MODELS = {
    "a pooler": {"model_type": "bert", "architectures": ["BertModel"], **SMALL},
    "a tower": {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "image_token_index": 63,
        "text_config": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 16, **SMALL},
        "vision_config": {"model_type": "siglip_vision_model", **{k: v for k, v in SMALL.items() if k != "vocab_size"}},
    },
    "an encoder's side": {"model_type": "bart", "architectures": ["BartForCausalLM"], **SIDE},
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "precision"), [("a pooler", "amp-bf16"), ("a tower", "fp16"), ("an encoder's side", "amp-bf16")]
)
def test_no_state_is_born_where_no_gradient_comes(what, precision):
    """Gradients, masters, states and the highest point are the traced step's, to the byte."""
    job = {"model": MODELS[what], "optimizer": "adamw", "precision": precision, "micro_batch_size": 1, "sequence_length": 8}
    played, traced = estimate_mapping(job, replayed=False), estimate_mapping({**job, "engine": "trace"})
    for component in ("gradients", "optimizer_states", "master_parameters"):
        assert getattr(played.components, component) == getattr(traced.components, component), component
    assert played.peak.requested == traced.peak.requested
    assert any("no gradient comes to" in said for said in played.assumptions)
