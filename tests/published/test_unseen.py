"""Records nobody has seen: other families, spellings, kinds of fields; each is read or says why not, and stops no other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from benchmarks.published.commits import dates
from benchmarks.published.kinds import KINDS
from benchmarks.published.models import CLASSES, config_of
from benchmarks.published.predict import main, predict
from benchmarks.published.records import read, readable
from benchmarks.published.scope import why_not
from memcalc.errors import InputError
from memcalc.readers.source import read_model
from tests.published.test_published import SMALL, record

CORE = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96}
WHOLE = {**CORE, "intermediate_size": 128, "num_key_value_heads": 2, "tie_word_embeddings": False}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
          "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
          "first_k_dense_replace": 1}  # fmt: skip
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mistral", "qwen2", "olmo", "olmo2", "starcoder2", "cohere", "opt"), WHOLE),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "bloom", "mpt"), CORE), "gptj": {**CORE, "rotary_dim": 8},
    "mixtral": {**WHOLE, **ROUTED}, "qwen2_moe": {**WHOLE, **ROUTED, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**WHOLE, **ROUTED, "head_dim": 16}, "deepseek_v2": {**WHOLE, **LATENT, "num_key_value_heads": 4},
    "deepseek_v3": {**WHOLE, **LATENT, "num_key_value_heads": 4, "q_lora_rank": 16},
    "stablelm": {**WHOLE, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    "gpt_neo": {**CORE, "attention_types": [[["global", "local"], 1]]},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 96},
    "t5": {"num_layers": 2, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "vocab_size": 96},
    "vit": {**CORE, "intermediate_size": 128, "image_size": 32, "patch_size": 16, "num_labels": 10},
    "roberta": {**WHOLE, "architecture": "RobertaForSequenceClassification", "max_position_embeddings": 66},
    "distilbert": {**WHOLE, "architecture": "DistilBertForSequenceClassification", "max_position_embeddings": 64},
}  # fmt: skip
"""By family, the keys of a small model as a record would state them."""


COUNTED = {
    "mistral": 86336, "qwen2": 86592, "olmo": 86016, "olmo2": 86528, "starcoder2": 71040, "cohere": 86208, "opt": 210560,
    "gpt2": 171776, "gpt_bigcode": 159296, "bloom": 106368, "mpt": 104768, "gptj": 111712, "mixtral": 234304,
    "qwen2_moe": 99520, "qwen3_moe": 86912, "deepseek_v2": 85600, "deepseek_v3": 81536, "stablelm": 86912, "gpt_neo": 236928,
    "mamba": 71616, "t5": 171008, "vit": 117322, "roberta": 81858, "distilbert": 81602,
}  # fmt: skip
"""Parameters of the classes of transformers 5.23.0, made of the same configs (AutoConfig.for_model, on the device meta)."""


@pytest.mark.parametrize("arch", sorted(KINDS))
def test_a_family_s_keys_are_its_config(arch):
    """What a record states is a model of that family with those sizes; without a key that it needs, it is none."""
    model = {"name": "small", "arch": arch, **STATED[arch]}
    config = config_of(record(model=model, seq_len=32))
    found = read_model(config)
    assert (found.family, found.architecture) == (KINDS[arch].model_type, config["architectures"][0])
    assert found.num_parameters == COUNTED[arch]
    less = {key: value for key, value in model.items() if key not in ("vocab_size", "image_size")}
    assert config_of(record(model=less)) is None


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("opt", {"name": "facebook/opt-350m"}), ("t5", {"name": "google/flan-t5-large"}), ("roberta", {"architecture": None}),
        ("qwen2", {"tie_word_embeddings": None}), ("mixtral", {"num_experts": "eight"}), ("exaone", {}),
    ],
)  # fmt: skip
def test_what_is_not_stated_is_not_guessed(arch, changes):
    """Models that differ in more than size, heads that are not named and numbers in words are refused with the reason."""
    model = {"name": "small", "arch": arch, **STATED.get(arch, WHOLE), **changes}
    assert [reason.feature for reason in why_not(record(model=model), "analytic")] == ["model"]


def test_a_window_is_stated_where_a_sequence_is_longer():
    """Mistral's first model looks back on 4,096 tokens and its later ones on all: a longer sequence tells them apart."""
    model = {"name": "small", "arch": "mistral", **WHOLE}
    assert config_of(record(model=model, seq_len=4096))["sliding_window"] is None
    assert config_of(record(model=model, seq_len=8192)) is None
    assert config_of(record(model={**model, "sliding_window": None}, seq_len=8192))["sliding_window"] is None


def test_other_words_for_the_same():
    """Keys, families, numbers, kinds and grades as others write them make the same job."""
    usual = record()
    model = {"name": "small", "arch": "Llama-3", "n_layers": "2", "dim": 64.0, "n_heads": 4, "n_kv_heads": 2,
             "ffn_hidden_size": "128", "padded_vocab_size": 512, "tie_word_embeddings": False}  # fmt: skip
    told = record(model=model, kind="training", completeness="a", micro_batch_size="2", seq_len="64", world_size=1.0,
                  source={"repo": "https://github.com/huggingface/transformers/"})  # fmt: skip
    assert config_of(told) == config_of(usual)
    assert predict(told, engine="analytic") == predict(usual, engine="analytic")


def test_a_family_s_own_keys_are_what_transformers_reads():
    """OPT's config has no intermediate_size in transformers, which would leave ffn_dim at its default and say nothing."""
    config = config_of(record(model={"name": "small", "arch": "opt", **STATED["opt"]}))
    assert config["ffn_dim"] == STATED["opt"]["intermediate_size"]
    assert "intermediate_size" not in config


def test_small_architectures_are_told_apart():
    """No family is in both tables, and each of either is one."""
    assert not set(KINDS) & set(CLASSES)
    assert set(STATED) == set(KINDS)


def odd() -> list[Any]:
    """Records with whatever a field may come to."""
    changes: list[dict[str, Any]] = [
        {"model": None}, {"model": "Llama 3"}, {"model": {}}, {"source": None}, {"source": "a page"}, {"measured": None},
        {"measured": {"metric": "max_memory_allocated", "bytes": "12,000,000"}}, {"measured": {"bytes": []}},
        {"world_size": None}, {"world_size": "8 (2x4)", "sharding": None}, {"precision": None}, {"optimizer": ["a", "b"]},
        {"gradient_accumulation_steps": "varies"}, {"trainable": None}, {"trainable": {"method": "lora"}},
        {"trainable": {"method": "lora", "r": "8", "target_modules": "q_proj, v_proj"}}, {"kind": "bench"},
        {"completeness": "Z"}, {"software": 2024}, {"notes": ["a"]}, {"seq_len": [1, 2]}, {"micro_batch_size": -1},
        {"gpu": 80}, {"attention": 3}, {"sharding": {"fsdp": 8}, "world_size": 8}, {"activation_checkpointing": True},
        {"source": {"repo": "Lightning-AI/litgpt", "code_commit": "deadbeef"}},
        {"source": {"repo": "pytorch/torchtune", "commit": 5}}, {"source": {"repo": "pytorch/torchtitan"}},
        {"source": {"repo": "NVIDIA/Megatron-LM"}, "model": {"name": "Megatron-LM", "arch": "gpt", "megatron_args": "x"}},
        {"source": {"repo": "pytorch/ao"}, "model": {"name": "timm/vit", "arch": "vit"}},
        {"kind": "inference", "seq_len": {"prompt": 5}}, {"kind": "inference", "precision": None}, {"micro_batch_size": 10**13},
    ]  # fmt: skip
    listed = [{**copy.deepcopy(SMALL), "id": f"odd-{index}", **change} for index, change in enumerate(changes)]
    return [*listed, "words", None, {"id": "bare"}, {**SMALL, "id": "odd-3"}, {**SMALL, "id": "odd-4"}]


def test_an_odd_record_stops_no_other(tmp_path, capsys):
    """Of a file of odd records and a plain one, the plain one is predicted, and every other has a line of its own."""
    path = tmp_path / "odd.yaml"
    listed = [*odd(), copy.deepcopy(SMALL)]
    path.write_text(yaml.safe_dump({"records": listed}), encoding="utf-8")
    found, wrong = readable(path)
    assert len(found) + len(wrong) == len(listed)
    assert main([str(path), "--engine", "analytic"]) == 0
    said = capsys.readouterr().out
    assert "| small | A | allocated |" in said
    assert said.count("cannot be read: ") == len(wrong) > 8
    for each in found:
        assert each.id in said
    assert main([str(path), "--only", "none of them"]) == 0


def test_dates_of_commits():
    """Each project has its commits, and a date for each."""
    assert {name: len(found) > 1000 for name, found in dates().items()} == dict.fromkeys(dates(), True)
    assert len(dates()) == 3


def test_a_record_that_is_none_is_refused():
    """A list entry that is no mapping says so."""
    with pytest.raises(InputError, match="is no record"):
        read("words")
