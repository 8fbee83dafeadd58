"""Small models of every family, and the settings they are played under."""

from __future__ import annotations

from typing import Any

WORDS = {"vocab_size": 304, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 8,
          "num_key_value_heads": 2, **WORDS}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**ROTARY},
    "t5": {"d_model": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 200,
           "decoder_start_token_id": 0, **WORDS},
    "mt5": {"d_model": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 40, "d_ff": 200,
            "decoder_start_token_id": 0, **WORDS},
    "bart": {"d_model": 96, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 3,
             "encoder_ffn_dim": 200, "decoder_ffn_dim": 136, "max_position_embeddings": 300, "decoder_start_token_id": 2,
             **WORDS},
    "whisper": {"d_model": 96, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
                "decoder_attention_heads": 3, "encoder_ffn_dim": 200, "decoder_ffn_dim": 136, "num_mel_bins": 20,
                "max_source_positions": 75, "max_target_positions": 300, "dropout": 0.1, "decoder_start_token_id": 1, **WORDS},
    "vit": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 200, "image_size": 40,
            "patch_size": 8, "hidden_dropout_prob": 0.1, "num_labels": 5},
}
"""By model_type: keys of the config beside ``model_type``; ``architectures`` where it is not the usual one."""

SIZES: dict[str, tuple[dict[str, int], ...]] = {
    "text": (
        {"micro_batch_size": 1, "sequence_length": 64},
        {"micro_batch_size": 3, "sequence_length": 96},
        {"micro_batch_size": 2, "sequence_length": 257},
    ),
    "image_size": ({"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_size": 8}),
    "sequence_length+source_length": (
        {"micro_batch_size": 1, "sequence_length": 64, "source_length": 40},
        {"micro_batch_size": 3, "sequence_length": 33, "source_length": 96},
        {"micro_batch_size": 2, "sequence_length": 130, "source_length": 257},
    ),
}
"""Three shapes of a batch, by what a family reads."""

PRECISIONS = ("bf16", "amp-fp16", "fp16")
ATTENTIONS = ("flash", "eager")
CHECKPOINTING = ("none", "full")


def jobs(family: str) -> list[dict[str, Any]]:
    """Every job of a family's grid."""
    from memcalc.families.base import load_family

    model = {"model_type": family, **MODELS[family]}
    reads = load_family(family)
    sizes = SIZES["+".join(sorted(reads.inputs))] if "+".join(sorted(reads.inputs)) in SIZES else SIZES["text"]
    kernels = ATTENTIONS if reads.attends else ("auto",)
    return [
        {"model": model, "optimizer": "adamw", "precision": precision, "attention": attention,
         "activation_checkpointing": checkpointing, **size}
        for checkpointing in CHECKPOINTING
        for attention in kernels
        for precision in PRECISIONS
        for size in sizes
    ]  # fmt: skip
