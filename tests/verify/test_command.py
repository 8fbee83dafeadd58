"""``memcalc verify`` as a person calls it: exit codes, forms, and errors in one line."""

from __future__ import annotations

import json

import pytest

from memcalc.__main__ import run
from memcalc.engines.measure import process
from memcalc.engines.measure.here import measure_here
from memcalc.measurement_files import write_measurement

WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def memcalc(capsys, monkeypatch):
    """Run a command line; its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_a_folder_of_records(memcalc, tmp_path, altered):
    """Records that agree exit with 0; a tensor altered by 512 bytes makes it 1; a broken file makes it 2."""
    write_measurement(altered(), tmp_path / "good.json")
    assert memcalc("verify", tmp_path)[0] == 0
    (tmp_path / "broken.json").write_text("{")
    code, out, _ = memcalc("verify", tmp_path)
    assert code == 2
    assert "1 agree" in out
    write_measurement(altered({WEIGHT: 512}), tmp_path / "wrong.json")
    code, out, _ = memcalc("verify", tmp_path, "--format", "json")
    assert code == 1
    told = json.loads(out)
    assert told["counts"] == {"passed": 1, "failed": 1, "unjudged": 1}
    assert memcalc("verify", tmp_path / "wrong.json", "--tolerance", "512B")[0] == 0
    assert memcalc("verify", tmp_path / "wrong.json")[0] == 1


def test_one_record_shows_its_components(memcalc, tmp_path, altered):
    """A record's table has predicted, measured and difference in whole bytes, and what explains it."""
    write_measurement(altered({WEIGHT: 512}), tmp_path / "r.json")
    code, out, _ = memcalc("verify", tmp_path / "r.json")
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("parameters")]
    assert "+512" in line
    assert "1 of 28 tensors differ" in out
    code, out, _ = memcalc("verify", tmp_path / "r.json", "--format", "markdown")
    assert code == 1
    assert "| optimizer states" in out
    code, out, _ = memcalc("verify", tmp_path / "r.json", "--format", "csv")
    assert out.startswith("case,source,outcome,rank,component,predicted,measured,difference,percent,explanation")


def test_a_figure_someone_else_measured(memcalc):
    """A figure that the states alone exceed exits with 1; a larger one cannot be judged while the peak is not modelled."""
    model = ("verify", "--params", "1B", "--optimizer", "adamw")
    assert memcalc(*model, "--observed", "8GiB", "--metric", "allocated")[0] == 1
    code, out, _ = memcalc(*model, "--observed", "40GiB", "--metric", "nvidia-smi", "--format", "json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["outcome"]) == (2, 2, "unjudged")
    assert told["low"] == told["footprint"]["states"]["rounded"]
    assert told["high"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("records", "--optimizer", "sgd"), "--optimizer: says nothing of"),
        (("records", "--lora", "r=8"), "--lora: says nothing of"),
        (("records", "--input", "x=float32[2]"), "--input: says nothing of"),
        (("records", "--tolerance", "lots"), "--tolerance: lots is not a size in bytes"),
        (("records", "--observed", "1GiB"), "--observed: 1GiB"),
        (("--params", "1B", "--observed", "1GiB", "--metric", "vram"), "--metric: vram is not a metric"),
        ((), "MODEL: is missing"),
    ],
)
def test_a_bent_call_is_one_line_and_2(memcalc, tmp_path, altered, monkeypatch, words, says):
    """What cannot be answered is one line on stderr that names the flag, and exit code 2."""
    write_measurement(altered(), tmp_path / "records" / "r.json")
    monkeypatch.chdir(tmp_path)
    code, out, err = memcalc("verify", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_job_is_measured_here_and_now(memcalc, tmp_path, monkeypatch):
    """A job file's real step, taken on this CPU, agrees with its prediction; one beside it that runs code is not run."""
    monkeypatch.setattr(process, "measure_apart", lambda ask, ranks: measure_here(ask))  # torch is here already
    job = tmp_path / "jobs.yaml"
    tiny = "{name: tiny, model_type: gpt2, n_embd: 24, n_layer: 1, n_head: 2, vocab_size: 97, n_positions: 32}"
    keys = "optimizer: adamw, micro_batch_size: 1, sequence_length: 8"
    job.write_text(f"- {{model: {tiny}, {keys}}}\n- {{model: 'py:os:getcwd', {keys}}}\n")
    code, out, _ = memcalc("verify", job, "--format", "json")
    first, second = json.loads(out)["records"]
    assert code == 2
    assert (first["outcome"], first["reason"], first["source"]) == ("passed", "every byte agrees", "live")
    for name in ("parameters", "gradients", "master_parameters", "optimizer_states"):
        assert first["components"][name]["difference"] == 0 < first["components"][name]["measured"]
    assert "trust it with --allow-code" in second["reason"]
