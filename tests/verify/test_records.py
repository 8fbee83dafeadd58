"""Records judged: every byte of a real step, and each way a record can differ, be damaged or be no record at all."""

from __future__ import annotations

import json

import pytest

from memcalc.errors import EXIT_NO, EXIT_UNJUDGED, EXIT_YES, InputError
from memcalc.job import read_job
from memcalc.measurement import measurement_from
from memcalc.measurement_files import write_measurement
from memcalc.verify.files import Models, kind_of, verify_records
from memcalc.verify.judge import FAILED, PASSED, UNJUDGED, exit_code
from memcalc.verify.predict import predict
from memcalc.verify.tolerance import Tolerance, parse_tolerance

WEIGHT = "transformer.h.1.mlp.c_fc.weight"


def verified(tmp_path, record, tolerance="0"):
    write_measurement(record, tmp_path / "record.json")
    (verdict,) = verify_records(tmp_path / "record.json", parse_tolerance(tolerance))
    return verdict


def components(verdict):
    return {one.name: (one.predicted, one.measured, one.difference) for one in verdict.ranks[0].components}


def test_a_real_step_agrees_to_the_byte(tmp_path, altered):
    """Parameters, gradients and states of a real AdamW step are predicted tensor by tensor, host scalars apart."""
    verdict = verified(tmp_path, altered())
    assert (verdict.outcome, verdict.reason) == (PASSED, "every byte agrees")
    found = components(verdict)
    size = sum(pair.measured for pair in verdict.ranks[0].tensors if pair.component == "parameters")
    assert found["parameters"] == found["gradients"] == (size, size, 0)
    assert found["optimizer_states"] == (2 * size, 2 * size, 0)
    assert found["host_optimizer_states"] == (28 * 4, 28 * 4, 0), "one fp32 step scalar for each of 28 tensors"
    assert all(pair.predicted == pair.measured for pair in verdict.ranks[0].tensors)
    assert exit_code([verdict]) == EXIT_YES


@pytest.mark.parametrize("name", [WEIGHT, f"{WEIGHT}.grad", f"{WEIGHT} exp_avg"])
def test_one_tensor_off_by_512_bytes_is_found(tmp_path, altered, name):
    """512 bytes in one tensor of any component fail the record, and the tensor is named."""
    verdict = verified(tmp_path, altered({name: 512}))
    assert verdict.outcome == FAILED
    assert f"1 of {28 * (2 if 'exp' in name else 1)} tensors differ: {name} takes " in verdict.reason
    assert [(pair.name, pair.difference) for pair in verdict.ranks[0].tensors if pair.difference] == [(name, 512)]
    assert exit_code([verdict]) == EXIT_NO


def test_errors_that_cancel_are_found(tmp_path, altered):
    """Two tensors off by as much in opposite directions fail too, though their component's sum is right."""
    verdict = verified(tmp_path, altered({WEIGHT: 512, "transformer.h.0.mlp.c_fc.weight": -512}))
    assert components(verdict)["parameters"][2] == 0
    assert verdict.outcome == FAILED
    assert "2 of 28 tensors differ" in verdict.reason


def test_a_tensor_too_few_and_one_too_many(tmp_path, altered, document):
    """A predicted tensor that was not there and one nobody predicted are both said by name."""
    missing = verified(tmp_path, altered({f"{WEIGHT}.grad": None}))
    assert missing.reason.endswith(f"{WEIGHT}.grad was predicted with 9,216 B and is not there")
    more = {**document["ranks"][0]["tensors"][0], "name": "adapter.weight", "owner": "adapter.weight", "nbytes": 40}
    extra = verified(tmp_path, altered(ranks=[{"tensors": [*document["ranks"][0]["tensors"], more]}]))
    assert extra.reason.endswith("adapter.weight takes 40 B and was not predicted")


def test_adapters_are_not_mistaken_for_a_difference(tmp_path, altered, document):
    """Adapters that a record's settings do not tell of are a question memcalc cannot answer, not a wrong answer."""
    lora = {**document["ranks"][0]["tensors"][0], "name": "base.h.0.attn.lora_A.default.weight", "owner": None, "nbytes": 64}
    verdict = verified(tmp_path, altered(ranks=[{"tensors": [*document["ranks"][0]["tensors"], lora]}]))
    assert verdict.outcome == UNJUDGED
    assert "adapters (base.h.0.attn.lora_A.default.weight) that its settings do not tell of" in verdict.reason


@pytest.mark.parametrize(("tolerance", "outcome"), [("511B", FAILED), ("512B", PASSED), ("1%", PASSED), ("0.1%", FAILED)])
def test_the_tolerance_bounds_each_component(tmp_path, altered, tolerance, outcome):
    """A tolerance in bytes or percent is applied to a component's differences, and not one byte beyond."""
    verdict = verified(tmp_path, altered({WEIGHT: 512}), tolerance)
    assert verdict.outcome == outcome


def test_a_state_of_another_name_is_the_same_bytes(tmp_path, document):
    """A library may call a state otherwise than the registry: what is compared is the parameter's bytes."""
    text = json.dumps(document).replace(" exp_avg_sq", " second_moment")
    assert verified(tmp_path, measurement_from(json.loads(text))).outcome == PASSED


def test_a_record_that_contradicts_itself_cannot_be_judged_by(tmp_path, altered, document):
    """Where the sum written down is not that of the tensors listed, neither is believed."""
    (rank,) = document["ranks"]
    lying = {**rank, "components": {**rank["components"], "parameters": {"walked": 1}}}
    verdict = verified(tmp_path, altered(ranks=[lying]))
    assert (verdict.outcome, exit_code([verdict])) == (UNJUDGED, EXIT_UNJUDGED)
    assert "contradicts itself" in verdict.reason


def test_a_missing_rank_is_not_passed_over(tmp_path, altered, document):
    """A record of one rank does not stand for a job that asked for two."""
    request = {**document["request"], "parallelism": {"dp": 2}}
    verdict = verified(tmp_path, altered(request=request))
    assert verdict.reason == "the record has 1 ranks, and its job asks for 2"
    assert verdict.outcome == UNJUDGED


def test_out_of_memory_contradicts_only_a_promise(tmp_path, altered):
    """A step that ran out of memory agrees with a prediction that never said it would fit."""

    def at(total):
        failure = {"kind": "out_of_memory", "message": "…", "total": total}
        return verified(tmp_path, altered(status="out_of_memory", failure=failure, ranks=[]))

    small, large = at(2**26), at(2**40)
    assert (small.outcome, small.reason) == (PASSED, "it ran out of memory, and nothing promised that it would fit")
    assert (large.outcome, "was predicted to take at most" in large.reason) == (FAILED, True)


def test_a_case_that_failed_cannot_be_judged(tmp_path, altered):
    """A recorded failure is reported with its cause."""
    failure = {"kind": "missing_package", "message": "apex is not installed"}
    verdict = verified(tmp_path, altered(status="failed", failure=failure, ranks=[]))
    assert (verdict.outcome, verdict.reason) == (UNJUDGED, "the case missing package: apex is not installed")


def test_the_states_are_a_lower_bound_of_a_gpu_step(tmp_path, altered, document):
    """A GPU's step that peaked below what the states alone are said to take proves the prediction wrong."""
    environment = {**document["environment"], "device": {"name": "a GPU", "kind": "cuda"}}
    rows = [{**row, "device": "cpu" if row["name"].endswith(" step") else "cuda:0"} for row in document["ranks"][0]["tensors"]]

    def at(peak):
        phase = {"phase": "optimizer_step", "start": {}, "end": {}, "peak": {"requested": peak}}
        rank = {"tensors": rows, "iterations": [{"index": 2, "phases": [phase]}]}
        return verified(tmp_path, altered(ranks=[rank], environment=environment))

    low = at(2**40).footprint.states.requested
    assert at(low).outcome == PASSED
    assert at(low - 1).outcome == FAILED
    assert "below the" in at(low - 1).reason


def test_damaged_and_foreign_files_hide_no_other(tmp_path, altered):
    """Half a record, another JSON and a job nobody can read are each reported; the good and the altered record still count."""
    write_measurement(altered(), tmp_path / "a.json")
    write_measurement(altered({WEIGHT: 512}), tmp_path / "deep" / "b.json.gz")
    (tmp_path / "cut.json").write_text((tmp_path / "a.json").read_text()[:999])
    (tmp_path / "foreign.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "empty.json").write_text("")
    write_measurement(altered(request={"model": "no-such-model"}), tmp_path / "unknown.json")
    verdicts = {verdict.source.rsplit("/", 1)[1]: verdict for verdict in verify_records(tmp_path)}
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {
        "a.json": PASSED, "b.json.gz": FAILED, "cut.json": UNJUDGED, "empty.json": UNJUDGED, "foreign.json": UNJUDGED,
        "unknown.json": UNJUDGED,
    }  # fmt: skip
    assert "is cut short" in verdicts["cut.json"].reason
    assert "is missing" in verdicts["foreign.json"].reason
    assert "no-such-model is neither a shipped model nor a path" in verdicts["unknown.json"].reason
    assert exit_code(verdicts.values()) == EXIT_NO, "a difference wins over what could not be judged"
    assert exit_code([v for n, v in verdicts.items() if n != "b.json.gz"]) == EXIT_UNJUDGED


def test_an_empty_folder_is_no_agreement(tmp_path):
    """Nothing compared is an error, never a success."""
    with pytest.raises(InputError, match="holds no records"):
        verify_records(tmp_path)


def test_what_a_target_is(tmp_path, altered):
    """A name is a model; a file says by what it holds whether it is a record, a job or a model's config."""
    write_measurement(altered(), tmp_path / "records" / "r.json")
    (tmp_path / "model").mkdir()
    for file in ("model/config.json", "config.json"):
        (tmp_path / file).write_text('{"model_type": "gpt2"}')
    (tmp_path / "job.yaml").write_text("model: gpt2\n")
    (tmp_path / "jobs.yaml").write_text("jobs: [{model: gpt2}]\n")
    (tmp_path / "own.yaml").write_text("model_type: gpt2\n")
    (tmp_path / "cut.json").write_text("{")
    expected = {
        "records": "records", "records/r.json": "records", "model": "model", "config.json": "model",
        "job.yaml": "jobs", "jobs.yaml": "jobs", "own.yaml": "model", "cut.json": "records",
    }  # fmt: skip
    assert {name: kind_of(str(tmp_path / name)) for name in expected} == expected
    assert kind_of("gpt2") == "model"


@pytest.mark.parametrize("text", ["-1", "abc", "120%", "1.5", "nan", ""])
def test_a_bent_tolerance_is_refused(text):
    """What is no size and no share is refused with the ways to write one."""
    with pytest.raises(InputError, match="--tolerance"):
        parse_tolerance(text)


def test_a_tolerance_is_told_as_it_was_given():
    """The tolerance appears in reports as a person wrote it."""
    assert [str(parse_tolerance(text)) for text in ("0", "512B", "1%", "0.5%")] == ["0 B", "512 B", "1%", "0.5%"]
    assert Tolerance(nbytes=8, share=0.01).allows(9, 1000)


def test_gradients_freed_in_backward_are_not_expected_at_its_end():
    """Under LOMO each gradient is freed as it is used, so none is there to be walked to; under Adam all of them are."""
    tiny = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 11}

    def gradients(optimizer):
        job = read_job({"model": tiny, "optimizer": optimizer, "precision": "fp32"})
        return [one for one in predict(job, Models()(job)).ranks[0].tensors if one.component == "gradients"]

    assert gradients("lomo") == []
    assert len(gradients("adam")) == 16
