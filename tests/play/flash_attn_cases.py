"""Small models under flash-attn's own kernels."""

from __future__ import annotations

from typing import Any

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99,
         "num_hidden_layers": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FULL = {"micro_batch_size": 2, "sequence_length": 40, "precision": "bf16-pure"}
PACKED = {"micro_batch_size": 1, "sequence_length": 96, "precision": "bf16-pure", "batch": "packed", "packed_sequences": 5}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model": {"model_type": "llama", **SMALL}, **FULL},
    "llama, one row": {"model": {"model_type": "llama", **SMALL}, **FULL, "micro_batch_size": 1},
    "llama, packed": {"model": {"model_type": "llama", **SMALL}, **PACKED},
    "llama, packed, autocast": {"model": {"model_type": "llama", **SMALL}, **PACKED, "precision": "amp-bf16"},
    "llama, packed, recomputed": {"model": {"model_type": "llama", **SMALL}, **PACKED, "activation_checkpointing": "full"},
    "llama, packed, selective": {"model": {"model_type": "llama", **SMALL}, **PACKED, "activation_checkpointing": "selective"},
    "llama, packed, heads of 12": {"model": {"model_type": "llama", **SMALL, "head_dim": 12}, **PACKED},
    "llama, heads of 12": {"model": {"model_type": "llama", **SMALL, "head_dim": 12}, **FULL},
    "llama, packed, as many keys": {"model": {"model_type": "llama", **SMALL, "num_key_value_heads": 4}, **PACKED},
    "mistral, packed": {"model": {"model_type": "mistral", **SMALL, "sliding_window": 16}, **PACKED},
    "qwen2, packed": {"model": {"model_type": "qwen2", **SMALL}, **PACKED},
    "qwen3, packed": {"model": {"model_type": "qwen3", **SMALL, "head_dim": 16}, **PACKED},
    "gemma, packed": {"model": {"model_type": "gemma", **SMALL, "head_dim": 16}, **PACKED},
    "gemma2, packed": {"model": {"model_type": "gemma2", **SMALL, "head_dim": 16, "sliding_window": 16}, **PACKED},
    "cohere, packed": {"model": {"model_type": "cohere", **SMALL}, **PACKED},
    "gemma3_text, packed": {"model": {"model_type": "gemma3_text", **SMALL, "head_dim": 16, "sliding_window": 16}, **PACKED},
    "olmo2, packed": {"model": {"model_type": "olmo2", **SMALL}, **PACKED},
    "olmo3, packed": {"model": {"model_type": "olmo3", **SMALL, "sliding_window": 16}, **PACKED},
    "phi3, packed": {"model": {"model_type": "phi3", **SMALL}, **PACKED},
}  # fmt: skip


def asked(case: dict[str, Any]) -> dict[str, Any]:
    """The job of a case."""
    return {**case, "optimizer": "sgd", "attention": "flash_attention_2"}
