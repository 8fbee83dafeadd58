"""Small models of every family, and the settings they are played under."""

from __future__ import annotations

from typing import Any

WORDS = {"vocab_size": 304, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 8,
          "num_key_value_heads": 2, **WORDS}  # fmt: skip

GEMMA3 = {**ROTARY, "num_hidden_layers": 4, "head_dim": 40, "sliding_window": 80, "sliding_window_pattern": 3}

CLASSIC = {key: value for key, value in WORDS.items() if key != "pad_token_id"}

BERT = {"hidden_size": 96, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 300, "type_vocab_size": 3, **WORDS}  # fmt: skip

CLIP_TEXT = {"vocab_size": 304, "hidden_size": 64, "intermediate_size": 136, "num_hidden_layers": 2, "num_attention_heads": 2,
             "max_position_embeddings": 300, "eos_token_id": 303, "projection_dim": 56}  # fmt: skip
CLIP_VISION = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 40,
               "patch_size": 8, "projection_dim": 56}  # fmt: skip
LATENT = {**ROTARY, "num_hidden_layers": 3, "num_key_value_heads": 8, "moe_intermediate_size": 72, "num_experts_per_tok": 3,
          "first_k_dense_replace": 1, "n_shared_experts": 2, "q_lora_rank": 56, "kv_lora_rank": 40, "qk_nope_head_dim": 24,
          "qk_rope_head_dim": 16, "v_head_dim": 32}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "llama": {**ROTARY},
    "t5": {"d_model": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 200,
           "decoder_start_token_id": 0, **WORDS},
    "mt5": {"d_model": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 40, "d_ff": 200,
            "decoder_start_token_id": 0, **WORDS},
    "bart": {"d_model": 96, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 3, "encoder_ffn_dim": 200, "decoder_ffn_dim": 136, "max_position_embeddings": 300,
             "decoder_start_token_id": 2, **WORDS},
    "whisper": {"d_model": 96, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
                "decoder_attention_heads": 3, "encoder_ffn_dim": 200, "decoder_ffn_dim": 136, "num_mel_bins": 20,
                "max_source_positions": 75, "max_target_positions": 300, "dropout": 0.1, "decoder_start_token_id": 1, **WORDS},
    "vit": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 200, "image_size": 40,
            "patch_size": 8, "hidden_dropout_prob": 0.1, "num_labels": 5},
    "clip": {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 56},
    "clip_text_model": {**CLIP_TEXT},
    "clip_vision_model": {**CLIP_VISION},
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [3, 5], "num_labels": 5},
    "torchvision_resnet": {"depths": [2, 1, 4, 1], "layer_type": "bottleneck", "num_labels": 5},
    "torchvision_vit": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 200,
                        "image_size": 40, "patch_size": 8, "dropout": 0.1, "num_labels": 5},
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
    "gemma3_text": {**GEMMA3},
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **GEMMA3},
        "mm_tokens_per_image": 4,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
    },
    "gpt_bigcode": {**CLASSIC, "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 300},
    "gpt_neo": {
        **CLASSIC,
        "hidden_size": 96,
        "num_layers": 2,
        "num_heads": 6,
        "max_position_embeddings": 300,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 32,
        "embed_dropout": 0.1,
        "resid_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "gpt_neox": {
        **CLASSIC,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 344,
        "max_position_embeddings": 300,
        "rotary_pct": 0.5,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "gptj": {
        **CLASSIC,
        "n_embd": 96,
        "n_layer": 2,
        "n_head": 6,
        "n_positions": 300,
        "rotary_dim": 8,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
    },
    "opt": {
        **WORDS,
        "hidden_size": 96,
        "ffn_dim": 344,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 300,
        "word_embed_proj_dim": 64,
    },
    "bloom": {**WORDS, "hidden_size": 96, "n_layer": 2, "n_head": 6, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "mpt": {**WORDS, "d_model": 96, "n_layers": 2, "n_heads": 6, "max_seq_len": 300, "attn_config": {"clip_qkv": 6.0}},
    "falcon": {
        **WORDS,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    # a trace without mamba-ssm runs the scan in PyTorch
    "mamba": {**WORDS, "hidden_size": 48, "num_hidden_layers": 4, "state_size": 4, "kernels": "torch"},
    "gpt2": {**CLASSIC, "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 300},
    "bert": {**BERT},
    "roberta": {**BERT},
    "xlm-roberta": {**BERT},
    "distilbert": {"dim": 96, "hidden_dim": 344, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 300, **WORDS},
    # rows of 344 bytes, which grouped products pad; the others' have whole 16 bytes, as CUDA asks
    "mixtral": {**ROTARY, "intermediate_size": 172, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **ROTARY,
        "head_dim": 24,
        "num_hidden_layers": 3,
        "moe_intermediate_size": 72,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "qwen2_moe": {
        **ROTARY,
        "num_hidden_layers": 4,
        "moe_intermediate_size": 72,
        "shared_expert_intermediate_size": 200,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 80,
        "max_window_layers": 3,
    },
    "gpt_oss": {
        **ROTARY,
        "head_dim": 24,
        "num_hidden_layers": 3,
        "intermediate_size": 72,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 80,
    },
    "deepseek_v3": {**LATENT, "n_routed_experts": 8, "n_group": 4, "topk_group": 2},
    "deepseek_v2": {**LATENT, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    "electra": {**BERT, "embedding_size": 56},
    "deberta-v2": {**BERT, "relative_attention": True, "position_buckets": 24, "norm_rel_ebd": "layer_norm",
                   "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "type_vocab_size": 0,
                   "position_biased_input": False},
    "albert": {**BERT, "embedding_size": 56, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}  # fmt: skip
"""By model_type: keys of the config beside ``model_type``; ``architectures`` where it is not the usual one."""

SHORT = (
    {"micro_batch_size": 1, "sequence_length": 5},
    {"micro_batch_size": 3, "sequence_length": 18},
    {"micro_batch_size": 2, "sequence_length": 33},
)
"""Of a family that reads its tokens one after another."""

SIZES: dict[str, tuple[dict[str, int], ...]] = {
    "text": (
        {"micro_batch_size": 1, "sequence_length": 64},
        {"micro_batch_size": 3, "sequence_length": 96},
        {"micro_batch_size": 2, "sequence_length": 257},
    ),
    "image_size+sequence_length": (
        {"micro_batch_size": 1, "sequence_length": 64},
        {"micro_batch_size": 3, "sequence_length": 33},
        {"micro_batch_size": 8, "sequence_length": 130},
    ),
    "image_size": (
        {"micro_batch_size": 1, "image_size": 40},
        {"micro_batch_size": 3, "image_size": 40},
        {"micro_batch_size": 8, "image_size": 40},
    ),
    "sequence_length+source_length": (
        {"micro_batch_size": 1, "sequence_length": 64, "source_length": 40},
        {"micro_batch_size": 3, "sequence_length": 33, "source_length": 96},
        {"micro_batch_size": 2, "sequence_length": 130, "source_length": 257},
    ),
}
"""Three shapes of a batch, by what a family reads."""

PRECISIONS = ("bf16", "amp-fp16", "fp16")
ATTENTIONS = ("flash", "eager")
WRITTEN_OUT = ("gpt_neo", "gptj", "bloom", "mpt", "gemma2", "gpt_oss")
"""Families whose attention is only written out: transformers has no other, scores are capped, or there are sinks."""
LATENTS = ("deepseek_v2", "deepseek_v3")
"""Families whose keys and values differ in width, which flash attention does not take."""
WINDOWED = ("mistral", "qwen2", "qwen2_moe", "olmo3", "gemma3_text", "gemma3")
"""Families with a mask where the window is shorter than the sequence, which flash takes none of."""
KERNELS = {
    **dict.fromkeys(WRITTEN_OUT, ("eager",)),
    **dict.fromkeys((*WINDOWED, *LATENTS), ("auto", "eager")),
    **dict.fromkeys(("falcon", "t5", "mt5"), ("efficient", "eager")),
    "deberta-v2": ("eager",),
}
"""Where not both of ``ATTENTIONS``: Falcon's mask is always made, T5's is its position biases, and flash attention takes
neither; DeBERTa's attention is written out, whatever is asked for."""
CHECKPOINTING = ("none", "full")
BY_WORDS = {"whisper"}
"""Families sized as those that read words, though they have an encoder: what that one reads has a length of its own."""
LOOKS_AT_FP16 = {"bart"}
"""Families that look at the numbers of FP16 states, which a trace does not have."""
NOT_CHECKPOINTED = {"albert", "resnet"}
"""Families whose modules in transformers have no gradient checkpointing."""


def jobs(family: str) -> list[dict[str, Any]]:
    """Every job of a family's grid."""
    from memcalc.families.base import load_family

    model = {"model_type": family, **MODELS[family]}
    reads = load_family(family)
    read = "text" if family in BY_WORDS else "+".join(sorted(reads.inputs))
    sizes = SHORT if family == "mamba" else SIZES.get(read, SIZES["text"])
    kernels = KERNELS.get(family, ATTENTIONS) if reads.attends else ("auto",)
    return [
        {"model": model, "optimizer": "adamw", "precision": precision, "attention": attention,
         "activation_checkpointing": checkpointing, **size}
        for checkpointing in CHECKPOINTING[: 1 if family in NOT_CHECKPOINTED else None]
        for attention in kernels
        for precision in (PRECISIONS[:2] if family in LOOKS_AT_FP16 else PRECISIONS)
        for size in sizes
    ]  # fmt: skip
