"""What memcalc refuses, held to what transformers refuses to configure, build or run; what it accepts, likewise."""

from __future__ import annotations

import json

import pytest

from memcalc.errors import InputError
from memcalc.families.base import known_families, load_family
from memcalc.readers.config import model_from_config
from memcalc.readers.keys import unknown_keys

torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
StrictDataclassError = pytest.importorskip("huggingface_hub.errors", reason="transformers needs it").StrictDataclassError

FAMILIES = [load_family(stem) for stem in known_families() if load_family(stem).source.startswith("transformers")]
ATTENTIVE = [
    family
    for family in FAMILIES
    if "num_attention_heads" in family.config.model_fields or "encoder_attention_heads" in family.config.model_fields
]
VARIANTS = {
    "whole": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6},
    "grouped": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3},
    "heads that do not divide": {"hidden_size": 144, "num_attention_heads": 7, "num_key_value_heads": 7},
    "groups that do not divide": {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 4},
}


UNGROUPED = ("gpt_bigcode", "deepseek_v2", "deepseek_v3")
"""gpt_bigcode's groups are all or one; DeepSeek's own code, unlike transformers, passes num_key_value_heads over."""
EXTRA = {
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "deepseek_v2": {"num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "gptj": {"rotary_dim": 8},
}


def config_of(family, sizes: dict) -> dict | None:
    """A small config with those sizes in the family's own keys; None where it has no groups of heads to vary."""
    fields, sizes = family.config.model_fields, dict(sizes)
    grouped = sizes["num_key_value_heads"] != sizes["num_attention_heads"]
    if grouped and ("num_key_value_heads" not in fields or family.model_type in UNGROUPED):
        return None
    if "num_key_value_heads" not in fields or family.model_type == "gpt_bigcode":
        del sizes["num_key_value_heads"]
    if "encoder_attention_heads" in fields:
        heads = sizes.pop("num_attention_heads")
        sizes = {"d_model": sizes["hidden_size"], "encoder_attention_heads": heads, "decoder_attention_heads": heads,
                 "encoder_layers": 1, "decoder_layers": 1}  # fmt: skip
    else:
        sizes["num_hidden_layers"] = 2
    return {**sizes, **EXTRA.get(family.model_type, {})}


def refuses(family, config: dict) -> str:
    """Why transformers does not configure, build or run it on the meta device; empty where it does all three."""
    try:
        built = transformers.CONFIG_MAPPING[family.model_type](**config)
        with torch.device("meta"):
            module = transformers.AutoModel.from_config(built, attn_implementation="eager").to(torch.bfloat16)
            ids = torch.zeros(1, 8, dtype=torch.long)
            inputs = {"input_ids": ids}
            if family.model_type in ("vit", "clip_vision_model"):
                inputs = {"pixel_values": torch.zeros(1, 3, built.image_size, built.image_size, dtype=torch.bfloat16)}
            if family.model_type == "whisper":
                inputs = {"input_features": torch.zeros(1, 80, 3000, dtype=torch.bfloat16)}
            if built.is_encoder_decoder:
                inputs["decoder_input_ids"] = ids
            module(**inputs)
    except (ValueError, RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    except StrictDataclassError as error:  # what a config's own rules raise comes wrapped in it
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param(family, config, id=f"{family.model_type}-{variant}")
        for family in ATTENTIVE
        for variant, sizes in VARIANTS.items()
        if (config := config_of(family, sizes)) is not None
    ],
)
def test_numbers_of_heads_are_refused_where_transformers_refuses_them(family, config):
    """For every family, a number of heads that transformers cannot use is refused, and one it can is not."""
    if "pad_token_id" in transformers.CONFIG_MAPPING[family.model_type]().to_dict():
        config = {**config, "pad_token_id": 0}
    reason = refuses(family, config)
    if "item() cannot be called on meta" in reason:
        pytest.skip("its forward reads a value, which the meta device has not")
    try:
        model_from_config({"model_type": family.model_type, **config})
        refusal = ""
    except InputError as error:
        refusal = str(error)
    assert bool(refusal) == bool(reason), f"memcalc: {refusal or 'takes it'}; transformers: {reason or 'runs it'}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_key_transformers_writes_is_known(family):
    """A complete config.json pasted into a file for memcalc holds no unknown key, in no family."""
    config = transformers.CONFIG_MAPPING[family.model_type]()
    for spelled in (config.to_dict(), config.to_diff_dict()):
        pasted = json.loads(json.dumps(spelled, default=str))
        errors = [str(error) for error in unknown_keys(family.config, pasted, "model", family.model_type)]
        assert errors == []
