"""Kinds guessed from names, held to the families' own tensors and to hand-picked traps."""

from __future__ import annotations

import pytest

from memcalc.families.base import known_families, load_family
from memcalc.readers.config import model_from_config
from memcalc.readers.names import Stored, ambiguous_owners, described
from tests.families.kept import STEMS, cases_of


@pytest.mark.parametrize("stem", [stem for stem in known_families() if stem in STEMS])
def test_guesses_agree_with_the_family(stem):
    """For every family, name and shape alone give each tensor the kind and role its layers give it."""
    checked = 0
    for case in cases_of(stem)[:6]:
        config = {"model_type": load_family(stem).model_type, "architectures": [case["architecture"]], **case["config"]}
        tensors = [(name, tensor) for tensor in model_from_config(config).tensors for name in tensor.names()]
        if len(tensors) > 5000:
            continue
        guesses = described(Stored(name, tensor.shape, tensor.dtype) for name, tensor in tensors)
        for guess, (name, tensor) in zip(guesses, tensors, strict=True):
            if name == "lm_head.decoder.weight":  # xlm-roberta ties its table to the head: it is both
                continue
            assert (name, guess.kind, guess.role) == (name, tensor.kind, tensor.role)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind", "role"),
    [
        ("transformer.h.0.attn.bias", (1, 1, 1024, 1024), "float32", "other", "buffer"),
        ("transformer.h.0.attn.masked_bias", (), "float32", "other", "buffer"),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 64, 64), "bool", "other", "buffer"),
        ("bert.embeddings.position_ids", (1, 512), "int64", "other", "buffer"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (64,), "float32", "other", "buffer"),
        ("embed_out.weight", (50432, 64), "float16", "linear", "parameter"),
        ("albert.encoder.embedding_hidden_mapping_in.weight", (64, 16), "float32", "linear", "parameter"),
        ("embeddings.patch_embeddings.projection.weight", (64, 3, 16, 16), "float32", "conv", "parameter"),
        ("backbone.layers.0.mixer.conv1d.weight", (64, 1, 4), "float32", "conv", "parameter"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "float32", "embedding", "parameter"),
        ("mlp.experts.gate_up_proj", (8, 64, 32), "float32", "expert", "parameter"),
        ("self_attn.in_proj_weight", (192, 64), "float32", "linear", "parameter"),
        ("scale.weight", (64,), "float32", "other", "parameter"),
        ("weight", (3, 4), "float32", "linear", "parameter"),
        ("cls_token", (1, 1, 64), "float32", "other", "parameter"),
    ],
)
def test_a_trap(name, shape, dtype, kind, role):
    """Names that a careless rule takes for something else."""
    (tensor,) = described([Stored(name, shape, dtype)])
    assert (tensor.kind, tensor.role) == (kind, role)


def test_a_bias_follows_its_weight():
    """A bias is read by the operator that reads the weight beside it, and batch norms are told by their statistics."""
    entries = [
        Stored("0.weight", (8, 3, 3, 3), "float32"), Stored("0.bias", (8,), "float32"),
        Stored("1.weight", (8,), "float32"), Stored("1.bias", (8,), "float32"), Stored("1.running_mean", (8,), "float32"),
        Stored("2.weight", (8, 8), "float32"), Stored("2.bias", (8,), "float32"),
    ]  # fmt: skip
    kinds = [tensor.kind for tensor in described(entries) if tensor.role == "parameter"]
    assert kinds == ["conv", "conv", "batch_norm", "batch_norm", "linear", "linear"]
    assert ambiguous_owners([Stored(f"*.{entry.name[2:]}", *entry[1:]) for entry in entries]) == {"*"}


def test_whole_numbers_do_not_train():
    """A packed or integer tensor is a parameter that receives no gradient; every float does."""
    tensors = described(
        [Stored("a.qweight", (4, 4), "int32"), Stored("a.scales", (4,), "float16"), Stored("b", (2,), "complex64")]
    )
    assert [tensor.trainable for tensor in tensors] == [False, True, True]
