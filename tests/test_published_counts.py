"""Parameter counts that others published, each reproduced exactly from its configuration (``facts/params.yaml``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.catalog import shipped
from memcalc.readers.config import model_from_config
from memcalc.readers.yaml import load_yaml

FACTS = load_yaml(Path(__file__).parent / "facts" / "params.yaml")
EXACT = [fact for fact in FACTS if "params_exact" in fact]
ROUNDED = [fact for fact in FACTS if "params_rounded" in fact]


def counted(fact: dict) -> int:
    """The parameters of the fact's model, by the convention of whoever counted them."""
    config = dict(load_yaml(shipped("models")[fact["model"]]) if "model" in fact else fact["config"])
    config.pop("num_parameters", None)  # the number under test is the one the tensors give
    config.update(fact.get("change", {}))
    if "architecture" in fact:
        config["architectures"] = [fact["architecture"]]
    model = model_from_config(config, strict=True)
    left_out, buffers = fact.get("without", ()), fact.get("count_buffers", ())
    assert all(any(part in tensor.name for tensor in model.parameters) for part in left_out), "names nothing"
    assert all(any(part in tensor.name for tensor in model.buffers) for part in buffers), "names nothing"
    return sum(
        int(tensor.elements)
        for tensor in model.tensors
        if (tensor.role == "parameter" and not any(part in tensor.name for part in left_out))
        or (tensor.role == "buffer" and any(part in tensor.name for part in buffers))
    )


@pytest.mark.parametrize("fact", EXACT, ids=lambda fact: fact["name"])
def test_published_integer_is_reproduced(fact):
    """The count is the published one, to the last parameter."""
    assert counted(fact) == fact["params_exact"]


@pytest.mark.parametrize("fact", ROUNDED, ids=lambda fact: fact["name"])
def test_rounded_figure_is_met_within_its_rounding(fact):
    """A figure printed to so many digits is met within half of the last one."""
    assert 2 * abs(counted(fact) - fact["params_rounded"]) <= fact["rounded_to"]


def test_facts_are_many_and_each_has_a_source():
    """No row without its source, no row twice, and most families are held to somebody else's number."""
    assert len(EXACT) > 150
    assert all(fact["source"] for fact in FACTS)
    assert len({fact["name"] for fact in FACTS}) == len(FACTS)
    families = {
        (load_yaml(shipped("models")[fact["model"]]) if "model" in fact else fact["config"])["model_type"] for fact in FACTS
    }
    assert len(families) >= 30
