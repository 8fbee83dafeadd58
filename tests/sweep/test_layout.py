"""The file of a sweep, the order of its points, and what is refused before any is computed."""

from __future__ import annotations

import re
import time
from itertools import islice, product

import jsonschema
import pytest

from memcalc.errors import InputError
from memcalc.schemas import schema
from memcalc.sweep import read_sweep, run
from memcalc.sweep.layout import lay_out


def jobs(spec: dict) -> list[dict]:
    """Every point's job, dropped ones included."""
    sweep = run(spec)
    return [sweep.job(index) for index in range(sweep.points)]


def test_axes_multiply_and_the_last_is_the_fastest():
    """Points count through the axes as itertools.product does, in the order the file lists them."""
    grid = {"dp": [1, 2], "optimizer": ["adam", "sgd"], "precision": ["fp16", "fp32", "bf16"]}
    found = jobs({"base": {"model": "gpt2"}, "grid": grid})
    assert [(job["parallelism"]["dp"], job["training"]["optimizer"], job["training"]["precision"]) for job in found] == list(
        product(*grid.values())
    )


def test_ranges_hold_both_ends_where_they_are_met():
    """Steps and factors start at ``from`` and stop at ``to`` or before."""
    grid = {"dp": {"from": 1, "to": 20, "factor": 3}, "gradient_accumulation_steps": {"from": 2, "to": 7, "step": 2}}
    found = jobs({"base": {"model": "gpt2"}, "grid": grid})
    pairs = [(job["parallelism"]["dp"], job["training"]["gradient_accumulation_steps"]) for job in found]
    assert pairs == list(product([1, 3, 9], [2, 4, 6]))


def test_the_list_is_one_axis_slower_than_the_grid():
    """Each patch of the list meets all of the grid before the next does; what it is silent about is the base's."""
    spec = {
        "base": {"model": "gpt2", "zero_stage": 2},
        "grid": {"precision": ["fp16", "fp32"]},
        "list": [{"dp": 2, "zero_stage": 1}, {"dp": 4}],
    }
    assert [(job["parallelism"], job["training"]["precision"]) for job in jobs(spec)] == [
        ({"dp": 2, "zero_stage": 1}, "fp16"),
        ({"dp": 2, "zero_stage": 1}, "fp32"),
        ({"dp": 4, "zero_stage": 2}, "fp16"),
        ({"dp": 4, "zero_stage": 2}, "fp32"),
    ]


def test_included_points_come_last_and_are_patches_of_the_base():
    """They are numbered on, know nothing of the grid, and exclude does not reach them."""
    spec = {
        "base": {"model": "gpt2", "dp": 3},
        "grid": {"optimizer": ["adam", "sgd"]},
        "include": [{"optimizer": "sgd"}, {"dp": 5}],
        "exclude": [{"optimizer": "sgd"}],
    }
    rows = list(run(spec))
    assert [(row["index"], row["optimizer"], row["dp"]) for row in rows] == [
        (0, "torch:Adam", 3),
        (2, "torch:SGD", 3),
        (3, "torch:Adam", 5),
    ]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ({"optimizer": "adam"}, {2, 3}),
        ({"training.optimizer": "adam", "dp": 2}, {0, 2, 3}),
        ({"parallelism": {"dp": 1}}, {1, 3}),
        ({"memory": 24 * 2**30, "dp": 1}, {1, 3}),
        ({"zero_stage": 0, "dp": 2}, {0, 2}),
        ({"model": {"params": 1_000_000}, "dp": 2}, {0, 2}),
    ],
)
def test_excluded_points_match_every_key_however_they_are_spelled(exclude, left):
    """Flat, dotted and grouped keys, sizes with units, defaults and bare sizes are compared as a job understands them."""
    spec = {
        "base": {"params": "1M", "memory": "24GiB"},
        "grid": {"optimizer": ["adam", "sgd"], "dp": [1, 2]},
        "exclude": [exclude],
    }
    assert {row["index"] for row in run(spec)} == left


def test_keys_mean_the_same_flat_dotted_and_grouped():
    """Whichever way a key is written, and params for a model, the points are the same."""
    grids = [
        {"params": [10**6], "optimizer": ["adam"], "optimizer_args.amsgrad": [True]},
        {"model.params": [10**6], "training.optimizer": ["adam"], "training.optimizer_args.amsgrad": [True]},
        {"model": [{"params": 10**6}], "optimizer": ["adam"], "optimizer_args": [{"amsgrad": True}]},
    ]
    first, *others = [list(run({"grid": grid})) for grid in grids]
    assert first[0]["variance"] == 8 * 10**6
    assert all(other == first for other in others)


def test_keys_of_a_config_are_laid_over_a_name_a_file_and_a_mapping(tmp_path):
    """``model.<key>`` replaces a key of the point's model, by the config's own spellings."""
    (tmp_path / "mine.yaml").write_text("model_type: gpt2\nn_layer: 3\n")
    spec = {"grid": {"model": ["gpt2", "mine.yaml", {"model_type": "gpt2"}], "model.n_layer": [1, 2]}}
    rows = list(run(spec, base_dir=tmp_path))
    assert [row["num_parameters"] for row in rows] == [row["num_parameters"] for row in rows[:2]] * 3
    assert [row["model"] for row in rows[:3]] == ["gpt2 with n_layer=1", "gpt2 with n_layer=2", "mine with n_layer=1"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"gird": {}}, "gird: is not a known key; did you mean grid?"),
        ({"grid": {"optimzer": ["adam"]}}, "grid.optimzer: is not a known key; did you mean optimizer"),
        ({"grid": {"training.optimzer": ["adam"]}}, "grid.training.optimzer: is not a known key; did you mean optimizer"),
        ({"grid": {"training": [{}]}}, "grid.training: is a group of keys; name one of them, as training.optimizer"),
        (
            {"grid": {"hardware.gpu.name": ["a"]}},
            "grid.hardware.gpu.name: goes deeper than a job does; set hardware.gpu as a whole",
        ),
        ({"base": {"modle": "gpt2"}}, "base.modle: is not a known key; did you mean mode or model"),
        ({"base": {"dp": 1, "parallelism": {"dp": 2}}}, "base.parallelism: 2 is given twice (parallelism.dp); give it once"),
        ({"list": [{"dpp": 1}]}, "list.0.dpp: is not a known key"),
        ({"list": []}, "list: [] has no values; give it one, or leave it out"),
        ({"list": [3]}, "list.0: 3 is not a mapping"),
        ({"include": [{"modl": 1}]}, "include.0.modl: is not a known key; did you mean model"),
        ({"grid": {"dp": []}}, "grid.dp: [] has no values; give it one, or leave the axis out"),
        ({"grid": {"dp": 4}}, "grid.dp: 4 is not a list of values; write [a, b], or {from: 1, to: 64, factor: 2}"),
        ({"grid": {"dp": {"from": 1, "two": 3}}}, "grid.dp.to: is missing; add it"),
        ({"grid": {"dp": {"from": "1", "to": 3}}}, "grid.dp.from: 1 is not a whole number"),
        ({"grid": {"dp": {"from": 3, "to": 1}}}, "runs backwards, so that it is empty; let from be the smaller"),
        ({"grid": {"dp": {"from": 1, "to": 8, "step": 1, "factor": 2}}}, "has both step and factor; give one of the two"),
        ({"grid": {"dp": {"from": 0, "to": 8, "factor": 2}}}, "stays at 0 whatever it is multiplied by; let from be above 0"),
        (
            {"grid": {"dp": [1], "parallelism.dp": [2]}},
            "grid.parallelism.dp: parallelism.dp is varied by grid.dp already; vary it once",
        ),
        ({"grid": {"dp": [1]}, "list": [{"dp": 2}]}, "grid.dp: parallelism.dp is varied by list already; vary it once"),
        ({"grid": {"params": [1], "model": ["gpt2"]}}, "grid.model: model is varied by grid.params already; vary it once"),
        (
            {"grid": {"dp": [1, 2]}, "exclude": [{"dp": 3}]},
            "exclude.0.parallelism.dp: 3 is what no point has; check it against the axes, or leave it out",
        ),
        (
            {"grid": {"dp": [1, 2]}, "exclude": [{}]},
            "exclude.0: {} would drop every point; name the keys of the points to drop",
        ),
        ({"include": [{"dp": 2}], "exclude": [{"dp": 2}]}, "exclude: has no grid to drop points from; leave it out"),
        ({"grid": {"dp": {"from": 1, "to": 2**25}}}, "grid.dp: 33,554,432 values are more than 16,777,216; split the sweep"),
        (
            {"grid": {key: {"from": 1, "to": 2**21} for key in ("dp", "tp")}},
            "grid: 4,398,046,511,104 points are more than 1,099,511,627,776",
        ),
        ({"base": {"dp": {"a": float("nan")}}, "name": 3}, "name: 3 is not text"),
        ([1], "sweep: [1] is not a mapping; write base and grid"),
    ],
)
def test_a_sweep_that_cannot_be_laid_out_is_refused_in_words(spec, said):
    """Unknown keys, empty and double axes, and too many points are found before anything runs."""
    with pytest.raises(InputError, match=re.escape(said)):
        run(spec if isinstance(spec, dict) else read_sweep(spec))


def test_a_trillion_points_are_laid_out_and_begun_at_once():
    """Nothing lists the points: the first rows of 2**40 come as fast as the first rows of a few."""
    spec = {"grid": {"params": {"from": 1, "to": 2**20}, "dp": {"from": 1, "to": 2**20}}}
    began = time.monotonic()
    sweep = run(spec, chunk=1000)
    assert (sweep.points, sweep.job(2**40 - 1)) == (2**40, {"model": {"params": 2**20}, "parallelism": {"dp": 2**20}})
    rows = list(islice(sweep, 1000))
    assert [row["dp"] for row in rows] == list(range(1, 1001))
    assert time.monotonic() - began < 20


def test_an_empty_sweep_is_its_base():
    """Without axes there is one point."""
    assert [row["model"] for row in run({"base": {"model": "gpt2"}})] == ["gpt2"]


def test_positions_and_coordinates_are_inverse():
    """A point's number and its place on every axis are one arithmetic, in any stretch."""
    import numpy as np

    (block,) = lay_out(
        read_sweep({"base": {"model": "gpt2"}, "grid": {"dp": [1, 2, 3], "optimizer": ["a", "b"], "tp": [1, 2, 3, 4]}})
    )
    at = block.coordinates(np.arange(5, 20))
    assert [tuple(int(axis[i]) for axis in at[1:]) for i in range(15)] == list(product(range(3), range(2), range(4)))[5:20]


def test_the_schema_takes_what_the_reader_takes():
    """Sweeps that are read pass the JSON Schema, and those it refuses are refused."""
    document = schema("sweep")
    jsonschema.Draft202012Validator.check_schema(document)
    good = {
        "name": "a",
        "base": {"model": "gpt2"},
        "grid": {"dp": {"from": 1, "to": 8, "factor": 2}, "optimizer": ["adam"]},
        "list": [{"zero_stage": 1}],
        "include": [{"dp": 3}],
        "exclude": [{"dp": 4}],
    }
    jsonschema.validate(good, document)
    assert read_sweep(good).name == "a"
    for bad in ({"gird": {}}, {"grid": {"dp": 3}}, {"grid": {"dp": {"from": 1}}}, {"list": [3]}, {"include": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, document)
        with pytest.raises(InputError):
            read_sweep(bad)
