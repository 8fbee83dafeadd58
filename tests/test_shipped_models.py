"""The shipped models: every file readable to the letter, sourced, and of the size its name says."""

from __future__ import annotations

import re

import pytest

from memcalc.catalog import shipped
from memcalc.readers.config import model_from_config
from memcalc.readers.source import read_model
from memcalc.readers.yaml import load_yaml
from memcalc.units import parse_count
from tests.meta import unfilled  # noqa: F401  for every test here

MODELS = {name: load_yaml(path) for name, path in shipped("models").items()}
EACH = pytest.mark.parametrize("name", MODELS)
HUB_NAMED_OTHERWISE = {"llama-2-7b", "llama-2-13b", "llama-2-70b"}
"""Names people type without the ``-hf`` of the Hub."""
NAMED_BY_LESS = {
    "mixtral-8x7b-v0.1", "mixtral-8x22b-v0.1", "qwen1.5-moe-a2.7b",
}  # fmt: skip
"""Mixtures named by one expert, or by what is active."""


def said_sizes() -> list[tuple[str, str]]:
    """The sizes that names state: ``gpt-j-6b`` says 6B, ``bloom-1b7`` 1.7B, ``gpt2`` nothing."""
    found = []
    for name in MODELS:
        said = re.search(r"(?<![\w.])(\d+(?:[._]\d+)?)([bm])(?![a-z])|-(\d)b(\d)\b", name.removesuffix("-hf"))
        if said is not None and name not in NAMED_BY_LESS:
            found.append((name, f"{said[3]}.{said[4]}B" if said[3] else f"{said[1].replace('_', '.')}{said[2].upper()}"))
    return found


def test_there_is_enough_to_choose_from():
    """The families people train are all there, and well over the sixty models promised."""
    assert len(MODELS) >= 150
    assert len({model["model_type"] for model in MODELS.values()}) >= 40


@EACH
def test_file_is_read_strictly(name):
    """Every key is one its family knows, and a stated number of parameters is the one the keys give."""
    model = model_from_config(MODELS[name], name=name, strict=True)
    assert model.num_parameters > 10**6
    assert model.dtype == MODELS[name].get("dtype")


@EACH
def test_file_says_where_it_is_from(name):
    """Name, Hub name and source are given, and the file is named as people name the model."""
    config = MODELS[name]
    assert config["name"] == name
    assert config["source"]
    assert all(isinstance(line, str) and len(line) > 10 for line in config["source"])
    if not config["model_type"].startswith("torchvision"):
        organisation, repository = config["hub"].split("/")
        assert organisation
        assert name in HUB_NAMED_OTHERWISE or repository.lower() == name


@EACH
def test_stated_count_has_a_source(name):
    """A number of parameters is stated only with the place it was published."""
    sourced = any(line.startswith("num_parameters: ") for line in MODELS[name]["source"])
    assert sourced == ("num_parameters" in MODELS[name])


@pytest.mark.parametrize(("name", "said"), said_sizes())
def test_size_is_what_the_name_says(name, said):
    """``-7b`` is 7 billion within the flattery of model names: gemma-2-2b has 2.6, pythia-70m 70.4, pythia-410m 405 million."""
    assert 0.8 < int(read_model(name).num_parameters) / parse_count(said) < (1.35 if said.endswith("B") else 1.5)


def test_sizes_are_said_by_most():
    """The check above is not an empty one."""
    assert len(said_sizes()) > 90


def test_most_counts_are_published():
    """Most of the models are held to an exact integer somebody else published."""
    assert sum("num_parameters" in config for config in MODELS.values()) > 0.8 * len(MODELS)


def smallest_of_each_family() -> list[str]:
    """One model of each family that transformers has, cheap enough to build."""
    published = {name: config.get("num_parameters") for name, config in MODELS.items() if "hub" in config}
    sizes = {name: count or int(read_model(name).num_parameters) for name, count in published.items()}
    by_size = sorted(sizes, key=lambda name: sizes[name])
    return sorted({MODELS[name]["model_type"]: name for name in reversed(by_size)}.values())


@pytest.mark.parametrize("name", smallest_of_each_family())
def test_shipped_keys_mean_the_same_to_transformers(name):
    """transformers, given a shipped file's keys, builds as many parameters as memcalc counts."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    own = {"name", "hub", "source", "note", "num_parameters", "architectures", "dtype"}
    keys = {key: value for key, value in MODELS[name].items() if key not in own}
    if keys["model_type"] in ("t5", "mt5"):
        # transformers 5 ties their heads whatever the config says (t5/configuration_t5.py:83); checkpoints need not
        keys["tie_word_embeddings"] = True
    model = model_from_config({**keys, "architectures": MODELS[name].get("architectures")})
    config = transformers.CONFIG_MAPPING[keys["model_type"]].from_dict(keys)
    with torch.device("meta"):
        module = getattr(transformers, model.architecture.replace("MPT", "Mpt"))(config)
    assert sum(parameter.numel() for parameter in module.parameters()) == model.num_parameters
