"""Encoders' and vision models' layer objects beside the modules they stand for: order, heads, dropouts, strides, arrays."""

from __future__ import annotations

import pytest

from memcalc.families.base import load_family
from memcalc.layers.basic import Conv
from memcalc.layers.encoder import DisentangledAttention, Reused, SummedEmbeddings, Transform
from memcalc.layers.patches import ImageTokens
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block, GatedMLP
from memcalc.readers.config import validate
from memcalc.readers.stacking import stack_configs
from tests.families.encoders import ALL, TORCHVISION, found, module_of, nodes, read

ONE = {
    "t5": {"num_layers": 1, "num_decoder_layers": 1}, "mt5": {"num_layers": 1, "num_decoder_layers": 1},
    "bart": {"encoder_layers": 1, "decoder_layers": 1}, "whisper": {"encoder_layers": 1, "decoder_layers": 1},
    "clip": {"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1}}, "distilbert": {"n_layers": 1},
    "albert": {"num_hidden_groups": 1, "inner_group_num": 1}, "resnet": {},
}  # fmt: skip
"""How each family says that it has one layer of each kind; the others say num_hidden_layers."""


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_parameters_come_in_the_order_of_the_module(model_type, case):
    """With one layer of each kind the parameters are listed as the module registers them, which flat buffers depend on."""
    keys = {**case["config"], **ONE.get(model_type, {"num_hidden_layers": 1})}
    if model_type == "resnet":
        # two layers a stage, whose names a list of the first and one of the rest keep in order
        keys["depths"] = [2] * len(keys.get("depths", "four"))
    if model_type in ("t5", "mt5"):
        keys.pop("tie_word_embeddings", None)
    module = module_of(model_type, case["architecture"], keys)
    model = read(load_family(model_type).model_type, architectures=[case["architecture"]], **keys)
    assert [name for t in model.parameters for name in t.names()] == [name for name, _ in module.named_parameters()]


PROBABILITIES = {
    "bert": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "classifier_dropout": 0.13},
    "roberta": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "classifier_dropout": 0.13},
    "electra": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "classifier_dropout": 0.13,
                "summary_last_dropout": 0.14},
    "distilbert": {"dropout": 0.11, "attention_dropout": 0.12, "qa_dropout": 0.13, "seq_classif_dropout": 0.14},
    "albert": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "classifier_dropout_prob": 0.13},
    "deberta_v2": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "pooler_dropout": 0.13,
                   "cls_dropout": 0.14, "relative_attention": True, "conv_kernel_size": 3},
    "t5": {"dropout_rate": 0.11, "classifier_dropout": 0.12},
    "mt5": {"dropout_rate": 0.11, "classifier_dropout": 0.12},
    "bart": {"dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13, "classifier_dropout": 0.14},
    "whisper": {"dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13},
    "vit": {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12},
    "clip_text_model": {"attention_dropout": 0.11},
}  # fmt: skip
DROPPING = [
    (name, architecture)
    for name in PROBABILITIES
    for architecture in load_family(name).architectures
    if architecture != "T5WithLMHeadModel"  # a name transformers no longer exports
]


@pytest.mark.parametrize(("model_type", "architecture"), DROPPING)
def test_every_dropout_of_the_module_is_in_the_tree(model_type, architecture):
    """Under every head, the probabilities that the layer objects carry are those the modules carry: none lost, none made up."""
    keys = PROBABILITIES[model_type]
    model = read(load_family(model_type).model_type, architectures=[architecture], **keys)
    fields = ("dropout", "position_dropout", "probability")
    ours = {getattr(node, field) for node in nodes(model.root) for field in fields if hasattr(node, field)}
    theirs = set()
    for module in module_of(model_type, architecture, keys).modules():
        if type(module).__name__ == "Dropout":
            theirs.add(module.p)
        held = [getattr(module, f, None) for f in ("dropout", "attention_dropout", "activation_dropout")]
        theirs |= {p for p in held if isinstance(p, float)}
    assert {p for p in ours if p} == theirs & set(keys.values())


def attentions(module) -> set:
    """(heads, head size, whether causal) of every attention transformers built; one that does not say is not causal."""
    sizes = set()
    for each in module.modules():
        heads = [getattr(each, name) for name in ("num_attention_heads", "num_heads", "n_heads") if hasattr(each, name)]
        dims = [
            getattr(each, name) for name in ("attention_head_size", "head_dim", "key_value_proj_dim") if hasattr(each, name)
        ]
        if heads and dims:
            sizes.add((heads[0], dims[0], bool(getattr(each, "is_causal", False))))
    return sizes


HEADED = [
    ("bert", {"is_decoder": True, "add_cross_attention": True, "num_attention_heads": 6}),
    ("bert", {"num_attention_heads": 6}), ("roberta", {}), ("xlm_roberta", {}), ("electra", {}), ("distilbert", {}),
    ("albert", {}), ("deberta_v2", {}), ("t5", {"num_heads": 5, "d_kv": 7}), ("mt5", {}),
    ("bart", {"decoder_attention_heads": 8}), ("whisper", {"decoder_attention_heads": 8}),
    ("vit", {"head_dim": 24}), ("clip_vision_model", {}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys"), HEADED)
def test_attention_keeps_its_heads_and_its_mask(model_type, keys):
    """Heads, their size and whether a query sees what follows are those of transformers' attention modules."""
    model = read(load_family(model_type).model_type, **keys)
    ours = {(a.heads, a.head_dim, a.causal) for a in found(model, Attention)}
    ours |= {(a.heads, a.head_dim, False) for a in found(model, DisentangledAttention)}
    assert ours == attentions(module_of(model_type, model.architecture, keys))


STRIDED = [
    ("resnet", {}), ("resnet", {"layer_type": "basic", "hidden_sizes": [64, 96], "depths": [2, 2]}),
    ("resnet", {"downsample_in_first_stage": True, "downsample_in_bottleneck": True}),
    ("vit", {"patch_size": [8, 16]}), ("clip", {}), ("whisper", {}), ("deberta_v2", {"conv_kernel_size": 5, "conv_groups": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys"), STRIDED)
def test_convolutions_keep_their_strides_and_padding(model_type, keys):
    """Kernel, stride, padding, groups and channels of every convolution are those of transformers' modules, and no other."""
    model = read(load_family(model_type).model_type, **keys)
    ours = {
        (c.in_channels, c.out_channels, tuple(c.kernel), c.stride or (1,) * len(c.kernel), c.padding or (0,) * len(c.kernel),
         c.groups, c.bias)
        for c in (node for node in nodes(model.root) if isinstance(node, Conv))
    }  # fmt: skip
    convs = [m for m in module_of(model_type, model.architecture, keys).modules() if type(m).__name__.startswith("Conv")]
    theirs = {
        (c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.groups, c.bias is not None)
        for c in convs
        if hasattr(c, "kernel_size")
    }
    assert ours == theirs


def test_what_a_layer_object_knows_beyond_its_shapes():
    """Activations, orders of norms, cross-attention, reuse and token counts survive from the config to the layer objects."""
    assert {m.activation for m in found(read("bert", hidden_act="relu"), MLP)} == {"relu"}
    assert {t.activation for t in found(read("bert", hidden_act="relu"), Transform)} == {"relu"}
    assert {b.norms for b in found(read("bert"), Block)} == {"post"} == {b.norms for b in found(read("bart"), Block)}
    assert {b.norms for b in found(read("whisper"), Block)} == {"pre"} == {b.norms for b in found(read("t5"), Block)}
    gates = [(g.activation, g.dropout) for g in found(read("t5", feed_forward_proj="gated-gelu"), GatedMLP)]
    assert set(gates) == {("gelu_new", 0.1)}
    assert {m.activation for m in found(read("t5"), MLP)} == {"relu"}
    assert all(a.added_bias for a in found(read("t5"), Attention))
    assert {a.cross for a in found(read("bart"), Attention)} == {True, False}
    assert [r.passes for r in found(read("albert", num_hidden_layers=7), Reused)] == [7]
    assert [t.tokens for t in found(read("vit", image_size=[224, 160]), ImageTokens)] == [1 + 14 * 10]
    assert [t.tokens for t in found(read("clip"), ImageTokens)] == [50]
    assert [e.dropout for e in found(read("roberta"), SummedEmbeddings)] == [0.1]
    assert [a.causal for a in found(read("clip_text_model"), Attention)] == [True]
    pooled = read("vit", architectures=["ViTModel"], pooler_act="relu")
    assert [a.function for a in found(pooled, Activation)] == ["relu"]
    deberta = read("deberta-v2", relative_attention=True, position_buckets=256, pos_att_type="c2p", share_att_key=True)
    assert {(a.positions, a.to_position, a.from_position, a.share) for a in found(deberta, DisentangledAttention)} == {
        (512, True, False, True)
    }


def grown(config, times):
    """The same structure with every whole number another, what divides still dividing."""
    keys = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if hasattr(type(value), "model_fields"):
            keys[name] = grown(value, times)
        elif isinstance(value, int) and not isinstance(value, bool):
            keys[name] = value + 5 * times if "layers" in name else value * (times + 1)
    return config.model_copy(update=keys)


def agree(family, jobs, architecture):
    """One build over the jobs' numbers stacked equals a build of each, tensor by tensor, element by element."""
    np = pytest.importorskip("numpy")
    together = list(family.build(stack_configs(jobs), architecture).root.tensors())
    for index, job in enumerate(jobs):
        alone = list(family.build(job, architecture).root.tensors())
        assert [(t.name, t.dtype, t.kind, t.role, t.trainable, len(t.shape)) for t in alone] == [
            (t.name, t.dtype, t.kind, t.role, t.trainable, len(t.shape)) for t in together
        ]
        for own, every in zip(alone, together, strict=True):
            for ours, theirs in ((own.elements, every.elements), (own.count, every.count), (own.numel, every.numel)):
                value = np.broadcast_to(np.asarray(theirs), (len(jobs),))[index]
                assert ours == value, own.name
                assert np.asarray(value).dtype.kind == "i", own.name


ALONE = [
    pytest.param(name, {"architecture": load_family(name).usual, "config": keys}, id=f"{name}-{i}")
    for name, several in {
        "torchvision_resnet": [{"depth": 18}, {}, {"groups": 32, "width_per_group": 4}, {"layers": [1, 2, 1, 1]}],
        "torchvision_vit": [{}, {"representation_size": 33}],
    }.items()
    for i, keys in enumerate(several)
]


@pytest.mark.parametrize(("model_type", "case"), [*ALL, *ALONE])
def test_arrays_of_jobs_give_what_each_job_gives(model_type, case):
    """One build over three configs' numbers stacked equals three builds, tensor by tensor, element by element."""
    family = load_family(model_type)
    one = validate(family, case["config"], "model")
    agree(family, [grown(one, times) for times in (0, 1, 2)], case["architecture"])


MIXED = [
    # numbers that decide whether a tensor is there at all, some jobs having it and some not
    ("electra", "ElectraForMaskedLM", [{"embedding_size": e} for e in (128, 256, 64)]),
    ("electra", "ElectraForMultipleChoice", [{"num_labels": n, "summary_proj_to_labels": True} for n in (0, 3, 2)]),
    ("deberta-v2", "DebertaV2ForMaskedLM",
     [{"type_vocab_size": t, "conv_kernel_size": k, "embedding_size": e}
      for t, k, e in ((0, 3, 96), (2, 0, 1536), (1, 5, 48))]),
    ("deberta-v2", "DebertaV2Model",
     [{"relative_attention": True, "max_relative_positions": m, "position_buckets": b}
      for m, b in ((-1, -1), (9, -1), (9, 4))]),
    ("bert", "BertModel", [{"type_vocab_size": t} for t in (0, 2, 1)]),
    ("vit", "ViTForImageClassification", [{"num_labels": n} for n in (0, 10, 1000)]),
    ("clip", "CLIPForImageClassification", [{"num_labels": n} for n in (0, 10, 1000)]),
    ("resnet", "ResNetForImageClassification",
     [{"num_labels": n, "embedding_size": e} for n, e in ((0, 256), (5, 64), (9, 32))]),
    ("albert", "AlbertForPreTraining", [{"num_hidden_groups": g, "inner_group_num": i} for g, i in ((1, 1), (3, 2), (2, 4))]),
    ("t5", "T5ForConditionalGeneration", [{"num_layers": n, "num_decoder_layers": d} for n, d in ((1, 3), (2, 1), (5, 5))]),
    ("whisper", "WhisperForAudioClassification",
     [{"encoder_layers": n, "use_weighted_layer_sum": True, "num_mel_bins": m} for n, m in ((1, 80), (2, 128), (3, 64))]),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "architecture", "keys"), MIXED)
def test_arrays_hold_where_a_number_decides_what_is_there(model_type, architecture, keys):
    """Jobs that differ in whether a tensor exists are still one evaluation: it is counted where it is, and not elsewhere."""
    family = load_family(model_type)
    jobs = [validate(family, each, "model") for each in keys]
    agree(family, jobs, architecture)
    counts = [tuple(t.count for t in family.build(job, architecture).root.tensors()) for job in jobs]
    elements = [sum(t.elements for t in family.build(job, architecture).root.tensors()) for job in jobs]
    assert len(set(zip(counts, elements, strict=True))) == 3, "the jobs are to differ"


@pytest.mark.parametrize("model_type", ["resnet", "torchvision_resnet"])
def test_widths_and_depths_of_stages_may_be_arrays_too(model_type):
    """A list whose entries are arrays of jobs, one for each stage, gives what each job gives."""
    np = pytest.importorskip("numpy")
    family = load_family(model_type)
    widths, depths = [(8, 16, 32, 64), (64, 96, 128, 160)], [(1, 2, 3, 4), (2, 1, 1, 5)]
    jobs = [validate(family, {"hidden_sizes": w, "depths": d}, "model") for w, d in zip(widths, depths, strict=True)]
    columns = {name: getattr(jobs[0], name) for name in type(jobs[0]).model_fields}
    for name in {"hidden_sizes", "depths"} & set(columns):
        columns[name] = tuple(np.array(entry) for entry in zip(*(getattr(job, name) for job in jobs), strict=True))
    together = list(family.build(family.config.model_construct(**columns), family.usual).root.tensors())
    for index, job in enumerate(jobs):
        alone = list(family.build(job, family.usual).root.tensors())
        for own, every in zip(alone, together, strict=True):
            assert own.elements == np.broadcast_to(np.asarray(every.elements), (2,))[index], own.name


def test_every_family_here_is_stacked():
    """No family of the group is left out of the test over arrays."""
    assert {param.values[0] for param in [*ALL, *ALONE]} >= {*TORCHVISION, "clip_vision_model", "resnet"}
