"""Encoders, encoder-decoders and vision models: spellings, defaults, refusals, published counts."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module

import pytest

from memcalc.errors import InputError
from memcalc.families.base import known_families, load_family
from memcalc.readers.config import model_from_config
from tests.families.encoders import ALL, CASES, FAMILIES, described, module_of, read, theirs


def named(model_type, keys):
    """The keys with the family's older words in place of the usual ones."""
    older = {key: alias for alias, key in load_family(model_type).config.aliases.items()}
    return {older.get(key, key): value for key, value in keys.items()}


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_keys_left_out_take_the_defaults_of_transformers(model_type, case):
    """A config with nothing but what a person wrote gives the tensors of transformers' complete one."""
    _, config = theirs(model_type)
    architectures = [case["architecture"]]
    complete = config(**case["config"], architectures=architectures).to_dict()
    whole = model_from_config(json.loads(json.dumps(complete, default=str)))
    keys = {**case["config"]}
    if load_family(model_type).model_type in ("t5", "mt5"):
        keys.pop("tie_word_embeddings", None)  # transformers writes true whatever it is told
    assert described(read(load_family(model_type).model_type, architectures=architectures, **keys)) == described(whole)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_default_is_that_of_transformers(model_type):
    """Key by key, under either spelling, those that decide no tensor too, a default here is the default of the class there."""
    _, config = theirs(model_type)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    ours = load_family(model_type).config
    mine = {name: field.default for name, field in ours.model_fields.items() if "_config" not in name}
    older = {key: alias for alias, key in ours.aliases.items() if alias in defaults}
    shared = {older.get(name, name): default for name, default in mine.items() if older.get(name, name) in defaults}
    assert len(shared) >= (1 if model_type == "clip" else 7)
    if model_type == "bart":
        assert (mine["num_labels"], config().num_labels) == (3, 3)
    if model_type in ("t5", "mt5"):
        assert config().tie_word_embeddings is mine["tie_word_embeddings"] is True
        shared.pop("tie_word_embeddings", None)
    assert shared == {name: defaults[name] for name in shared}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_architecture_of_transformers_is_built_and_has_a_case(model_type):
    """No class that transformers exports for the family is missing, neither here nor from the cases."""
    transformers, config = theirs(model_type)
    package = "clip" if model_type.startswith("clip") else model_type
    exported = import_module(f"transformers.models.{package}.modeling_{package}").__all__
    classes = {name for name in exported if name.endswith(("Model", "Backbone", "Projection")) or "For" in name}
    meant = {n for n in classes if "pretrained" not in n.lower() and getattr(transformers, n).config_class is config}
    # towers named in a config of both, and a name from before transformers 3: nothing there to build them by
    more = {n for n in classes if n.startswith(("CLIPText", "CLIPVision"))} if model_type == "clip" else set()
    more |= {"T5WithLMHeadModel"} if model_type == "t5" else set()
    assert set(load_family(model_type).architectures) == meant | more
    assert {case["architecture"] for case in CASES[model_type]} == meant


SMALL = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 60_000}
OLDER = ["distilbert", "t5", "mt5", "bart", "whisper", "torchvision_vit"]


@pytest.mark.parametrize("model_type", OLDER)
def test_either_spelling_gives_the_same_tensors(model_type):
    """The family's own words and the usual ones read alike, and as transformers reads them where it has the family."""
    # T5Config derives the decoder's depth before it hears of num_hidden_layers, so the two are given together
    keys = {**SMALL, "num_decoder_layers": 2}
    keys = {key: value for key, value in keys.items() if key in load_family(model_type).config.model_fields}
    older = named(model_type, keys)
    assert set(older) - set(keys) >= {{"distilbert": "dim", "torchvision_vit": "hidden_dim"}.get(model_type, "d_model")}
    usual = described(read(model_type, **keys))
    assert usual == described(read(model_type, **older))
    if model_type != "torchvision_vit":
        module = module_of(model_type, load_family(model_type).usual, keys)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        assert shapes == {name: each[0] for name, each in usual.items() if each[2] == "parameter"}


def test_the_usual_word_wins_over_the_familys_own():
    """Where a config says both and they differ, transformers goes by the usual word, and so does memcalc."""
    keys = {"encoder_layers": 3, "num_hidden_layers": 2, "decoder_layers": 1}
    assert theirs("bart")[1](**keys).encoder_layers == 2
    assert "model.encoder.layers.1.fc1.weight" in described(read("bart", **keys))
    assert "model.encoder.layers.2.fc1.weight" not in described(read("bart", **keys))


CLIP_TEXT = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 33}
SPELLINGS = [
    # (family, one spelling, another, a tensor, the shape both must give it)
    ("distilbert", {"dim": 48, "hidden_dim": 7, "n_layers": 1}, {"hidden_size": 48, "intermediate_size": 7, "n_layers": 1},
     "distilbert.transformer.layer.0.ffn.lin1.weight", (7, 48)),
    ("t5", {"d_kv": 5, "num_layers": 1}, {"head_dim": 5, "num_hidden_layers": 1},
     "decoder.block.0.layer.1.EncDecAttention.q.weight", (40, 512)),
    ("t5", {"num_layers": 2, "num_decoder_layers": None}, {"num_layers": 2, "num_decoder_layers": 2},
     "decoder.block.1.layer.2.DenseReluDense.wo.weight", (512, 2048)),
    ("t5", {"architectures": ["T5WithLMHeadModel"]}, {"architectures": ["T5ForConditionalGeneration"]}, "shared.weight",
     (32128, 512)),
    ("mt5", {"feed_forward_proj": "gated-gelu"}, {}, "encoder.block.7.layer.1.DenseReluDense.wi_1.weight", (1024, 512)),
    ("deberta-v2", {"relative_attention": True, "pos_att_type": "C2P|p2c"},
     {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
     "deberta.encoder.layer.23.attention.self.pos_key_proj.weight", (1536, 1536)),
    ("deberta-v2", {"relative_attention": True, "max_relative_positions": -1, "position_buckets": -1},
     {"relative_attention": True, "max_relative_positions": 512}, "deberta.encoder.rel_embeddings.weight", (1024, 1536)),
    ("deberta-v2", {"norm_rel_ebd": "layer_norm"}, {"norm_rel_ebd": "none|LAYER_NORM"}, "deberta.encoder.LayerNorm.weight",
     (1536,)),
    ("deberta-v2", {"embedding_size": None, "pooler_hidden_size": None}, {"embedding_size": 1536},
     "deberta.embeddings.word_embeddings.weight", (128100, 1536)),
    ("bart", {"architectures": ["BartForSequenceClassification"]},
     {"architectures": ["BartForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
     "classification_head.out_proj.weight", (3, 1024)),
    ("bart", {"architectures": ["BartForSequenceClassification"], "num_labels": 2},
     {"architectures": ["BartForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}},
     "classification_head.out_proj.weight", (2, 1024)),
    ("vit", {"image_size": 224, "patch_size": 16}, {"image_size": [224, 224], "patch_size": [16, 16]},
     "vit.embeddings.position_embeddings", (1, 197, 768)),
    ("vit", {"architectures": ["ViTModel"], "pooler_output_size": None}, {"architectures": ["ViTModel"]},
     "pooler.dense.weight", (768, 768)),
    ("clip", {"text_config_dict": CLIP_TEXT, "text_config": {"hidden_size": 999}}, {"text_config": CLIP_TEXT},
     "text_model.embeddings.token_embedding.weight", (33, 48)),
    ("clip", {"text_config": None, "vision_config": None, "text_config_dict": None}, {}, "logit_scale", ()),
    ("torchvision_resnet", {"depth": 18}, {"layers": [2, 2, 2, 2], "block": "basic"}, "layer4.1.conv2.weight",
     (512, 512, 3, 3)),
    ("torchvision_resnet", {"depth": "34", "num_classes": 7}, {"depths": [3, 4, 6, 3], "layer_type": "basic", "num_labels": 7},
     "fc.weight", (7, 512)),
    ("torchvision_resnet", {}, {"depth": 50}, "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "one", "other", "name", "shape"), SPELLINGS)
def test_spellings_read_alike(model_type, one, other, name, shape):
    """Two ways to write one model give the same tensors, and the one the spelling is about has its hand-computed shape."""
    assert described(read(model_type, **one)) == described(read(model_type, **other))
    assert described(read(model_type, **one))[name][0] == shape


def test_a_tower_of_clip_reads_alike_from_a_config_of_both_and_from_its_own():
    """The four tower classes build from CLIP's whole config what they build from the tower's config alone."""
    towers = {"text": CLIP_TEXT, "vision": {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}}
    for tower, keys in towers.items():
        for name in (f"CLIP{tower.title()}Model", f"CLIP{tower.title()}ModelWithProjection"):
            alone = read(f"clip_{tower}_model", **keys, projection_dim=7, architectures=[name])
            inside = {f"{tower}_config": {**keys, "projection_dim": 7}}
            assert described(alone) == described(read("clip", **inside, architectures=[name]))


def test_an_untied_head_of_t5_is_counted_where_the_config_says_so():
    """``tie_word_embeddings: false``, as v1.1, Flan and mT5 have it, adds one matrix of vocabulary by width and no more."""
    for model_type, extra in (("t5", 32128 * 512), ("mt5", 250112 * 512)):
        tied, untied = read(model_type), read(model_type, tie_word_embeddings=False)
        assert untied.num_parameters - tied.num_parameters == extra
        assert set(tied.tied) - set(untied.tied) == {"lm_head.weight"}


PUBLISHED = [
    # KerasHub bert_presets.py, t5_presets.py, whisper_presets.py; PEFT's notebooks less their adapters; CLIP's checkpoint
    ("bert", {"architectures": ["BertModel"]}, 109_482_240),
    ("t5", {}, 60_506_624),
    ("t5", {"num_layers": 24, "d_model": 1024, "d_kv": 128, "num_heads": 128, "d_ff": 65536}, 11_307_321_344),
    ("t5", {"num_layers": 8, "num_heads": 6, "d_ff": 1024, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
     76_961_152),
    ("mt5", {"num_layers": 24, "d_model": 1024, "num_heads": 16, "d_ff": 2816, "tie_word_embeddings": False}, 1_229_581_312),
    ("whisper", {}, 37_760_640),
    ("whisper", {"encoder_layers": 32, "decoder_layers": 32, "d_model": 1280, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120,
                 "encoder_attention_heads": 20, "decoder_attention_heads": 20}, 1_543_304_960),
    ("clip", {"projection_dim": 768, "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
              "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                                "intermediate_size": 4096, "patch_size": 14}}, 427_616_513),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys", "count"), PUBLISHED)
def test_published_counts_are_met_to_the_parameter(model_type, keys, count):
    """Configs as the Hub spells them give the counts their publishers print."""
    assert read(model_type, **keys).num_parameters == count


@pytest.mark.parametrize(
    ("model_type", "keys", "sentence"),
    [
        ("bert", {"num_attention_heads": 7}, "model.num_attention_heads: 7 does not divide hidden_size = 768"),
        ("bert", {"add_cross_attention": True}, "model.add_cross_attention: True needs is_decoder = true"),
        ("distilbert", {"n_heads": 5}, "model.n_heads: 5 does not divide"),
        ("deberta-v2", {"conv_groups": 5}, "model.conv_groups: 5 does not divide hidden_size = 1536"),
        ("deberta-v2", {"max_relative_positions": -2}, "model.max_relative_positions"),
        ("t5", {"feed_forward_proj": "gelu-gated"}, "model.feed_forward_proj"),
        ("bart", {"decoder_attention_heads": 7}, "model.decoder_attention_heads: 7 does not divide hidden_size = 1024"),
        ("whisper", {"encoder_attention_heads": 7}, "model.encoder_attention_heads: 7 does not divide"),
        ("vit", {"image_size": [224, 0]}, "model.image_size"),
        ("clip", {"text_config": {"num_attention_heads": 7}}, "model.text_config.num_attention_heads: 7 does not divide"),
        ("resnet", {"depths": [3, 4]}, "model.depths: (3, 4) has 2 stages where hidden_sizes has 4"),
        ("torchvision_resnet", {"depth": 42}, "model.depth"),
        ("torchvision_resnet", {"depth": 50, "layers": [1, 1, 1, 1]}, "model.depth: 50 says what depths says too"),
        ("torchvision_resnet", {"depth": 18, "groups": 2}, "model.groups: 2 is not 1, as basic blocks need"),
        ("torchvision_resnet", {"depth": 18, "width_per_group": 128}, "model.width_per_group: 128 is not 64"),
        (
            "torchvision_resnet",
            {"depth": 18, "replace_stride_with_dilation": [False, False, True]},
            "model.replace_stride_with_dilation",
        ),
        ("torchvision_vit", {"image_size": 225}, "model.patch_size: 16 does not divide image_size = 225"),
        ("torchvision_vit", {"conv_stem_configs": [1]}, "model.conv_stem_configs: (1,) is not modelled"),
    ],
)
def test_what_no_model_can_be_is_refused_by_its_path(model_type, keys, sentence):
    """A config that its library would refuse, or could not run, is an error that names the key."""
    with pytest.raises(InputError) as caught:
        read(model_type, **keys)
    assert sentence in str(caught.value)


def test_the_families_here_are_known_by_their_own_model_type():
    """Each file answers to the model_type its configs carry, dashes and all."""
    assert set(FAMILIES) | {"torchvision_resnet", "torchvision_vit"} <= set(known_families())
    for name in ("xlm-roberta", "deberta-v2", "clip_text_model", "torchvision_resnet"):
        assert load_family(name).model_type == name
