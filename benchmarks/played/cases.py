"""Small models of every family, and the settings they are played under."""

from __future__ import annotations

from typing import Any

WORDS = {"vocab_size": 304, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 8,
          "num_key_value_heads": 2, **WORDS}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**ROTARY},
    "mistral": {**ROTARY, "sliding_window": 128},
    "qwen2": {**ROTARY, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1},
    "qwen3": {**ROTARY, "head_dim": 24},
    "olmo": {**ROTARY},
    "olmo2": {**ROTARY},
    "olmo3": {**ROTARY, "num_hidden_layers": 5, "sliding_window": 80},
    "stablelm": {**ROTARY, "num_attention_heads": 4, "hidden_dropout": 0.1},
    "starcoder2": {**ROTARY, "residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1},
    "phi": {**ROTARY, "num_key_value_heads": 4, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "phi3": {**ROTARY},
    "cohere": {**ROTARY},
    "gemma": {**ROTARY, "head_dim": 40},
    "gemma2": {**ROTARY, "num_hidden_layers": 3, "head_dim": 24, "sliding_window": 80},
    "gemma3_text": {**ROTARY, "num_hidden_layers": 4, "head_dim": 40, "sliding_window": 80, "sliding_window_pattern": 3},
}
"""By model_type: keys of the config beside ``model_type``; ``architectures`` where it is not the usual one."""

SIZES: dict[str, tuple[dict[str, int], ...]] = {
    "text": (
        {"micro_batch_size": 1, "sequence_length": 64},
        {"micro_batch_size": 3, "sequence_length": 96},
        {"micro_batch_size": 2, "sequence_length": 257},
    ),
}
"""Three shapes of a batch, by what a family reads."""

PRECISIONS = ("bf16", "amp-fp16", "fp16")
ATTENTIONS = ("flash", "eager")
KERNELS = {
    # a mask where the window is shorter than the sequence, which flash takes none of
    **dict.fromkeys(("mistral", "qwen2", "olmo3", "gemma3_text"), ("auto", "eager")),
    "gemma2": ("eager",),  # scores are capped, which only attention written out does
}
CHECKPOINTING = ("none", "full")


def jobs(family: str) -> list[dict[str, Any]]:
    """Every job of a family's grid."""
    from memcalc.families.base import load_family

    model = {"model_type": family, **MODELS[family]}
    reads = load_family(family)
    sizes = SIZES["+".join(sorted(reads.inputs))] if "+".join(sorted(reads.inputs)) in SIZES else SIZES["text"]
    kernels = KERNELS.get(family, ATTENTIONS) if reads.attends else ("auto",)
    return [
        {"model": model, "optimizer": "adamw", "precision": precision, "attention": attention,
         "activation_checkpointing": checkpointing, **size}
        for checkpointing in CHECKPOINTING
        for attention in kernels
        for precision in PRECISIONS
        for size in sizes
    ]  # fmt: skip
