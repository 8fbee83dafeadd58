"""Families whose shape a record's keys can state whole: what each must be told, and what its config is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

CORE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
DECODER = (*CORE, "intermediate_size")
GROUPED = (*DECODER, "num_key_value_heads")
ROUTED = ("num_experts", "num_experts_per_tok")
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size",
          "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "first_k_dense_replace")  # fmt: skip


class Kind(NamedTuple):
    """A family as transformers has it.

    Attributes:
        model_type: its name there.
        architecture: the class; empty where a record has to say it.
        needs: keys without which its config is not whole, under transformers' names.
        keys: others that are read where they are there.
    """

    model_type: str
    architecture: str
    needs: tuple[str, ...]
    keys: tuple[str, ...] = ()


_TIED, _WIDE = "tie_word_embeddings", ("tie_word_embeddings", "head_dim", "max_position_embeddings")
KINDS: Mapping[str, Kind] = {
    "mistral": Kind("mistral", "MistralForCausalLM", GROUPED, (*_WIDE, "sliding_window")),
    "mixtral": Kind("mixtral", "MixtralForCausalLM", (*GROUPED, *ROUTED), (*_WIDE, "sliding_window")),
    "qwen2": Kind("qwen2", "Qwen2ForCausalLM", (*GROUPED, _TIED), ("max_position_embeddings",)),
    "qwen2_moe": Kind(
        "qwen2_moe", "Qwen2MoeForCausalLM", (*GROUPED, *ROUTED, "moe_intermediate_size", "shared_expert_intermediate_size"),
        _WIDE,
    ),
    "qwen3_moe": Kind(
        "qwen3_moe", "Qwen3MoeForCausalLM", (*CORE, "num_key_value_heads", *ROUTED, "moe_intermediate_size", "head_dim"),
        (*_WIDE, "intermediate_size"),
    ),
    "deepseek_v2": Kind("deepseek_v2", "DeepseekV2ForCausalLM", (*DECODER, *LATENT), _WIDE),
    "deepseek_v3": Kind("deepseek_v3", "DeepseekV3ForCausalLM", (*DECODER, *LATENT), _WIDE),
    "olmo": Kind("olmo", "OlmoForCausalLM", (*DECODER, _TIED), ("num_key_value_heads", "max_position_embeddings")),
    "olmo2": Kind("olmo2", "Olmo2ForCausalLM", (*DECODER, _TIED), ("num_key_value_heads", "max_position_embeddings")),
    "starcoder2": Kind("starcoder2", "Starcoder2ForCausalLM", GROUPED, (*_WIDE, "sliding_window", "use_bias")),
    "stablelm": Kind(
        "stablelm", "StableLmForCausalLM", (*GROUPED, "use_qkv_bias", "partial_rotary_factor"),
        (_TIED, "max_position_embeddings", "use_parallel_residual", "qk_layernorm"),
    ),
    "cohere": Kind("cohere", "CohereForCausalLM", GROUPED, (*_WIDE, "use_qk_norm")),
    "gpt2": Kind("gpt2", "GPT2LMHeadModel", CORE, (_TIED, "max_position_embeddings", "intermediate_size")),
    "gptj": Kind("gptj", "GPTJForCausalLM", CORE, (_TIED, "max_position_embeddings", "intermediate_size", "rotary_dim")),
    "gpt_neo": Kind(
        "gpt_neo", "GPTNeoForCausalLM", (*CORE, "attention_types"), (_TIED, "max_position_embeddings", "intermediate_size")
    ),
    "gpt_bigcode": Kind(
        "gpt_bigcode", "GPTBigCodeForCausalLM", CORE, (_TIED, "max_position_embeddings", "intermediate_size", "multi_query")
    ),
    "bloom": Kind("bloom", "BloomForCausalLM", CORE, (_TIED,)),
    "mpt": Kind("mpt", "MptForCausalLM", CORE, (_TIED, "max_position_embeddings")),
    "opt": Kind(
        "opt", "OPTForCausalLM", DECODER, (_TIED, "max_position_embeddings", "word_embed_proj_dim", "do_layer_norm_before")
    ),
    "mamba": Kind(
        "mamba", "MambaForCausalLM", ("num_hidden_layers", "hidden_size", "vocab_size"),
        (_TIED, "state_size", "conv_kernel", "expand", "intermediate_size"),
    ),
    "t5": Kind(
        "t5", "T5ForConditionalGeneration", ("num_layers", "d_model", "d_kv", "num_heads", "d_ff", "vocab_size"),
        ("num_decoder_layers", "feed_forward_proj", _TIED),
    ),
    "vit": Kind(
        "vit", "ViTForImageClassification",
        ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
         "num_labels"),
    ),
    "roberta": Kind("roberta", "", DECODER, ("max_position_embeddings", "type_vocab_size", "num_labels", _TIED)),
    "distilbert": Kind("distilbert", "", DECODER, ("max_position_embeddings", "num_labels", _TIED)),
}  # fmt: skip
"""By the record's ``arch``; those that were read before it are in ``models``."""
_INNER = {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
OWN: Mapping[str, Mapping[str, str]] = {
    "opt": {"intermediate_size": "ffn_dim"}, "gpt2": _INNER, "gptj": _INNER, "gpt_bigcode": _INNER,
    "mpt": {"max_position_embeddings": "max_seq_len"}, "distilbert": {"intermediate_size": "hidden_dim"},
    "mixtral": {"num_experts": "num_local_experts"},
}  # fmt: skip
"""Keys that transformers knows by a family's own names alone."""
NOT_USUAL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "opt": (r"350m", ("word_embed_proj_dim", "do_layer_norm_before")),
    "t5": (r"flan|v1[._]1|umt5|mt5|lm[-_]adapt", ("feed_forward_proj", "tie_word_embeddings")),
}
"""Models of a family that differ from it in more than size, by their names, and the keys that say how."""
SPELLED: Mapping[str, str] = {
    "n_layer": "num_hidden_layers", "n_layers": "num_hidden_layers", "num_layers": "num_hidden_layers",
    "n_embd": "hidden_size", "n_embed": "hidden_size", "d_model": "hidden_size", "dim": "hidden_size",
    "n_head": "num_attention_heads", "n_heads": "num_attention_heads", "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "num_kv_heads": "num_key_value_heads", "n_query_groups": "num_key_value_heads",
    "n_inner": "intermediate_size", "ffn_dim": "intermediate_size", "ffn_hidden_size": "intermediate_size",
    "d_ff": "intermediate_size", "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings", "num_local_experts": "num_experts", "n_routed_experts": "num_experts",
    "num_classes": "num_labels", "padded_vocab_size": "vocab_size",
}  # fmt: skip
"""Other names of the same keys; a family's own are left as they are."""
ARCHES: Mapping[str, str] = {
    "llama2": "llama", "llama3": "llama", "llama_2": "llama", "llama_3": "llama", "llama3_1": "llama", "llama3_2": "llama",
    "gptneox": "gpt_neox", "pythia": "gpt_neox", "phi_1_5": "phi", "phi2": "phi", "phi_2": "phi", "phi_3": "phi3",
    "qwen2_5": "qwen2", "qwen_2": "qwen2", "qwen_3": "qwen3", "qwen3moe": "qwen3_moe", "qwen2moe": "qwen2_moe",
    "gemma_2": "gemma2", "gpt_2": "gpt2", "gpt_j": "gptj", "gptneo": "gpt_neo", "starcoder": "gpt_bigcode",
    "flan_t5": "t5", "bertforsequenceclassification": "bert",
}  # fmt: skip
"""Other names of the same families."""


def arch_of(model: Mapping[str, Any]) -> str:
    """The family by its usual name: ``Qwen2.5``, ``qwen2_5`` and ``Qwen2ForCausalLM`` are all ``qwen2``.

    >>> [arch_of({"arch": word}) for word in ("Qwen2.5", "LlamaForCausalLM", "GPT-NeoX", None)]
    ['qwen2', 'llama', 'gpt_neox', '']
    """
    words = re.sub(r"[\s.\-]+", "_", str(model.get("arch") or "").strip().lower())
    words = re.sub(r"(?:forcausallm|lmheadmodel|forconditionalgeneration)$", "", words)
    return ARCHES.get(words, words)


def spelled(model: Mapping[str, Any], needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record's keys under transformers' names, its numbers as numbers; nothing where a key is null.

    >>> spelled({"n_layer": "12", "n_embd": 768, "vocab_size": "50,257", "note": None})
    {'num_hidden_layers': 12, 'hidden_size': 768, 'vocab_size': 50257}
    """
    found: dict[str, Any] = {}
    for key, value in model.items():
        if value is not None:
            found.setdefault(key if key in needs else SPELLED.get(key, key), number(value))
    return found


def number(value: Any) -> Any:
    """A whole number that is written as words, or as a fraction that is none; anything else as it is.

    >>> number("4,096"), number(32.0), number("32k"), number(True)
    (4096, 32, '32k', True)
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,3}(?:[,_ ]?\d{3})*\s*|\s*\d+\s*", value):
        return int(re.sub(r"\D", "", value))
    return value


WINDOW = 4096
"""Tokens that Mistral's first model looks back on, and its later ones do not: no matter to a sequence that is no longer."""


def config_of_kind(model: Mapping[str, Any], arch: str, sequence: object) -> dict[str, Any] | None:
    """A config of transformers'; None where the record does not state it whole."""
    kind = KINDS.get(arch)
    if kind is None:
        return None
    long = isinstance(sequence, int) and sequence > WINDOW
    if long and arch == "mistral" and "sliding_window" not in model:
        return None
    told = {**({"q_lora_rank": 0} if "q_lora_rank" in model else {}), **spelled(model, kind.needs)}
    pattern, more = NOT_USUAL.get(arch, ("(?!)", ()))
    needed = (*kind.needs, *(more if re.search(pattern, str(model.get("name")), re.IGNORECASE) else ()))
    architecture = kind.architecture or str(told.get("architecture") or "")
    if not architecture or any(key not in told for key in needed):
        return None
    if any(isinstance(told[key], str) for key in needed if key not in ("feed_forward_proj", "q_lora_rank")):
        return None
    config = {key: told[key] for key in dict.fromkeys((*needed, *kind.keys)) if key in told}
    if "q_lora_rank" in config and not config["q_lora_rank"]:  # as DeepSeek-V2-Lite has none
        config["q_lora_rank"] = None
    if "sliding_window" in kind.keys:
        config.setdefault("sliding_window", None)
    own = OWN.get(arch, {})
    told = {own.get(key, key): value for key, value in config.items()}
    return {"model_type": kind.model_type, "architectures": [architecture], **told}
