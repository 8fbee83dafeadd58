"""Many configs as one config of arrays: the sweep's models, held to the scalar ones for every family there is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from pydantic import BaseModel, Field, ValidationError

from memcalc.families.base import FamilyConfig, known_families, load_family
from memcalc.families.llama import LlamaConfig
from memcalc.readers.config import build_model, stack_configs, structure_key, validate
from tests.families.kept import cases_of

DEEP = 6
"""The most layers, groups or stages drawn: lists of layers are written out when the numbers are scalars."""


def bases(stem: str) -> list[tuple[FamilyConfig, str]]:
    """The family's cases, validated, each with its architecture; its default config where it has none."""
    family = load_family(stem)
    cases = cases_of(stem) or [{"architecture": family.usual, "config": {}}]
    return [(validate(family, case["config"], "model"), case["architecture"]) for case in cases]


def varied(config, draw: random.Random):
    """The config with every whole number drawn anew, lists left alone; a fifth of the numbers are 0 or 1."""
    listed = any(isinstance(value, list | tuple) for value in config.__dict__.values())
    values: dict[str, object] = {}
    for name, value in config:
        if isinstance(value, BaseModel):
            values[name] = varied(value, draw)
        elif isinstance(value, int) and not isinstance(value, bool):
            counts_layers = any(word in name for word in ("layers", "groups", "depth", "step", "freq", "replace"))
            if listed and counts_layers:
                continue
            most = DEEP if counts_layers else 96
            values[name] = draw.randint(0, 1) if draw.random() < 0.2 else draw.randint(0, most)
    return config.model_copy(update=values)


def draws(config: FamilyConfig) -> Iterator[FamilyConfig]:
    """Varied configs of the same structure that the family takes, the same ones every time; of a hundred, those there are."""
    draw = random.Random(repr(config))
    for _ in range(100):
        drawn = varied(config, draw)
        if acceptable(drawn) and structure_key(drawn) == structure_key(config):
            yield drawn


def acceptable(config: BaseModel) -> bool:
    """Whether each drawn number is in its key's range; rules between keys do not matter to the arithmetic."""
    try:
        type(config).model_validate(config.model_dump())
    except ValidationError:
        return False
    return True


def sizes(family, config, architecture) -> dict:
    """(name, dtype, kind, role, trainable) -> elements of all tensors of that description."""
    model = build_model(family, config, architecture, name="", dtype=None)
    total: dict = {}
    for tensor in model.tensors:
        key = (tensor.name, tensor.dtype, tensor.kind, tensor.role, tensor.trainable)
        total[key] = total.get(key, 0) + tensor.elements
    return total


@pytest.mark.parametrize("stem", known_families())
def test_a_stacked_build_equals_every_scalar_build(stem):
    """For every case of every family, one build over arrays gives each scalar build's elements, tensor by tensor."""
    family, compared = load_family(stem), 0
    for config, architecture in bases(stem):
        alike = [config, *islice(draws(config), 6)]
        together = sizes(family, stack_configs(alike), architecture)
        for index, one in enumerate(alike):
            alone = sizes(family, one, architecture)
            stacked = {key: int(np.broadcast_to(value, len(alike))[index]) for key, value in together.items()}
            assert {k: v for k, v in stacked.items() if v} == {k: v for k, v in alone.items() if v}
        compared += len(alike) - 1
    assert compared >= 5, "hardly any drawn config was one the family takes"


def test_structure_is_everything_but_the_numbers():
    """Sizes may differ within a structure; switches, None-ness and lists may not."""
    base = structure_key(LlamaConfig())
    assert structure_key(LlamaConfig(hidden_size=64, vocab_size=7, num_labels=0)) == base
    others = [LlamaConfig(attention_bias=True), LlamaConfig(num_key_value_heads=8), LlamaConfig(head_dim=128)]
    assert len({base, *(structure_key(config) for config in others)}) == 4


def test_structure_tells_lists_and_types_apart():
    """A list of whole numbers is structure, number by number, and 1 is not True in it."""

    class Inner(FamilyConfig):
        width: int = 1

    class Odd(FamilyConfig):
        layers: list = Field(default_factory=list)
        table: dict = Field(default_factory=dict)
        rate: float = 0.5
        inner: Inner = Inner()

    keys = [structure_key(Odd(**given)) for given in (
        {}, {"layers": [1]}, {"layers": [2]}, {"layers": [True]}, {"layers": [1.0]}, {"table": {"a": 1}}, {"rate": 0.25},
    )]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert structure_key(Odd(inner=Inner(width=5))) == structure_key(Odd())
    assert structure_key(Odd(layers=[Inner(width=5)])) != structure_key(Odd(layers=[Inner(width=6)]))


def test_stacking_configs_of_several_structures_is_a_fault():
    """Stacking what cannot be stacked is a programming error and not a silent mixture."""
    with pytest.raises(AssertionError, match="several structures"):
        stack_configs([LlamaConfig(), LlamaConfig(attention_bias=True)])


def test_numbers_of_nested_configs_are_stacked_too():
    """A config inside a config is stacked the same way, as gemma3's text_config."""

    class Inner(FamilyConfig):
        width: int = 1

    class Outer(FamilyConfig):
        inner: Inner = Inner()

    stacked = stack_configs([Outer(), Outer(inner=Inner(width=9))])
    assert stacked.inner.width.tolist() == [1, 9]
    assert stacked.inner.width.dtype == np.int64
