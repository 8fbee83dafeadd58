"""The allocator's settings in a job: what the analytic engine's played step comes to under them, and who refuses them."""

from __future__ import annotations

import pytest

from memcalc import api
from memcalc.allocator.replay import replay
from memcalc.allocator.settings import AllocatorSettings, parse_settings
from memcalc.allocator.summits import summits
from memcalc.arrays import rounded
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.readers.source import read_model
from memcalc.sweep.resolve import refuse_unswept
from memcalc.tape.fold import fold

MODEL = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 8192}  # fmt: skip
JOB = {"model": MODEL, "precision": "amp-bf16", "micro_batch_size": 3, "sequence_length": 500, "optimizer": "adamw"}
TEXTS = ("expandable_segments:True", "max_split_size_mb:20", "roundup_power2_divisions:4", "large_segment_size_mb:64")


def whole(text=None, **changes):
    job = read_job({**JOB, **changes, **({"behaviour": {"allocator": text}} if text is not None else {})})
    return estimate_whole(job, read_model(job.model))


@pytest.mark.parametrize("text", TEXTS)
def test_a_step_is_its_tape_replayed(text):
    """Allocated and reserved of each phase are those of the same tape replayed under the same settings."""
    found = whole(text)
    mine = replay(found.tape, text)
    steady = {phase: peaks for (iteration, phase), peaks in mine.phases().items() if iteration == 2}
    peak = found.footprint.peak
    assert peak.allocated == max(peaks["allocated"] for peaks in steady.values())
    assert peak.reserved == max(peaks["reserved"] for peaks in steady.values())
    assert {phase: figures["peak_allocated"] for phase, figures in found.footprint.phases.items() if phase in steady} == {
        phase: peaks["allocated"] for phase, peaks in steady.items()
    }
    assert found.footprint.job["behaviour"]["allocator"] == text


def test_expandable_segments_round_and_no_more():
    """A segment that grows is split wherever a request ends: what is allocated is what was asked, rounded to 512 B."""
    found, plain = whole(TEXTS[0]), whole()
    assert found.footprint.peak.allocated == found.footprint.peak.rounded < plain.footprint.peak.allocated
    iterations = fold(found.tape, rounded)
    assert max(peaks["allocated"] for peaks in summits(found.tape, parse_settings(TEXTS[0])).values()) == iterations.stretch.top


def test_a_forward_alone_has_them_too():
    """A model that does not train is played under the same settings."""
    keys = {key: value for key, value in JOB.items() if key != "optimizer"}
    peak = api.estimate(**keys, mode="evaluate", behaviour={"allocator": TEXTS[0]}).peak
    assert peak.allocated == peak.rounded
    assert peak.reserved % 2**21 == 0


def test_divisions_round_up():
    """A request over 1 MiB takes the next quarter of a power of two, so that more is allocated than was rounded."""
    assert whole("roundup_power2_divisions:4").footprint.peak.allocated > whole(TEXTS[0]).footprint.peak.allocated


def test_defaults_said_are_defaults():
    """Settings that say what holds anyway change no figure, and a job without settings does not mention them."""
    said, silent = whole("expandable_segments:False").footprint, whole().footprint
    assert (said.peak, said.phases) == (silent.peak, silent.phases)
    assert "allocator" not in silent.job["behaviour"]
    assert summits(whole().tape, AllocatorSettings()) == summits(whole().tape)


@pytest.mark.parametrize(("text", "path", "error"), [
    ("expandable_segments:yes", "behaviour.allocator.expandable_segments", InputError),
    ("max_split_size_mb:3", "behaviour.allocator.max_split_size_mb", InputError),
    ("max_splitsize_mb:30", "behaviour.allocator", InputError),
    ("backend:cudaMallocAsync", "behaviour.allocator.backend", NotModelledError),
])  # fmt: skip
def test_settings_that_cannot_be(text, path, error):
    """What PyTorch refuses, and what is not modelled, is said with its place in the job."""
    with pytest.raises(error) as caught:
        whole(text)
    assert caught.value.path == path


def test_states_alone_and_sweeps_refuse_them():
    """Neither plays a step through the allocator: both say so in place of passing the settings over."""
    with pytest.raises(InputError, match="states alone are bounded"):
        whole(TEXTS[0], scope="states")
    with pytest.raises(NotModelledError, match="not swept"):
        refuse_unswept(read_job({**JOB, "behaviour": {"allocator": TEXTS[0]}}))


def test_a_verdict_is_of_the_settings(monkeypatch):
    """Whether a step lives in a device's memory is asked of the allocator as the job has it."""
    asked = []
    monkeypatch.setattr("memcalc.bounds.lives_in", lambda tape, capacity, settings: asked.append(settings) or True)
    for keys in ({}, {"behaviour": {"allocator": TEXTS[0]}}):
        assert api.estimate(**JOB, gpu="h100-80gb", **keys).fits.verdict == "fits"
    assert asked == [None, parse_settings(TEXTS[0])]


def test_a_trace_takes_the_jobs_settings():
    """The key means the same to a trace, for which ``--allocator`` sets it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    keys = {**JOB, "engine": "trace", "model": {**MODEL, "num_hidden_layers": 1}}
    peaks = [api.estimate(**keys, behaviour={"allocator": text}).peak for text in (TEXTS[0], "")]
    assert peaks[0].allocated == peaks[0].rounded <= peaks[1].allocated


def test_a_measurement_refuses_them():
    """A measured process has the settings it was started with, so that a job's would say what is not so."""
    pytest.importorskip("torch")
    from memcalc.engines.measure.here import Ask, measure_here

    with pytest.raises(InputError, match="set PYTORCH_CUDA_ALLOC_CONF around it"):
        measure_here(Ask({**JOB, "behaviour": {"allocator": TEXTS[0]}}))
