"""From a ``config.json`` mapping to a model: spellings settled, family found, values checked, layers composed.

Complete configs (``to_dict``), configs reduced to what differs from the defaults (``to_diff_dict``) and the older
spellings on the Hub read alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.families.base import Family, FamilyConfig, known_families, load_family
from memcalc.models import Model
from memcalc.readers.files import printable
from memcalc.readers.keys import nested_config, settled, unknown_keys
from memcalc.readers.stacking import stack_configs, structure_key
from memcalc.records import names_of
from memcalc.tensors import ITEMSIZE
from memcalc.units import checked_bytes

__all__ = [
    "build_model",
    "chosen_architecture",
    "family_of",
    "model_from_config",
    "stack_configs",
    "stored_dtype",
    "structure_key",
    "validate",
]


def model_from_config(config: Mapping[str, Any], *, name: str = "", path: str = "model", strict: bool = False) -> Model:
    """The model a Hugging Face config describes.

    Args:
        config: the keys of a ``config.json``.
        name: what to call it; what the config calls itself by default.
        path: the dotted path that errors begin with.
        strict: refuse keys that nobody knows and hold ``num_parameters`` to the model, as for a file written for memcalc.

    Raises:
        InputError: no ``model_type``, an unknown one, an architecture the family does not have, a value that breaks a rule.

    >>> model_from_config({"model_type": "llama", "num_hidden_layers": 1}).num_parameters
    464531456
    """
    family = family_of(config, path)
    validated = validate(family, config, path, strict=strict)
    architecture, assumptions = chosen_architecture(family, config, path)
    assumptions += _heads_word(family, config, validated)
    called = printable(name or str(config.get("_name_or_path") or family.model_type))
    model = build_model(family, validated, architecture, name=called, dtype=stored_dtype(config, path),
                        assumptions=(*assumptions, *_set_aside(config)))  # fmt: skip
    _require_pairs(model.root, f"{path}.head_dim")
    checked_bytes(sum(int(tensor.nbytes * tensor.count) for tensor in model.tensors), path)
    if strict:
        _require_count(model, config.get("num_parameters"), f"{path}.num_parameters")
    return model


def build_model(
    family: Family, config: FamilyConfig, architecture: str, *, name: str, dtype: str | None, assumptions: tuple[str, ...] = ()
) -> Model:
    """The model of a validated config; its numbers may be arrays."""
    built = family.build(config, architecture)
    return Model(
        name=name, family=family.model_type, architecture=architecture, tensors=tuple(built.root.tensors()), tied=built.tied,
        root=built.root, config=config, dtype=dtype, assumptions=assumptions,
    )  # fmt: skip


def family_of(config: Mapping[str, Any], path: str) -> Family:
    """The family that ``model_type`` names.

    A wrapper around a text model memcalc knows is not read as that text model: its other towers would be left out unsaid.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        shown = NO_VALUE if model_type is None else model_type
        raise InputError(f"{path}.model_type", shown, "is not the name of a family", "name one, as model_type: llama")
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    if model_type.replace("-", "_").lower() in known_families():
        family = load_family(model_type, f"{path}.model_type")
        if inner is not None and "text_config" not in family.config.model_fields:
            raise InputError(f"{path}.text_config", NO_VALUE, f"is not a part of {model_type}", "check model_type")
        return family
    if inner is not None:
        way_out = f"read the whole of it with py:package.module:factory, or give its text_config ({inner}) alone"
        raise InputError(f"{path}.model_type", model_type, "wraps a text model in a family memcalc does not know", way_out)
    return load_family(model_type, f"{path}.model_type")


def validate(family: Family, config: Mapping[str, Any], path: str, *, strict: bool = False) -> FamilyConfig:
    """The family's own view of the config: older spellings translated, values checked, alone and against each other."""
    if strict:
        for error in unknown_keys(family.config, config, path, family.model_type):
            raise error
    values, spelled = settled(family.config, config, path, strict=strict)
    if "num_labels" not in values and isinstance(values.get("id2label"), Mapping):
        # transformers writes the labels' names and not their number (configuration_utils.py: PretrainedConfig.num_labels)
        values["num_labels"] = len(values["id2label"])
    values = _with_heads(family, values)
    try:
        validated = family.config.model_validate(values)
    except ValidationError as error:
        from memcalc.readers.complaints import complaint

        raise complaint(error, path, family.config.model_fields, spelled) from None
    _require_rules(validated, path, spelled)
    return validated


HEAD = 64
"""Features of one attention head where a config leaves the heads out and the default cannot be meant: the usual width."""


def _with_heads(family: Family, values: dict[str, Any]) -> dict[str, Any]:
    """The values, with a number of heads where the config has none and the family's default does not divide its width.

    Without key-value heads or a head's width the number moves no byte of a parameter, so that a config which only says how wide
    and deep a model is can still be counted.
    """
    fields = family.config.model_fields
    free = "num_attention_heads" in fields and all(
        values.get(key) is None for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    hidden = values.get("hidden_size")
    if not free or type(hidden) is not int or hidden <= 0 or hidden % HEAD:
        return values
    default = fields["num_attention_heads"].default
    return {**values, "num_attention_heads": hidden // HEAD} if type(default) is int and hidden % default else values


def _heads_word(family: Family, config: Mapping[str, Any], validated: FamilyConfig) -> tuple[str, ...]:
    """What was assumed of the heads, where they were."""
    spellings = {"num_attention_heads", *(a for a, key in family.config.aliases.items() if key == "num_attention_heads")}
    heads = getattr(validated, "num_attention_heads", None)
    if any(config.get(key) is not None for key in spellings) or heads == getattr(family.config(), "num_attention_heads", None):
        return ()
    return (f"{heads} attention heads of {HEAD}: the config names none, and the family's default does not divide its width",)


def chosen_architecture(family: Family, config: Mapping[str, Any], path: str) -> tuple[str, tuple[str, ...]]:
    """The class that ``architectures`` names, or the family's usual one with a word on having assumed it."""
    named = config.get("architectures")
    where = f"{path}.architectures"
    if isinstance(named, str):
        named = [named]
    if not named:
        return family.usual, (f"architecture {family.usual}, the usual one of {family.model_type}: the config names none",)
    if not isinstance(named, list | tuple) or not all(isinstance(entry, str) for entry in named):
        raise InputError(where, named, "is not a list of class names", f"write [{family.usual}]")
    if named[0] not in family.architectures:
        rule = f"is not one memcalc builds for {family.model_type}"
        raise InputError(where, named[0], rule, did_you_mean(named[0], family.architectures))
    return named[0], ()


def stored_dtype(config: Mapping[str, Any], path: str = "model") -> str | None:
    """The dtype the checkpoint is stored in (``dtype``, or ``torch_dtype`` before transformers 5; the newer one wins).

    >>> stored_dtype({"torch_dtype": "bfloat16"}), stored_dtype({"dtype": "torch.float16"}), stored_dtype({})
    ('bfloat16', 'float16', None)
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = config.get(key)
    if dtype is None or dtype == "auto":
        return None
    if not isinstance(dtype, str):
        raise InputError(f"{path}.{key}", dtype, "is not the name of a dtype", "write bfloat16, float16 or float32")
    plain = dtype.removeprefix("torch.")
    plain = {"half": "float16", "float": "float32", "double": "float64"}.get(plain, plain)
    if plain not in ITEMSIZE:
        raise InputError(f"{path}.{key}", dtype, "is not a known dtype", did_you_mean(plain, ITEMSIZE))
    return plain


def _require_rules(config: FamilyConfig, path: str, spelled: Mapping[str, str]) -> None:
    """The rules between keys, here and in every config inside."""
    broken = config.check()
    if broken is not None:
        key, rule, way_out = broken
        raise InputError(f"{path}.{spelled.get(key, key)}", getattr(config, key, NO_VALUE), rule, way_out)
    for key, field in type(config).model_fields.items():
        inner = getattr(config, key)
        if nested_config(field) is not None and isinstance(inner, FamilyConfig):
            _require_rules(inner, f"{path}.{key}", {})


def _require_pairs(root: Any, where: str) -> None:
    """That heads rotated whole have an even size, because rotary positions turn dimensions in pairs.

    source: transformers 5.23.0 modeling_rope_utils.py RotaryEmbeddingConfigMixin.validate_rope, which lets sizes up to 4 be
    """
    pending = [root]
    while pending:
        layer = pending.pop()
        if isinstance(layer, list | tuple):
            pending.extend(layer)
        elif names := names_of(layer):
            pending.extend(getattr(layer, name) for name in names)
            size = getattr(layer, "head_dim", None)
            if isinstance(size, int) and size > 4 and size % 2 and getattr(layer, "rotary", None) == size:
                rule = "is odd, and rotary positions turn dimensions in pairs"
                raise InputError(where, size, rule, "change it, or hidden_size and num_attention_heads if it is their quotient")


def _set_aside(config: Mapping[str, Any]) -> list[str]:
    """What a config says that is passed over knowingly."""
    said = []
    quantised = config.get("quantization_config")
    if isinstance(quantised, Mapping):
        method = quantised.get("quant_method", "unnamed")
        said.append(f"quantization_config ({method}) is about stored weights: the parameters are counted as they train, whole")
    if config.get("auto_map"):
        said.append("auto_map names code of the repository's own: transformers' class of that model_type is assumed instead")
    return said


def _require_count(model: Model, stated: Any, where: str) -> None:
    """That the number of parameters the file states is the one its keys give."""
    if stated is None:
        return
    if isinstance(stated, bool) or not isinstance(stated, int):
        raise InputError(where, stated, "is not a whole number", f"the keys give {model.num_parameters}")
    if stated != model.num_parameters:
        rule = f"is not what {model.architecture} has by these keys, which is {model.num_parameters}"
        raise InputError(where, stated, rule, "mend the keys, or leave the number out")
