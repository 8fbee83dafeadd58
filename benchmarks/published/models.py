"""From a record's model to a config of memcalc's: Hugging Face's keys, as the record states them, and nothing looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.published.kinds import arch_of, config_of_kind, spelled
from benchmarks.published.records import Record

CLASSES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"), "phi": ("phi", "PhiForCausalLM"), "phi3": ("phi3", "Phi3ForCausalLM"),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM"), "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"), "falcon": ("falcon", "FalconForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"), "bert": ("bert", "BertForSequenceClassification"),
}  # fmt: skip
"""The record's ``arch`` and what transformers calls it; BERT's runs here train a classification head, as they say."""
KEYS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "tie_word_embeddings", "head_dim", "partial_rotary_factor", "rotary_pct",
)  # fmt: skip
NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
MORE: Mapping[str, tuple[str, ...]] = {
    "gemma": ("num_key_value_heads", "head_dim"), "gemma2": ("num_key_value_heads", "head_dim"),
    "qwen3": ("num_key_value_heads", "head_dim"), "falcon": ("num_key_value_heads",),
}  # fmt: skip
"""What a family needs besides, whose own defaults are of one size alone."""
VOCABULARY = 50304
"""GPT-2's 50,257 tokens, padded to a multiple of 128 (Megatron-LM d98e8a64 megatron/training/arguments.py
make_vocab_size_divisible_by, --make-vocab-size-divisible-by 128)."""


def known(record: Record) -> bool:
    """Whether the record states the whole shape of a family memcalc knows, or names a model that a package has by name."""
    return config_of(record) is not None


def config_of(record: Record, *, coded: bool = True) -> str | dict[str, Any] | None:
    """The ``model`` of a job; None where the record does not have it.

    Args:
        record: a published run.
        coded: whether code that a package has by name is run; else timm's is a config.

    >>> from benchmarks.published.records import load
    >>> config_of(next(record for record in load() if record.id == "pt-tutorial-vitl16-adam-foreach"))
    'vit_l_16'
    """
    model = record.raw["model"]
    arch, name = arch_of(model), str(model.get("name"))
    if name.startswith("torchvision "):
        return name.removeprefix("torchvision ")
    if name.startswith("timm/") and not coded:
        return _timm(model)
    if name.startswith("timm/vit_giant_patch14_dinov2.lvd142m"):
        return "py:benchmarks.published.modules:vit_giant"
    if name.startswith("Megatron-LM"):
        return _megatron(model)
    if arch not in CLASSES:
        return config_of_kind(model, arch, record.raw["seq_len"])
    told = spelled(model)
    if any(not isinstance(told.get(key), int) for key in (*NEEDED, *MORE.get(arch, ()))):
        return None
    return _hugging_face(record, arch, told)


def _hugging_face(record: Record, arch: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """A model of transformers', or of another's after its shape."""
    model_type, architecture = CLASSES[arch]
    config = {"model_type": model_type, "architectures": [architecture]}
    config |= {key: model[key] for key in KEYS if key in model}
    if arch in ("gpt_neox", "bert"):
        config.pop("num_key_value_heads", None)
    if arch == "gpt_neox":
        config["use_parallel_residual"] = bool(model.get("parallel_residual", True))
    if arch == "falcon":
        grouped = config.pop("num_key_value_heads", 1)
        config.pop("intermediate_size", None)
        config |= {"multi_query": grouped == 1, "parallel_attn": True, "bias": bool(model.get("bias")), "alibi": False}
        if 1 < grouped < model["num_attention_heads"]:  # which the old architecture does not have
            config |= {"new_decoder_architecture": True, "num_kv_heads": grouped}
    if arch == "bert":
        config["tie_word_embeddings"] = True
    sequence = record.raw["seq_len"]
    if isinstance(sequence, int) and arch not in ("falcon", "bert"):
        config["max_position_embeddings"] = max(sequence, 2048)
    return config


def _timm(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """A ViT as its record has it, under Hugging Face's keys: ``SwiGLU packed 4096x2`` is a width of 4096 after the gate."""
    inner = re.fullmatch(r"(?:SwiGLU packed )?(\d+)(?:x2)?", str(model.get("intermediate_size")))
    classes = re.search(r"num_classes=(\d+)", str(model["name"]))
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    if inner is None or classes is None or any(not isinstance(model.get(key), int) for key in same):
        return None
    return {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], **{key: model[key] for key in same},
        "intermediate_size": int(inner[1]), "num_labels": int(classes[1]),
    }  # fmt: skip


def _megatron(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Megatron's GPT has GPT-2's tensors: learned positions, biases, tied embeddings unless untied (arguments.py)."""
    args = model.get("megatron_args") or {}
    other = ("swiglu", "num-experts", "untie-embeddings-and-output-weights", "multi-latent-attention", "num-query-groups",
             "position-embedding-type", "group-query-attention")  # fmt: skip
    needed = ("num-layers", "hidden-size", "num-attention-heads", "max-position-embeddings")
    if model.get("arch") != "gpt" or any(args.get(key) for key in other) or any(key not in args for key in needed):
        return None
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": args["num-layers"],
        "n_embd": args["hidden-size"], "n_head": args["num-attention-heads"], "n_positions": args["max-position-embeddings"],
        "vocab_size": VOCABULARY,
    }  # fmt: skip
