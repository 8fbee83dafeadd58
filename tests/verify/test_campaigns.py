"""Campaigns: how a file becomes cases, what it refuses, and that every shipped one is sound to its last case."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcalc.api import model_of
from memcalc.campaign import load_campaign, read_campaign, slug
from memcalc.catalog import shipped
from memcalc.errors import InputError
from memcalc.job import read_job
from memcalc.verify.files import Models
from memcalc.verify.predict import predict
from tests.pairs import covering

SMALL = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 11}


def campaign(*groups, **keys):
    return read_campaign({"name": "c", "device": "cpu", "models": {"small": SMALL}, "groups": list(groups), **keys})


def test_axes_multiply_and_patches_are_slowest():
    """A grid's later axes vary faster, and the list of patches is the slowest axis of all."""
    group = {"name": "g", "base": {"model": "small"}, "list": [{}, {"max_grad_norm": 1.0}],
             "grid": {"precision": ["fp32", "bf16"], "optimizer": ["adam", "sgd"]}}  # fmt: skip
    names = [case.name for case in campaign(group)]
    assert names == ["g-fp32-adam", "g-fp32-sgd", "g-bf16-adam", "g-bf16-sgd", "g-clip1.0-fp32-adam", "g-clip1.0-fp32-sgd",
                     "g-clip1.0-bf16-adam", "g-clip1.0-bf16-sgd"]  # fmt: skip


def test_groups_take_turns():
    """Round after round each group gives as many cases as its turn has, until none is left."""
    several = {"name": "a", "turn": 2, "base": {"model": "small"}, "grid": {"seed": [1, 2, 3, 4, 5]}}
    one = {"name": "b", "base": {"model": "small", "optimizer": "sgd"}, "grid": {"seed": [1, 2]}}
    assert [case.name for case in campaign(several, one)] == [
        "a-seed1",
        "a-seed2",
        "b-seed1",
        "a-seed3",
        "a-seed4",
        "b-seed2",
        "a-seed5",
    ]


def test_each_question_is_asked_once():
    """The same job and settings under two groups is one case; the same name for two questions is told apart."""
    twice = [{"name": name, "base": {"model": "small"}} for name in ("a", "b")]
    assert [case.name for case in campaign(*twice)] == ["a"]
    base = {"model": "small", "name": "same"}
    first, second = campaign({"name": "g", "list": [{**base, "optimizer": "adam"}, {**base, "optimizer": "sgd"}]})
    assert first.name == "g-same"
    assert second.name == f"g-same-{second.key[:8]}"


def test_exclude_and_include():
    """A patch drops what matches all its keys, one of several values included; what is appended stays."""
    group = {
        "name": "g",
        "base": {"model": "small"},
        "grid": {"optimizer": ["adam", "sgd", "adamw"], "precision": ["fp32", "bf16"]},
        "exclude": [{"optimizer": ["adam", "sgd"], "precision": "bf16"}],
        "include": [{"optimizer": "sgd", "precision": "bf16"}],
    }
    names = [case.name for case in campaign(group)]
    assert names == ["g-adam-fp32", "g-sgd-fp32", "g-adamw-fp32", "g-adamw-bf16", "g-sgd-bf16"]


def test_a_case_knows_its_job_settings_and_ranks():
    """Keys of a job go to the job, keys of a run to its settings; options add up; ranks are those of the mesh."""
    (case,) = campaign({"name": "g", "base": {"optimizer_args": {"foreach": False}, "iterations": 5, "dp": 2},
                        "list": [{"optimizer_args": {"amsgrad": True}, "history": True}]},
                       base={"model": "small", "optimizer": "adam", "iterations": 2})  # fmt: skip
    job = read_job(case.request)
    assert job.training.optimizer_args == {"foreach": False, "amsgrad": True}
    assert (case.settings.iterations, case.settings.history, case.ranks) == (5, True, 2)
    assert model_of(job).name == "small"


def test_a_key_changes_with_the_question():
    """A journal that knows a case by its key does not take a changed job, setting or device for done."""

    def key(device="cpu", **keys):
        return read_campaign({"name": "c", "device": device, "groups": [{"name": "g", "base": {"model": SMALL, **keys}}]})[
            0
        ].key

    assert key() == key()
    assert len({key(), key(seed=1), key(optimizer="sgd"), key(device="cuda")}) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": "tpu"}, "device: tpu is not one of the choices"),
        ({"groups": []}, "groups"),
        ({"groups": [{"name": "g", "base": {"model": "small", "optimiser": "adam"}}]}, "did you mean optimizer"),
        ({"groups": [{"name": "g", "grid": {"optimizer": ["adam"]}}]}, "model: is missing"),
        ({"groups": [{"name": "g", "base": {"model": "small"}, "grid": {"micro_batch_size": [0]}}]}, "is not above 0"),
        ({"groups": [{"name": "g", "base": {"model": "small", "iterations": 0}}]}, "iterations: 0 is below 1"),
        ({"groups": [{"name": "g", "base": {"model": "small"}, "exclude": [{"model": "small"}]}]}, "leaves no case to run"),
        ({"groups": [{"name": "g", "grid": {"seed": list(range(200)), "iterations": list(range(1, 99))}}]}, "are more than"),
    ],
)  # fmt: skip
def test_a_bent_campaign_is_refused(change, says):
    """A misspelt key, a value out of range, an empty or a boundless campaign is one clear error before anything runs."""
    document = {"name": "c", "device": "cpu", "models": {"small": SMALL}, "groups": [{"name": "g"}], **change}
    with pytest.raises(InputError) as caught:
        read_campaign(document, "file.yaml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("file.yaml")


def test_a_name_is_fit_for_a_file():
    """Long and odd words become short names of plain characters, and long ones stay apart."""
    long = ["x" * 200 + end for end in "ab"]
    assert len({slug(text) for text in long}) == 2
    assert all(len(slug(text)) <= 96 for text in long)
    assert slug("A/b: ../c") == "a-b-..-c"


@pytest.mark.parametrize("name", sorted(shipped("campaigns")))
def test_every_shipped_case_can_be_predicted(name):
    """Each case of each shipped campaign names a model, an optimizer with these options and a mesh that memcalc knows.

    A step is played as well of every two of group, model, precision and checkpointing that meet in a case.
    """
    models = Models()
    cases = load_campaign(shipped("campaigns")[name])
    assert len({case.name for case in cases}) == len({case.key for case in cases}) == len(cases)
    jobs = [read_job(case.request) for case in cases]
    kinds = [
        (case.group, str(job.model), job.training.precision, job.training.activation_checkpointing)
        for case, job in zip(cases, jobs, strict=True)
    ]
    played = set(covering(kinds))
    for place, (case, job) in enumerate(zip(cases, jobs, strict=True)):
        if place not in played:  # what is held does not hang on the step
            job = job.model_copy(update={"scope": "states"})
        assert predict(job, models(job), replayed=False).ranks, case.name


def test_the_gpu_campaign_is_large_and_varied():
    """At least 300 different cases, of which the first forty have seen every group and every model family."""
    cases = load_campaign(shipped("campaigns")["gpu"])
    assert len(cases) >= 300
    assert {case.group for case in cases[:40]} == {case.group for case in cases}
    families = [case.request["model"]["model_type"] for case in cases]
    assert set(families[:40]) == set(families) == {"gpt2", "llama", "bert", "t5", "vit", "mixtral", "whisper", "resnet"}
    assert len({case.request["training"]["optimizer"] for case in cases}) >= 40


def test_ranks_are_two_to_four():
    """The campaign of ranks asks for no more processes than any machine has."""
    cases = load_campaign(shipped("campaigns")["ranks"])
    assert {case.ranks for case in cases} == {2, 3, 4}
    assert all(Path(case.name).name == case.name for case in cases)
