"""The classic families' layer objects beside transformers' modules: order, windows, dropouts, and arrays of jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.families._alternating import matching, others, periodic
from memcalc.families.base import load_family
from memcalc.layers.latent_attention import LatentAttention
from memcalc.layers.moe import Router
from memcalc.layers.transformer import Attention, Block, FusedAttention
from memcalc.readers.config import validate
from memcalc.readers.stacking import stack_configs
from tests.families.classic import CASES, FAMILIES, MIXTURES, by_layer, read

ALL = [pytest.param(name, case, id=f"{name}-{i}") for name in FAMILIES for i, case in enumerate(CASES[name])]
ONE = {"num_hidden_layers": 1, "num_layers": 1, "n_layer": 1, "n_layers": 1}
SMALL = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 6, "vocab_size": 33}


def module_of(model_type, architecture, keys):
    """The module transformers builds, on the meta device."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    with torch.device("meta"):
        return getattr(transformers, architecture)(transformers.CONFIG_MAPPING[model_type](**keys))


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_parameters_come_in_the_order_of_the_module(model_type, case):
    """With one layer the parameters are listed as the module registers them, which flat buffers depend on."""
    keys = {key: value for key, value in case["config"].items() if key not in ("layer_types", "attention_types", *ONE)}
    keys["num_hidden_layers"] = 1
    if model_type == "gpt_neo":
        keys["attention_types"] = [[["local"], 1]]
    module = module_of(model_type, case["architecture"], keys)
    model = read(model_type, architectures=[case["architecture"]], **keys)
    assert [name for t in model.parameters for name in t.names()] == [name for name, _ in module.named_parameters()]


SLIDING = "sliding_attention"
WINDOWS = [
    ("mixtral", {"num_key_value_heads": 2}),
    ("mixtral", {"num_key_value_heads": 2, "sliding_window": 12}),
    ("qwen2_moe", {"num_key_value_heads": 2, "sliding_window": 12}),
    ("qwen2_moe", {"num_key_value_heads": 2, "sliding_window": 12, "use_sliding_window": True, "max_window_layers": 4,
                   "decoder_sparse_step": 2}),
    ("qwen2_moe", {"num_key_value_heads": 2, "sliding_window": 12, "use_sliding_window": True, "decoder_sparse_step": 3,
                   "layer_types": ["sliding_attention", "full_attention"] * 3, "mlp_only_layers": [2]}),
    ("qwen3_moe", {"num_key_value_heads": 2, "sliding_window": 12}),
    ("qwen3_moe", {"num_key_value_heads": 2, "sliding_window": 12, "use_sliding_window": True}),
    ("gpt_oss", {"num_key_value_heads": 2, "sliding_window": 12}),
    ("gpt_oss", {"num_key_value_heads": 2, "sliding_window": 12, "layer_types": ["full_attention"] * 5 + [SLIDING]}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys"), WINDOWS)
def test_each_layer_keeps_its_window_dropout_and_choice_of_experts(model_type, keys):
    """Layer by layer, window, dropout and head size of attention and the experts chosen are those of transformers' layer."""
    keys = {**SMALL, **keys, "attention_dropout": 0.25, "num_experts": 7, "num_experts_per_tok": 3}
    model = read(model_type, architectures=[load_family(model_type).usual.replace("ForCausalLM", "Model")], **keys)
    ours = {i: (a.window, a.dropout, a.head_dim, a.heads, a.kv_heads) for i, a in by_layer(model, Attention).items()}
    chosen = {index: (router.top_k, router.experts) for index, router in by_layer(model, Router).items()}
    layers = module_of(model_type, model.architecture, keys).layers
    theirs, routers = {}, {}
    for index, layer in enumerate(layers):
        a = layer.self_attn
        heads, kv_heads = (projection.out_features // a.head_dim for projection in (a.q_proj, a.k_proj))
        window = getattr(a, "sliding_window", None)
        window = getattr(a.config, "sliding_window", None) if model_type == "mixtral" else window
        theirs[index] = (window, a.attention_dropout, a.head_dim, heads, kv_heads)
        for module in layer.mlp.modules():
            if hasattr(module, "top_k") and hasattr(module, "num_experts"):
                routers[index] = (module.top_k, module.num_experts)
    assert ours == theirs
    assert chosen == routers


def test_gpt_neo_looks_back_over_a_window_where_it_says_local():
    """The kinds of attention_types, in their order and repeated, decide which layers have the window."""
    types = [[["global", "local", "local"], 1], [["local"], 2], [["global"], 1]]
    model = read("gpt_neo", num_layers=6, attention_types=types, window_size=5)
    assert {i: a.window for i, a in by_layer(model, Attention).items()} == {0: None, 1: 5, 2: 5, 3: 5, 4: 5, 5: None}


def test_what_a_layer_object_knows_beyond_its_shapes():
    """Heads, dropouts, activations, position biases and the order of norms survive from the config to the layer objects."""
    gpt2 = by_layer(read("gpt2", n_layer=1, attn_pdrop=0.3), FusedAttention)[0]
    assert (gpt2.heads, gpt2.kv_heads, gpt2.head_dim, gpt2.dropout, gpt2.alibi) == (12, 12, 64, 0.3, False)
    bigcode = by_layer(read("gpt_bigcode", n_layer=1), FusedAttention)[0]
    assert (bigcode.heads, bigcode.kv_heads) == (12, 1)
    bloom = by_layer(read("bloom", n_layer=1, attention_dropout=0.2), FusedAttention)[0]
    assert (bloom.alibi, bloom.dropout, bloom.heads, bloom.rotary) == (True, 0.2, 8, None)
    falcon = read("falcon", num_hidden_layers=1)
    assert (by_layer(falcon, FusedAttention)[0].rotary, by_layer(falcon, Block)[0].parallel) == (64, True)
    assert by_layer(read("falcon", num_hidden_layers=1, alibi=True), FusedAttention)[0].rotary is None
    assert not by_layer(read("falcon", num_hidden_layers=1, parallel_attn=False), Block)[0].parallel
    assert [by_layer(read("opt", do_layer_norm_before=b), Block)[0].norms for b in (True, False)] == ["pre", "post"]
    assert not by_layer(read("gpt_neox", num_hidden_layers=1, use_parallel_residual=False), Block)[0].parallel
    v3 = read("deepseek_v3", num_hidden_layers=4)
    router, attention = by_layer(v3, Router), by_layer(v3, LatentAttention)[3]
    assert {i: (r.top_k, r.groups, r.top_groups, r.scoring) for i, r in router.items()} == {3: (8, 8, 4, "sigmoid")}
    assert (attention.heads, attention.query_dim, attention.value_dim, attention.query_rank) == (128, 192, 128, 1536)


def grown(config, times):
    """The same structure with every whole number another, heads still dividing what they divide."""
    keys = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, int) and not isinstance(value, bool):
            fixed = name == "num_ln_in_parallel_attn"
            shift = name in ("num_hidden_layers", "first_k_dense_replace", "decoder_sparse_step", "moe_layer_freq")
            keys[name] = value + times * (1 + fixed) if fixed or shift else value * (times + 1)
    return config.model_copy(update=keys)


SEPARATE = [
    pytest.param(name, {**case, "config": {**case["config"], "expert_layout": "separate"}}, id=f"{name}-separate-{i}")
    for name in MIXTURES
    if name != "gpt_oss"
    for i, case in enumerate(CASES[name])
]


@pytest.mark.parametrize(("model_type", "case"), [*ALL, *SEPARATE])
def test_arrays_of_jobs_give_what_each_job_gives(model_type, case):
    """One build over three configs' numbers stacked equals three builds, tensor by tensor, element by element."""
    np = pytest.importorskip("numpy")
    family = load_family(model_type)
    one = validate(family, case["config"], "model")
    jobs = [grown(one, times) for times in (0, 1, 2)]
    if case["config"].get("layer_types") or model_type == "gpt_neo":  # lists of kinds fix the depth
        jobs = [job.model_copy(update={"num_hidden_layers": one.num_hidden_layers}) for job in jobs]
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


RULE = st.fixed_dictionaries(
    {"total": st.integers(1, 40), "step": st.integers(1, 9), "offset": st.integers(0, 9), "first": st.integers(0, 45)}
)


@given(rules=st.lists(RULE, min_size=1, max_size=4), never=st.lists(st.integers(0, 45)), present=st.booleans())
def test_the_layers_of_a_kind_are_those_a_plain_loop_finds(rules, never, present):
    """Formula, indices, complement and arrays agree with trying every index, for any depth, step, offset and exceptions."""
    np = pytest.importorskip("numpy")
    counts = []
    for rule in rules:
        total, step, offset, first = rule["total"], rule["step"], rule["offset"], rule["first"]
        plain = [i for i in range(total) if i >= first and (i + offset) % step == 0 and i not in never and present]
        span = periodic(total, step, offset=offset, first=first, never=never, present=present)
        assert (span.count, list(span.indices)) == (len(plain), plain)
        rest = others(total, span)
        assert sorted([*span.indices, *rest.indices]) == list(range(total))
        assert (rest.count, len(rest.indices)) == (total - len(plain),) * 2
        found = matching(total, lambda i, step=step, offset=offset: (i + offset) % step == 0)
        assert found == periodic(total, step, offset=offset)
        counts.append(len(plain))
    columns = {key: np.array([rule[key] for rule in rules], dtype=np.int64) for key in rules[0]}
    arrays = periodic(
        columns["total"], columns["step"], offset=columns["offset"], first=columns["first"], never=never,
        present=np.full(len(rules), present),
    )  # fmt: skip
    assert arrays.count.tolist() == counts
    assert arrays.indices is None
    tested = matching(columns["total"], lambda i: (i + columns["offset"]) % columns["step"] == 0)
    assert tested.count.tolist() == periodic(columns["total"], columns["step"], offset=columns["offset"]).count.tolist()
