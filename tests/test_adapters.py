"""LoRA on a model known from its config, held against peft itself, name by name and shape by shape."""

from __future__ import annotations

import pytest

from memcalc.adapters import with_adapters
from memcalc.errors import InputError, NotModelledError
from memcalc.readers.source import read_model

CONFIGS = {
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 16},
    "llama": {"hidden_size": 32, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 61, "tie_word_embeddings": True},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 61},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61,
            "word_embed_proj_dim": 16},
}  # fmt: skip
CASES = [
    ("gpt2", {"r": 8}),
    ("gpt2", {"r": 3, "target_modules": ["c_proj", "c_fc"], "lora_alpha": 16}),
    ("llama", {}),
    ("llama", {"r": 5, "target_modules": ["mlp.gate_proj", "o_proj"], "use_rslora": True}),
    ("t5", {"r": 2}),
    ("opt", {"r": 4, "target_modules": ["q_proj", "fc1", "project_in"]}),
    *((family, {"r": 2, "target_modules": "all-linear"}) for family in CONFIGS),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_adapted_models_have_peft_s_own_tensors(family, options):
    """Every tensor of peft's model, its name, shape and whether it trains, is the predicted one."""
    peft = pytest.importorskip("peft", reason="peft is the oracle")
    transformers = pytest.importorskip("transformers", reason="the adapted model is a real one")
    torch = pytest.importorskip("torch")
    keys = CONFIGS[family]
    config = {"model_type": family, **keys}
    read = read_model(config)
    with torch.device("meta"):
        real = getattr(transformers, read.architecture)._from_config(transformers.CONFIG_MAPPING[family](**keys))
        adapted = peft.get_peft_model(real, peft.LoraConfig(**options))
    theirs = {name: (tuple(p.shape), p.requires_grad) for name, p in adapted.named_parameters()}
    model = with_adapters(read, options)
    ours = {name: (t.shape, t.trainable) for t in model.parameters for name in t.names()}
    assert ours == theirs
    assert {name for t in model.buffers for name in t.names()} == {name for name, _ in adapted.named_buffers()}


def test_what_starts_as_zeros_is_said():
    """B starts as zeros and A does not, which some optimizers keep less for."""
    model = with_adapters(read_model({"model_type": "gpt2", **CONFIGS["gpt2"]}), {"r": 2})
    assert {t.name.rpartition("lora_")[2][:1]: t.zeros for t in model.parameters if t.trainable} == {"A": False, "B": True}


@pytest.mark.parametrize(
    ("family", "options", "kind", "message"),
    [
        ("llama", {"r": 0}, InputError, "lora.r: 0 is not a rank; give 1 or more"),
        ("llama", {"target_modules": ["q_porj"]}, InputError, "is no module of"),
        ("opt", {"target_modules": ".*proj"}, NotModelledError, "is a pattern"),
        ("opt", {"layer_replication": [[0, 1]]}, NotModelledError, "is not modelled yet; leave it out"),
        (
            "opt",
            {"target_modules": ["embed_tokens"]},
            NotModelledError,
            "is read as embedding, whose adapters are not modelled yet",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused(family, options, kind, message):
    """A rank that is none, targets that are not there and kinds of adapters that are not modelled each say so."""
    with pytest.raises(kind) as refused:
        with_adapters(read_model({"model_type": family, **CONFIGS[family]}), options)
    assert message in str(refused.value)


def test_a_family_without_default_targets_asks_for_them():
    """Where peft has no default for a family, the modules must be named."""
    with pytest.raises(InputError, match=r"lora\.target_modules.*peft has no default for phi3"):
        with_adapters(read_model({"model_type": "phi3", "hidden_size": 32, "num_hidden_layers": 1}), {})
