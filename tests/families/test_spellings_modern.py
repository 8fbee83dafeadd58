"""Mistral, qwen, gemma, phi, olmo, cohere, stablelm and starcoder2: spellings, rules, order, and arrays of jobs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from memcalc.errors import InputError
from memcalc.families._siglip import SiglipVisionConfig
from memcalc.families.base import load_family
from memcalc.layers.base import Stack
from memcalc.layers.transformer import Attention
from memcalc.readers.config import model_from_config, validate
from memcalc.readers.stacking import stack_configs
from tests.families.kept import cases_of

FAMILIES = [
    "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "phi", "phi3",
    "olmo", "olmo2", "olmo3", "cohere", "stablelm", "starcoder2",
]  # fmt: skip
WINDOWED = ["qwen2", "qwen3", "gemma2", "gemma3_text", "olmo3"]
CASES = {name: cases_of(name) for name in FAMILIES}
ALL = [pytest.param(name, case, id=f"{name}-{i}") for name in FAMILIES for i, case in enumerate(CASES[name])]
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 33, "vocab_size": 101, "num_hidden_layers": 6}
GQA = {**SMALL, "num_key_value_heads": 2}
TYPES = {"s": "sliding_attention", "f": "full_attention"}


def read(model_type, **keys):
    """The model of those keys."""
    return model_from_config({"model_type": model_type, **keys})


def described(model) -> dict:
    """Name -> (shape, dtype, role, kind, trainable), and for a layer's attention its window."""
    tensors = {name: (t.shape, t.dtype, t.role, t.kind, t.trainable) for t in model.tensors for name in t.names()}
    windows = {i: node.window for node, places in walk(model.root) if isinstance(node, Attention) for i in places}
    return {**tensors, **windows}


def walk(layer):
    """The layer and all those inside it, each with the indices of the list it stands in."""
    stack = [(layer, None)]
    while stack:
        node, indices = stack.pop()
        yield node, indices
        if isinstance(node, Stack) and indices is None:
            indices = tuple(range(node.count) if node.indices is None else node.indices)
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            found = [value] if dataclasses.is_dataclass(value) else []
            if isinstance(value, list | tuple):
                found = [part for pair in value if isinstance(pair, tuple) for part in pair if dataclasses.is_dataclass(part)]
            stack += [(each, indices) for each in found]


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_keys_left_out_take_the_defaults_of_transformers(model_type, case):
    """A config with nothing but what a person wrote gives the tensors of transformers' complete one."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' configs")
    named = {"architectures": [case["architecture"]]}
    complete = transformers.CONFIG_MAPPING[model_type](**case["config"], **named).to_dict()
    written = read(model_type, **named, **case["config"])
    assert described(written) == described(model_from_config(json.loads(json.dumps(complete, default=str))))


@pytest.mark.parametrize("model_type", [*FAMILIES, "siglip_vision_model"])
def test_every_default_is_that_of_transformers(model_type):
    """Key by key, those that decide no tensor too, a default here is the default of the class there."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' configs")
    config = SiglipVisionConfig if model_type == "siglip_vision_model" else load_family(model_type).config
    theirs = {field.name: field.default for field in dataclasses.fields(transformers.CONFIG_MAPPING[model_type])}
    shared = {name: field.default for name, field in config.model_fields.items() if name in theirs and "_config" not in name}
    assert len(shared) >= (2 if model_type == "gemma3" else 9)
    assert shared == {name: theirs[name] for name in shared}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_architecture_of_transformers_is_built_and_has_a_case(model_type):
    """No class that transformers exports for the family is missing, neither here nor from the cases."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' classes")
    from importlib import import_module

    known = set(load_family(model_type).architectures)
    package = "gemma3" if model_type == "gemma3_text" else model_type
    module = import_module(f"transformers.models.{package}.modeling_{package}")
    config = transformers.CONFIG_MAPPING[model_type]
    classes = {n for n in module.__all__ if n.endswith("Model") or "For" in n} - {
        n for n in module.__all__ if "PreTrained" in n
    }
    meant = {name for name in classes if getattr(transformers, name).config_class is config}
    assert known == meant
    assert {case["architecture"] for case in CASES[model_type]} == known


LINEAR = {"rope_type": "linear", "factor": 2.0}
SPELLINGS = [
    # (family, one spelling, another, a tensor, the shape both must give it)
    ("mistral", {**GQA, "rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
     {**GQA, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}, "model.rotary_emb.inv_freq", (4,)),
    ("mistral", {**GQA, "head_dim": None}, {**GQA, "head_dim": 16}, "model.layers.0.self_attn.k_proj.weight", (32, 64)),
    ("mistral", {**SMALL, "num_key_value_heads": None}, {**SMALL, "num_key_value_heads": 4},
     "model.layers.5.self_attn.v_proj.weight", (64, 64)),
    ("qwen2", {**GQA, "rope_scaling": {}, "rope_theta": 1e6}, {**GQA, "rope_parameters": {"rope_theta": 1e6}},
     "model.rotary_emb.inv_freq", (8,)),
    ("qwen2", {**GQA, "use_sliding_window": True, "max_window_layers": 4},
     {**GQA, "use_sliding_window": True, "layer_types": [TYPES[t] for t in "ffffss"]},
     "model.layers.5.self_attn.q_proj.bias", (64,)),
    ("gemma2", {**GQA, "layer_types": None}, {**GQA, "layer_types": [TYPES[t] for t in "sfsfsf"]},
     "model.layers.5.post_feedforward_layernorm.weight", (64,)),
    ("gemma2", {**GQA, "layer_types": ["attention"] * 6}, {**GQA, "layer_types": ["full_attention"] * 6},
     "model.rotary_emb.inv_freq", (128,)),
    ("gemma3_text", {**GQA, "sliding_window_pattern": 3}, {**GQA, "layer_types": [TYPES[t] for t in "ssfssf"]},
     "model.rotary_emb.full_attention_inv_freq", (128,)),
    ("gemma3_text", {**GQA, "_sliding_window_pattern": 2}, {**GQA, "sliding_window_pattern": 2},
     "model.layers.5.self_attn.q_norm.weight", (256,)),
    ("gemma3_text", {**GQA, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                     "rope_scaling": {**LINEAR, "partial_rotary_factor": 0.25}},
     {**GQA, "rope_parameters": {"full_attention": {**LINEAR, "partial_rotary_factor": 0.25}, "sliding_attention": None}},
     "model.rotary_emb.full_attention_inv_freq", (32,)),
    ("gemma3", {"text_config": GQA, "vision_config": None}, {"text_config": {**GQA, "model_type": "gemma3_text"}},
     "model.vision_tower.embeddings.position_embedding.weight", (196, 768)),
    ("gemma3", {"text_config": {**GQA, "sliding_window_pattern": 2}},
     {"text_config": {**GQA, "layer_types": [TYPES[t] for t in "sfsfsf"]}},
     "model.language_model.rotary_emb.full_attention_inv_freq", (128,)),
    ("olmo3", {**GQA, "rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}},
     {**GQA, "rope_parameters": {"full_attention": {**LINEAR, "partial_rotary_factor": 0.5}},
      "layer_types": [TYPES[t] for t in "sssfss"]}, "model.rotary_emb.full_attention_inv_freq", (4,)),
    ("phi", {**GQA, "partial_rotary_factor": 0.4}, {**GQA, "rope_parameters": {"partial_rotary_factor": 0.4}},
     "model.rotary_emb.inv_freq", (3,)),
    ("phi3", {**GQA, "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope"}},
     {**GQA, "rope_parameters": {"rope_type": "longrope", "partial_rotary_factor": 0.75}}, "model.rotary_emb.inv_freq", (6,)),
    ("stablelm", {**GQA, "rope_scaling": None}, {**GQA, "rope_parameters": {"partial_rotary_factor": 0.25}},
     "model.rotary_emb.inv_freq", (2,)),
    ("cohere", {**GQA, "use_qk_norm": True, "layer_types": None}, {**GQA, "use_qk_norm": True, "tie_word_embeddings": True},
     "model.layers.0.self_attn.k_norm.weight", (2, 16)),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "one", "other", "name", "shape"), SPELLINGS)
def test_spellings_read_alike(model_type, one, other, name, shape):
    """Two ways to write one model give the same tensors, and the one the spelling is about has its hand-computed shape."""
    assert described(read(model_type, **one)) == described(read(model_type, **other))
    assert described(read(model_type, **one))[name][0] == shape


def test_the_older_hub_config_of_gemma_3_gives_its_published_count():
    """google/gemma-3-4b-it's config.json, written before transformers 5, reads as the count KerasHub's gemma3_presets.py gives
    the preset gemma3_4b, 4,299,915,632; the Hub's vocabulary has 64 rows more than that preset's.
    """
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }  # fmt: skip
    vision = {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": vision}
    model = read("gemma3", **whole, mm_tokens_per_image=256, torch_dtype="bfloat16")
    assert model.num_parameters == 4_299_915_632 + 64 * 2560


@pytest.mark.parametrize(
    ("model_type", "keys", "sentence"),
    [
        ("qwen3", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 2}, "num_hidden_layers = 3"),
        ("gemma2", {"layer_types": ["mamba"] * 26}, "model.layer_types"),
        ("gemma2", {"num_attention_heads": 7, "num_key_value_heads": 7}, "model.num_attention_heads: 7 does not divide"),
        ("gemma3", {"vision_config": {"model_type": "clip_vision_model"}}, "model.vision_config.model_type"),
        (
            "gemma3",
            {"text_config": {"num_attention_heads": 7, "num_key_value_heads": 7}},
            "model.text_config.num_attention_heads",
        ),
        ("stablelm", {"num_attention_heads": 7, "num_key_value_heads": 7}, "model.num_attention_heads: 7 does not divide"),
        ("starcoder2", {"num_key_value_heads": 5}, "model.num_key_value_heads: 5 does not divide num_attention_heads = 24"),
        ("olmo", {"num_attention_heads": 0}, "model.num_attention_heads"),
        ("phi", {"partial_rotary_factor": 1.5}, "model.partial_rotary_factor"),
    ],
)
def test_what_no_model_can_be_is_refused_by_its_path(model_type, keys, sentence):
    """A config that transformers would refuse, or could not run, is an error that names the key."""
    with pytest.raises(InputError) as caught:
        read(model_type, **keys)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters_come_in_the_order_of_the_module(model_type):
    """With one layer of each kind the parameters are listed as the module registers them, which flat buffers depend on."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    for case in CASES[model_type]:
        keys = {key: value for key, value in case["config"].items() if key != "layer_types"}
        one = {"num_hidden_layers": 1}
        keys |= {"text_config": one, "vision_config": one} if model_type == "gemma3" else one
        with torch.device("meta"):
            module = getattr(transformers, case["architecture"])(transformers.CONFIG_MAPPING[model_type](**keys))
        model = read(model_type, architectures=[case["architecture"]], **keys)
        assert [name for t in model.parameters for name in t.names()] == [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("model_type", WINDOWED)
def test_each_layer_keeps_its_window_and_dropout(model_type):
    """Layer by layer, the window, dropout, head size and cap of attention are those of transformers' own layer."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    switches = {"attention_dropout": 0.25, "sliding_window": 12}
    for more in ({}, {"use_sliding_window": True, "max_window_layers": 4}, {"use_bidirectional_attention": True}):
        keys = {**GQA, **switches, **more, "num_hidden_layers": 8, "eos_token_id": 2}
        config = transformers.CONFIG_MAPPING[model_type](**keys)
        with torch.device("meta"):
            layers = transformers.AutoModel.from_config(config).layers
        ours = {
            index: (node.window, node.dropout, node.head_dim, node.softcap, node.causal)
            for node, indices in walk(read(model_type, **keys).root)
            if isinstance(node, Attention)
            for index in indices
        }
        theirs = {
            index: (a.sliding_window, a.attention_dropout, a.head_dim, getattr(a, "attn_logit_softcapping", None), a.is_causal)
            for index, a in enumerate(layer.self_attn for layer in layers)
        }
        assert ours == theirs


def grown(config, times):
    """The same structure with every whole number another, heads still dividing what they divide."""
    keys = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if hasattr(type(value), "model_fields") and hasattr(value, "divides"):
            keys[name] = grown(value, times)
        elif isinstance(value, int) and not isinstance(value, bool):
            keys[name] = value + 5 * times if name == "num_hidden_layers" else value * (times + 1)
    return config.model_copy(update=keys)


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_arrays_of_jobs_give_what_each_job_gives(model_type, case):
    """One build over three configs' numbers stacked equals three builds, tensor by tensor, element by element."""
    np = pytest.importorskip("numpy")
    if case["config"].get("layer_types"):
        assert "num_hidden_layers" in case["config"], "a list of types fixes the depth"
    family = load_family(model_type)
    one = validate(family, case["config"], "model")
    if getattr(one, "layer_types", None) is not None:
        jobs = [one.model_copy(update={"hidden_size": one.hidden_size * n, "vocab_size": 100 + n}) for n in (1, 2, 3)]
    else:
        jobs = [grown(one, times) for times in (0, 1, 2)]
    together = list(family.build(stack_configs(jobs), case["architecture"]).root.tensors())
    for index, job in enumerate(jobs):
        alone = list(family.build(job, case["architecture"]).root.tensors())
        assert [(t.name, t.dtype, t.kind, t.role, t.trainable, len(t.shape)) for t in alone] == [
            (t.name, t.dtype, t.kind, t.role, t.trainable, len(t.shape)) for t in together
        ]
        for own, every in zip(alone, together, strict=True):
            for ours, theirs in ((own.elements, every.elements), (own.count, every.count), (own.numel, every.numel)):
                value = np.broadcast_to(np.asarray(theirs), (3,))[index]
                assert ours == value, own.name
                assert np.asarray(value).dtype.kind == "i", own.name
