"""Bounds from recorded errors, and verdicts from bounds: nothing fits on no evidence."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bounds as script
from memcalc.allocator.replay import replay
from memcalc.bounds import FEW, FILE, Recorded, bounded, interval, lives_in, recorded
from memcalc.footprint import Components, Footprint, ModelSummary, Outside, Peak, States
from memcalc.job import read_job
from memcalc.tape.events import Alloc, Buffer, Free, Mark
from memcalc.units import GIB, MIB
from memcalc.verdict import judge_step, judged

ROOT = Path(__file__).parents[1]


def rows(ratios, family="llama", engine="trace", predicted=10**9):
    """Records with these ratios of measured to predicted."""
    return [Recorded(str(at), engine, family, "code", "allocated", predicted, round(predicted * ratio), 0)
            for at, ratio in enumerate(ratios)]  # fmt: skip


def step(*sizes):
    """A tape: a weight of the first size, then the others one after another, each freed before the next."""
    weight = Buffer("weight", sizes[0], "parameter")
    tape = [Mark("forward"), Alloc(weight)]
    for at, size in enumerate(sizes[1:]):
        buffer = Buffer(f"b{at}", size, "activation")
        tape += [Alloc(buffer), Free(buffer)]
    return tape


def footprint(tape, engine="trace", hardware=None):
    """The footprint of such a tape, as an engine hands it to ``bounded``."""
    played = replay(tape)
    top = played.peak("allocated")
    return Footprint(
        model=ModelSummary("m", "llama", 1, 1), engine=engine, components=Components(), optimizer_states={},
        job={"behaviour": {"gpu": "h100-80gb"}, "hardware": hardware or {}, "parallelism": {}},
        peak=Peak(allocated=top.bytes, reserved=played.peak("reserved").bytes, low=1), phases={}, host={}, ranks=(),
        states=States(1, 1, 1, "init", "", {}),
    )  # fmt: skip


def test_a_family_of_twenty_is_its_own_and_a_smaller_one_is_pooled():
    """Nineteen llamas are judged with everyone, twenty by themselves, and nineteen runs in all by nobody."""
    others = rows([1.2], family="gpt2")
    few, many = rows([1.0] * (FEW - 1)) + others, rows([1.0] * FEW) + others
    assert (float(interval("trace", "llama", of=few).high), interval("trace", "llama", of=few).pooled) == (1.2, True)
    assert (interval("trace", "llama", of=many).high, interval("trace", "llama", of=many).pooled) == (1, False)
    assert interval("trace", "llama", of=rows([1.0] * (FEW - 1))) is None
    assert interval("analytic", "llama", of=many) is None
    assert interval("trace", "llama", "reserved", of=many) is None


@settings(max_examples=50, deadline=None)
@given(ratios=st.lists(st.floats(0.5, 2.0), min_size=FEW, max_size=40), rounding=st.integers(0, 10**7))
def test_every_recorded_run_lies_within_its_own_bound(ratios, rounding):
    """The bound is the worst that was seen, rounding of the published figure included, and is not narrower by a byte."""
    seen = [replace(one, halfwidth=rounding) for one in rows(ratios)]
    found = interval("trace", "llama", of=seen)
    for one in seen:
        assert one.predicted * found.low <= one.measured - rounding
        assert one.measured + rounding <= one.predicted * found.high


def test_the_share_is_the_order_statistics():
    """With 95 % confidence the largest of n covers 0.05 ** (1/n) of runs: 86 % for 20, 95 % for 59 (the textbook's 59)."""
    assert round(interval("trace", "llama", of=rows([1.0] * 20)).share, 3) == 0.861
    assert interval("trace", "llama", of=rows([1.0] * 59)).share >= 0.95 > interval("trace", "llama", of=rows([1.0] * 58)).share


def test_the_records_that_ship_are_those_of_the_published_runs():
    """memcalc/recorded.json is what the script makes of the committed predictions, and every id is a case with a source."""
    assert script.text() == FILE.read_text()
    files = {"trace": "predictions.json", "analytic": "analytic.json"}
    kept = {
        (engine, one["id"]): one
        for engine, file in files.items()
        for one in json.loads((ROOT / "benchmarks/published" / file).read_text())
    }
    assert len(recorded()) >= 48
    litgpt = [one for one in recorded() if one.implementation == "litgpt"]
    assert all(kept[one.engine, one.id]["predicted"] == one.predicted for one in litgpt)
    assert set(json.loads(FILE.read_text())["columns"]) == set(Recorded.__dataclass_fields__)


def test_a_record_of_a_gpu_becomes_a_row(tmp_path, monkeypatch):
    """Its highest allocated and reserved instants after the first iteration stand beside what was predicted of its job."""
    document = json.loads(gzip.decompress((ROOT / "measurements/cpu/families-bert.json.gz").read_bytes()))
    (tmp_path / "cpu.json").write_text(json.dumps(document))
    assert list(script.measured(tmp_path)) == []
    document["environment"]["device"]["kind"] = "cuda"
    for at, iteration in enumerate(document["ranks"][0]["iterations"]):
        for phase in iteration["phases"]:
            phase["peak"] |= {"allocated": 1000 - at, "reserved": 2000 - at}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    told = replace(footprint(step(GIB), engine="analytic"), peak=Peak(allocated=990, reserved=None))
    monkeypatch.setattr(script, "_predicted", lambda record: told)
    assert list(script.measured(tmp_path)) == [
        [document["case"], "analytic", "llama", "transformers", "allocated", 990, 999, 0]
    ]


def test_bounded_gives_what_is_known_and_leaves_the_rest_null():
    """Records give low and high, a reserved figure gives the device's range; without them both stay null."""
    known = bounded(footprint(step(GIB, 100 * MIB)))
    assert known.peak.low < known.peak.allocated < known.peak.high
    assert known.peak.reserved < known.peak.device_low < known.peak.device_high
    assert known.peak.device is None
    assert known.outside
    assert "with 95% confidence" in known.assumptions[-1]
    unknown = bounded(footprint(step(GIB), engine="nobody"))
    assert (unknown.peak.low, unknown.peak.high, unknown.assumptions) == (1, None, ())
    bare = footprint(step(GIB))
    assert bounded(replace(bare, peak=Peak())).peak == Peak()


def test_reserve_that_can_be_given_back_does_not_stop_a_step():
    """30, 40 and 50 MiB one after another reserve 120 where there is room, and need 50."""
    tape = step(2 * MIB, 30 * MIB, 40 * MIB, 50 * MIB)
    assert replay(tape).peak("reserved").bytes > 120 * MIB
    assert lives_in(tape, 70 * MIB)  # 20 for the weight's segment and 50
    assert not lives_in(tape, 69 * MIB)
    assert not lives_in(tape, -1)


@pytest.mark.parametrize(("memory", "verdict"), [(16 * GIB, "fits"), (11 * GIB, "tight"), (8 * GIB, "does_not_fit")])
def test_a_verdict_follows_from_the_bound(memory, verdict):
    """10 GiB and a context fit into 16, may or may not into 11, and certainly not into 8."""
    tape = step(10 * GIB, 100 * MIB)
    job = read_job({"model": "gpt2", "memory": memory})
    told = judged(bounded(footprint(tape)), job, tape)
    assert told.fits.verdict == verdict
    assert judged(bounded(footprint(tape)), job).fits.verdict == ("unknown" if verdict != "does_not_fit" else verdict)


def test_fragmentation_is_found_by_playing_the_step():
    """Blocks that pin their segments leave holes: the sum fits, the step does not, and the answer is tight."""
    pins = [Buffer(f"pin{at}", 2 * MIB, "activation") for at in range(64)]
    holes = [Buffer(f"hole{at}", 18 * MIB, "activation") for at in range(64)]
    tape = [Mark("forward")]
    for pin, hole in zip(pins, holes, strict=True):
        tape += [Alloc(hole), Alloc(pin)]
    tape += [Free(hole) for hole in holes]
    big = Buffer("big", 900 * MIB, "activation")
    tape += [Alloc(big), Free(big)]
    found = replace(bounded(footprint(tape)), outside=(Outside("context", 0, 0, "none"),))
    need = found.peak.high
    verdict, reason, most = judge_step(found, need + 32 * MIB, tape, None)
    assert (verdict, most) == ("tight", need)
    assert "fragmentation" in reason
    assert judge_step(found, 4 * GIB, tape, None)[0] == "fits"


def test_nothing_fits_on_no_evidence():
    """Without records, without an end of the context, or without a tape the answer is unknown, and no is still no."""
    tape = step(GIB)
    plenty = 100 * GIB
    assert judge_step(bounded(footprint(tape, engine="nobody")), plenty, tape, None)[0] == "unknown"
    endless = replace(bounded(footprint(tape)), outside=(Outside("context", 0, None, "?"),))
    assert judge_step(endless, plenty, tape, None)[0] == "unknown"
    assert judge_step(bounded(footprint(tape)), plenty, None, None)[0] == "unknown"
    assert judge_step(endless, GIB // 2, tape, None)[0] == "does_not_fit"


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 40 * MIB), min_size=2, max_size=12), more=st.integers(0, 64 * MIB))
def test_more_memory_never_turns_a_yes_into_a_no(sizes, more):
    """A step of one live buffer at a time that lives in so much memory lives in more; and in no less than it allocates."""
    tape = step(*sizes)
    need = replay(tape).peak("allocated").bytes
    assert not lives_in(tape, need - 1)
    if lives_in(tape, need + 20 * MIB):
        assert lives_in(tape, need + 20 * MIB + more)
