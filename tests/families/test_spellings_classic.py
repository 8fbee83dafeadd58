"""GPT-2 and its kin, BLOOM, Falcon, OPT, MPT, Mamba and the mixtures: spellings, defaults, rules, published counts."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from memcalc.errors import InputError
from memcalc.families.base import load_family
from tests.families.classic import CASES, FAMILIES, described, read

ALL = [pytest.param(name, case, id=f"{name}-{i}") for name in FAMILIES for i, case in enumerate(CASES[name])]
GPT2 = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
OLD = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101}
MOE = {**GPT2, "num_key_value_heads": 2}
OWN = ["MPTForCausalLM"]
"""Class names that checkpoints on the Hub carry and transformers does not export."""


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_keys_left_out_take_the_defaults_of_transformers(model_type, case):
    """A config with nothing but what a person wrote gives the tensors of transformers' complete one."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' configs")
    named = {"architectures": [case["architecture"]]}
    complete = transformers.CONFIG_MAPPING[model_type](**case["config"], **named).to_dict()
    complete = json.loads(json.dumps(complete, default=str))
    assert described(read(model_type, **named, **case["config"])) == described(read(**complete))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_architecture_of_transformers_is_built_and_has_a_case(model_type):
    """No model class that transformers exports for the family is missing, neither here nor from the cases."""
    pytest.importorskip("transformers", reason="the oracle is transformers' classes")
    exported = import_module(f"transformers.models.{model_type}.modeling_{model_type}").__all__
    models = {name for name in exported if "PreTrained" not in name and ("For" in name or name.endswith("Model"))}
    assert set(load_family(model_type).architectures) - set(OWN) == models
    assert {case["architecture"] for case in CASES[model_type]} == models


SPELLINGS = [
    # (family, one spelling, another, a tensor, the shape both must give it)
    ("gpt2", {**OLD, "n_inner": 50, "n_positions": 9}, {**GPT2, "intermediate_size": 50, "max_position_embeddings": 9},
     "transformer.h.2.mlp.c_fc.weight", (48, 50)),
    ("gpt2", {**OLD, "n_ctx": 9}, {**GPT2, "n_positions": 9}, "transformer.wpe.weight", (9, 48)),
    ("gpt2", {**OLD, "n_inner": None}, {**GPT2, "intermediate_size": 192}, "transformer.h.0.mlp.c_proj.weight", (192, 48)),
    ("gpt_bigcode", {**OLD, "n_inner": 50, "n_positions": 9}, {**GPT2, "intermediate_size": 50, "n_ctx": 9},
     "transformer.h.2.attn.c_attn.weight", (72, 48)),
    ("gpt_bigcode", {**OLD, "multi_query": False}, {**GPT2, "multi_query": False, "num_key_value_heads": 4},
     "transformer.h.0.attn.c_attn.bias", (144,)),
    ("gptj", {**OLD, "n_positions": 9, "n_inner": 50}, {**GPT2, "n_ctx": 9, "intermediate_size": 50},
     "transformer.h.2.attn.embed_positions", (9, 64)),
    ("gptj", {**OLD, "rotary_dim": 0}, {**GPT2, "rotary_dim": 48}, "transformer.h.2.attn.embed_positions", (2048, 48)),
    ("gpt_neo", {"hidden_size": 48, "num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "local"], 1]]},
     {**GPT2, "vocab_size": 50257, "attention_layers": ["global", "local", "local"]},
     "transformer.h.2.attn.attention.out_proj.bias", (48,)),
    ("gpt_neo", {**GPT2, "num_layers": 24, "num_hidden_layers": 24, "attention_types": None},
     {**GPT2, "num_hidden_layers": 24, "attention_types": [[["global", "local"], 12]], "intermediate_size": 192},
     "transformer.h.23.attn.attention.bias", (1, 1, 2048, 2048)),
    ("gpt_neox", {**GPT2, "rotary_pct": 0.5},
     {**GPT2, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "gpt_neox.rotary_emb.inv_freq", (3,)),
    ("gpt_neox", {**GPT2, "rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
     {**GPT2, "rope_scaling": {"rope_type": "linear", "partial_rotary_factor": 1.0}}, "gpt_neox.rotary_emb.inv_freq", (6,)),
    ("gpt_neox", GPT2, {**GPT2, "rotary_pct": 0.25}, "gpt_neox.rotary_emb.original_inv_freq", (2,)),
    ("gpt_neox", {**GPT2, "rotary_pct": 0.5, "partial_rotary_factor": 1.0}, {**GPT2, "rotary_pct": 0.5},
     "gpt_neox.rotary_emb.inv_freq", (3,)),
    ("opt", {**GPT2, "ffn_dim": 50}, {**GPT2, "intermediate_size": 50}, "model.decoder.layers.2.fc1.weight", (50, 48)),
    ("opt", {**GPT2, "word_embed_proj_dim": 48}, {**GPT2, "word_embed_proj_dim": None},
     "model.decoder.embed_positions.weight", (2050, 48)),
    ("bloom", {"n_embed": 48, "n_layer": 3, "num_attention_heads": 4, "vocab_size": 101},
     {"hidden_size": 48, "num_hidden_layers": 3, "n_head": 4, "vocab_size": 101},
     "transformer.h.2.self_attention.query_key_value.weight", (144, 48)),
    ("falcon", {"n_embed": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101, "ffn_hidden_size": 50},
     {**GPT2, "intermediate_size": 50, "num_ln_in_parallel_attn": 1}, "transformer.h.2.self_attention.query_key_value.weight",
     (72, 48)),
    ("falcon", {"hidden_size": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101, "n_head_kv": 2},
     {**GPT2, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
     "transformer.h.2.self_attention.query_key_value.weight", (96, 48)),
    ("falcon", {**GPT2, "multi_query": False}, {**GPT2, "num_kv_heads": 4, "multi_query": False},
     "transformer.h.0.self_attention.query_key_value.weight", (144, 48)),
    ("mpt", {"d_model": 48, "n_layers": 3, "n_heads": 4, "vocab_size": 101, "architectures": ["MPTForCausalLM"]},
     {**GPT2, "architectures": ["MptForCausalLM"], "attn_config": {"attn_type": "multihead_attention", "attn_impl": "torch"}},
     "transformer.blocks.2.attn.Wqkv.weight", (144, 48)),
    ("mamba", {"d_model": 50, "n_layer": 3, "time_step_rank": 4, "intermediate_size": 100},
     {"hidden_size": 50, "num_hidden_layers": 3, "time_step_rank": "auto"}, "backbone.layers.2.mixer.x_proj.weight", (36, 100)),
    ("mixtral", {**MOE, "num_experts": 3}, {**MOE, "num_local_experts": 3}, "model.layers.2.mlp.experts.down_proj",
     (3, 48, 14336)),
    ("mixtral", {**MOE, "rope_scaling": {"type": "linear", "partial_rotary_factor": 0.5}},
     {**MOE, "partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "linear"}}, "model.rotary_emb.inv_freq", (3,)),
    ("qwen2_moe", {**MOE, "num_local_experts": 3, "mlp_only_layers": None}, {**MOE, "num_experts": 3, "mlp_only_layers": []},
     "model.layers.2.mlp.gate.weight", (3, 48)),
    ("qwen3_moe", {**MOE, "num_local_experts": 3}, {**MOE, "num_experts": 3, "head_dim": 12},
     "model.layers.2.self_attn.q_norm.weight", (12,)),
    ("deepseek_v2", {**GPT2, "n_routed_experts": 3}, {**GPT2, "num_experts": 3}, "model.layers.2.mlp.gate.weight", (3, 48)),
    ("deepseek_v3", {**GPT2, "n_routed_experts": 3, "num_hidden_layers": 4},
     {**GPT2, "num_local_experts": 3, "num_hidden_layers": 4}, "model.layers.3.mlp.gate.e_score_correction_bias", (3,)),
    ("gpt_oss", {**MOE, "num_experts": 3, "layer_types": None},
     {**MOE, "num_local_experts": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
     "model.layers.2.mlp.experts.gate_up_proj", (3, 48, 5760)),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "one", "other", "name", "shape"), SPELLINGS)
def test_spellings_read_alike(model_type, one, other, name, shape):
    """Two ways to write one model give the same tensors, and the one the spelling is about has its hand-computed shape."""
    assert described(read(model_type, **one)) == described(read(model_type, **other))
    assert described(read(model_type, **one))[name][0] == shape


@pytest.mark.parametrize(
    ("model_type", "keys", "sentence"),
    [
        ("gpt2", {"n_head": 7}, "model.n_head: 7 does not divide hidden_size = 768"),
        ("gpt_neo", {"num_layers": 6}, "is not the 24 layers that attention_types gives a kind"),
        ("gpt_neo", {"attention_types": [[["sideways"], 24]]}, "model.attention_types"),
        ("gpt_bigcode", {"add_cross_attention": True}, "model.add_cross_attention: True does not go with multi_query"),
        ("gpt_bigcode", {"num_key_value_heads": 4}, "model.num_key_value_heads: 4 does not go with multi_query"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "model.num_kv_heads: 3 does not divide"),
        ("mpt", {"attn_config": {"attn_type": "grouped_query_attention"}}, "model.attn_config.attn_type"),
        ("mamba", {"time_step_rank": "fast"}, "model.time_step_rank"),
        ("mixtral", {"expert_layout": "scattered"}, "model.expert_layout"),
        ("gpt_oss", {"expert_layout": "separate"}, "model.expert_layout"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "model.layer_types"),
        ("qwen2_moe", {"layer_types": ["full_attention"] * 3}, "are 3 for num_hidden_layers = 24"),
        ("qwen3_moe", {"num_hidden_layers": 10**6}, "model.num_hidden_layers"),
        ("deepseek_v2", {"num_attention_heads": 7}, "model.num_attention_heads: 7 does not divide hidden_size = 4096"),
    ],
)
def test_what_no_model_can_be_is_refused_by_its_path(model_type, keys, sentence):
    """A config that transformers would refuse, or could not run, is an error that names the key."""
    with pytest.raises(InputError) as caught:
        read(model_type, **keys)
    assert sentence in str(caught.value)


def test_a_falcon_of_the_old_architecture_does_not_read_its_key_value_heads():
    """falcon-7b's config says num_kv_heads 71 beside multi_query, and has one head of keys and values all the same."""
    model = read("falcon", num_kv_heads=71, num_hidden_layers=1)
    assert described(model)["transformer.h.0.self_attention.query_key_value.weight"][0] == (4544 + 2 * 64, 4544)
    assert read("falcon", num_kv_heads=5, num_hidden_layers=1).num_parameters == model.num_parameters


def test_the_tied_head_of_gptj_keeps_its_bias():
    """GPT-J's language-model head has a bias even where its weight is the embedding's, and says whose the weight is."""
    model = read("gptj", tie_word_embeddings=True, n_layer=1)
    assert model.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert [name for name in described(model) if name.startswith("lm_head")] == ["lm_head.bias"]
