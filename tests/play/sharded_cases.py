"""Small models that are sharded for real, and how."""

from __future__ import annotations

from typing import Any

ROTARY = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 5, "tie_word_embeddings": False, **ROTARY},
    "gpt2": {"model_type": "gpt2", "n_embd": 60, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "albert": {"model_type": "albert", "embedding_size": 32, "hidden_size": 64, "intermediate_size": 176,
               "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 99, "max_position_embeddings": 64},
    "albert's groups": {"model_type": "albert", "embedding_size": 32, "hidden_size": 64, "intermediate_size": 176,
                        "num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2, "num_attention_heads": 4,
                        "vocab_size": 99, "max_position_embeddings": 64},
    "t5": {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 5, "num_heads": 4, "vocab_size": 99,
           "dropout_rate": 0.0},
    "resnet": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 4]},
    "gemma3": {"model_type": "gemma3", "mm_tokens_per_image": 4, "image_token_index": 98,
               "text_config": {**ROTARY, "head_dim": 16, "num_hidden_layers": 7, "sliding_window": 16},
               "vision_config": {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 4, "num_attention_heads": 3,
                                 "image_size": 32, "patch_size": 8, "vision_use_head": False}},
}  # fmt: skip
LAYERS, ENDS = ["model.layers.*"], ["model.norm", "lm_head"]
SEEN = {"zero_stage": 3, "zero_backend": "fsdp2", "dp": 2, "micro_batch_size": 2, "image_size": 32}
SHARDED = {"zero_stage": 3, "zero_backend": "fsdp2", "dp": 2, "micro_batch_size": 2, "sequence_length": 24}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {"model": "llama", "precision": "fp32", **SHARDED},
    "mixed": {"model": "llama", "precision": "fsdp2-mixed", **SHARDED},
    "mixed, checkpointed": {"model": "llama", "precision": "fsdp2-mixed", "activation_checkpointing": "full", **SHARDED},
    "kept gathered": {"model": "llama", "precision": "fsdp2-mixed", **SHARDED, "zero_stage": 2},
    "reduced in fp32": {"model": "llama", "precision": "fsdp2-mixed", "zero_args": {"reduce_in_float32": True}, **SHARDED},
    "root resharded": {"model": "llama", "precision": "bf16-pure", "zero_args": {"reshard_root": True}, **SHARDED},
    "accumulated": {"model": "llama", "precision": "fsdp2-mixed", "gradient_accumulation_steps": 3, **SHARDED},
    "reduced last": {"model": "llama", "precision": "fsdp2-mixed", "gradient_accumulation_steps": 3,
                     "zero_args": {"no_sync": True, "reduce_in_float32": True}, **SHARDED},
    "reduced last, in bf16": {"model": "llama", "precision": "bf16-pure", "gradient_accumulation_steps": 3,
                              "zero_args": {"no_sync": True}, **SHARDED},
    "tied, uneven": {"model": "gpt2", "precision": "fp32", **SHARDED},
    "adapters": {"model": "llama", "precision": "fsdp2-mixed", "lora": {"r": 4}, **SHARDED},
    "adapters, checkpointed": {"model": "llama", "precision": "bf16-pure", "lora": {"r": 4},
                               "activation_checkpointing": "full", **SHARDED},
    "adapters on a layer that is shared": {"model": "albert", "precision": "fp32",
                                           "lora": {"r": 4, "target_modules": ["query", "value"]}, **SHARDED},
    "adapters on layers of two kinds": {"model": "gemma3", "precision": "fsdp2-mixed",
                                        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, **SHARDED},
    "in groups": {"model": "llama", "precision": "fsdp2-mixed", "zero_args": {"reduce_in_float32": True}, **SHARDED,
                  "units": {"groups": [["model.embed_tokens"], LAYERS, ENDS], "stays": [ENDS]}},
    "in groups, checkpointed": {"model": "llama", "precision": "fsdp2-mixed", "activation_checkpointing": "full", **SHARDED,
                                "units": {"groups": [["model.embed_tokens"], LAYERS, ENDS], "stays": []}},
    "last kept": {"model": "llama", "precision": "fsdp2-mixed", **SHARDED,
                  "units": {"groups": [LAYERS], "stays": [["model.layers.-1"]]}},
    "hybrid": {"model": "llama", "precision": "fsdp2-mixed", **SHARDED, "dp": 4, "dp_replicate": 2, "dp_shard": 2},
    "to fewer": {"model": "llama", "precision": "fp32", "zero_args": {"reshard_after_forward": 2}, **SHARDED, "dp": 4},
    "to fewer, mixed and checkpointed": {"model": "llama", "precision": "fsdp2-mixed", "activation_checkpointing": "full",
                                         "zero_args": {"reshard_after_forward": 2}, **SHARDED, "dp": 4},
    "to fewer, the root too": {"model": "gpt2", "precision": "fp32", "gradient_accumulation_steps": 2,
                               "zero_args": {"reshard_after_forward": 2, "reshard_root": True}, **SHARDED, "dp": 4},
    "to fewer, hybrid": {"model": "llama", "precision": "fsdp2-mixed", "zero_args": {"reshard_after_forward": 2}, **SHARDED,
                         "dp": 8, "dp_replicate": 2, "dp_shard": 4},
    "a layer that is shared": {"model": "albert", "precision": "fp32", **SHARDED},
    "a layer that is shared, accumulated": {"model": "albert", "precision": "fp32", "gradient_accumulation_steps": 2,
                                            "zero_args": {"no_sync": True}, **SHARDED},
    "groups of shared layers": {"model": "albert's groups", "precision": "fp32", **SHARDED},
    "a layer that is shared, kept gathered": {"model": "albert", "precision": "fp32", **SHARDED, "zero_stage": 2},
    "a layer that is shared, to fewer": {"model": "albert", "precision": "fp32", "zero_args": {"reshard_after_forward": 2},
                                         **SHARDED, "dp": 4},
    "lists of lists": {"model": "resnet", "precision": "fp32", **SEEN},
    "lists of lists, accumulated": {"model": "resnet", "precision": "fp32", "gradient_accumulation_steps": 2, **SEEN},
    "a tower that does not run": {"model": "gemma3", "precision": "fp32", **SHARDED},
    "a tower that does not run, mixed": {"model": "gemma3", "precision": "fsdp2-mixed", "activation_checkpointing": "full",
                                         **SHARDED},
    "a tower": {"model": "gemma3", "precision": "fp32", **SHARDED, **SEEN},
    "a tower without gradients": {"model": "gemma3", "precision": "fp32",
                                  "lora": {"r": 4, "target_modules": ["gate_proj"]}, **SHARDED, **SEEN},
    "a bias that layers share": {"model": "t5", "precision": "fp32", **SHARDED},
    "replicated": {"model": "llama", "precision": "fsdp2-mixed", **SHARDED, "dp": 2, "dp_replicate": 2, "dp_shard": 1},
}  # fmt: skip


def asked(case: dict[str, Any]) -> dict[str, Any]:
    """The job of a case."""
    keys = {key: value for key, value in case.items() if key != "units" and (key != "dp" or "dp_shard" not in case)}
    if case["model"] != "resnet":
        keys["attention"] = "eager"
    return {**keys, "model": MODELS[case["model"]], "optimizer": "sgd"}
