"""Timm's own vision transformers, small, and the jobs they stand for: ``pip install timm``, torchvision is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.played.others import Case, stood_in

VIT = {"model_type": "vit", "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 200,
       "image_size": 40, "patch_size": 8, "num_labels": 5}  # fmt: skip
ROWS = 3
KINDS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({}, {}),
    "dropout": ({}, {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}),
    "dinov2 with registers": ({"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}, {}),
    "dinov2, gated": ({"init_values": 1e-5, "mlp_layer": "SwiGLUPacked"}, {}),
    "no class token": ({"global_pool": "avg", "qk_norm": True, "pre_norm": True, "class_token": False}, {}),
    "averaged": ({"global_pool": "avg", "reg_tokens": 2}, {"qkv_bias": False}),
}
"""By name: arguments of the implementation, and keys of the config."""


def cases() -> Iterator[Case]:
    """Every kind under three precisions, with and without checkpointing."""
    for name, (arguments, keys) in KINDS.items():
        for checkpointing in ("none", "full"):
            for precision in ("bf16-pure", "amp-bf16", "fp32"):
                job = {
                    "model": {**VIT, **keys}, "implementation": "timm", "implementation_args": arguments,
                    "precision": precision, "activation_checkpointing": checkpointing, "micro_batch_size": ROWS,
                }  # fmt: skip
                yield Case(f"{name} {precision} {checkpointing}", job, _maker(job), _runner(job))


def _maker(job: Mapping[str, Any]) -> Any:
    def make() -> Any:
        with stood_in("torchvision"):
            from timm.layers import Mlp, SwiGLUPacked
            from timm.models.vision_transformer import VisionTransformer
        config, told = job["model"], dict(job["implementation_args"])
        gated = told.pop("mlp_layer", "Mlp") == "SwiGLUPacked"
        drop = config.get("hidden_dropout_prob", 0.0)
        width, inner = config["hidden_size"], config["intermediate_size"]
        module = VisionTransformer(
            img_size=config["image_size"], patch_size=config["patch_size"], num_classes=config["num_labels"], embed_dim=width,
            depth=config["num_hidden_layers"], num_heads=config["num_attention_heads"], qkv_bias=config.get("qkv_bias", True),
            mlp_ratio=(2 if gated else 1) * inner / width + 1e-9, mlp_layer=SwiGLUPacked if gated else Mlp, weight_init="skip",
            pos_drop_rate=drop, proj_drop_rate=drop, attn_drop_rate=config.get("attention_probs_dropout_prob", 0.0), **told,
        )  # fmt: skip
        module.set_grad_checkpointing(job["activation_checkpointing"] == "full")
        return module.train()

    return make


def _runner(job: Mapping[str, Any]) -> Any:
    def run(session: Any, module: Any) -> Any:
        import torch

        side = job["model"]["image_size"]
        dtype = torch.bfloat16 if job["precision"] == "bf16-pure" else torch.float32
        images = torch.zeros(ROWS, 3, side, side, dtype=dtype, device=session.device)
        labels = torch.zeros(ROWS, dtype=torch.int64, device=session.device)

        def micro_batch() -> Any:
            scores = module(images)
            return torch.nn.functional.cross_entropy(scores, labels)

        return micro_batch

    return run
