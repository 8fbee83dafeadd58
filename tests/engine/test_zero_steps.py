"""The played step under DeepSpeed's ZeRO, against real steps of DeepSpeed over gloo, and against counts by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memcalc.engines.analytic.buckets import Placed, Reducer, Reduction
from memcalc.engines.analytic.estimate import estimate_job
from memcalc.engines.analytic.gathers import Coordinator, Limits
from memcalc.engines.analytic.many import peaks
from memcalc.engines.analytic.moments import END, GRADIENT
from memcalc.engines.analytic.peak import steps_of
from memcalc.engines.analytic.static import accounts
from memcalc.engines.analytic.tapes import steady_tape
from memcalc.job import read_job
from memcalc.parallelism.megatron import placements
from memcalc.plan import make_plan
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Buffer, Free, Mark
from memcalc.tape.unroll import unroll
from tests.engine.record_zero import AHEAD, FILE, MODEL, case

SCALARS = 128
"""Bytes of single numbers (losses, flags of overflow, clipping's) in which a step on the CPU may differ from what is told."""
RECORDED = json.loads(FILE.read_text())
PHASES = ("forward", "backward", "optimizer_step")
Row = tuple[str, int, int, int]


def steps(one: dict[str, Any]) -> list[Any]:
    """The step of each rank that may be the highest."""
    keys = {key: value for key, value in one.items() if key not in ("name", "world", "ranks")}
    job = read_job({**keys, "dp": one["world"], "zero_backend": "deepspeed", "optimizer": "adamw", "attention": "eager"})
    plan, model = make_plan(job), prepared(read_model(job.model), job)
    return steps_of(job, plan, model, accounts(plan, model, one["world"])[0])[0]


def rows(step: Any) -> list[Row]:
    """(phase, bytes at its start, highest, at its end), above what is there between steps; without CUDA's workspaces."""
    live, found, between = 0, [], None
    for event in unroll(steady_tape(*step)):
        if isinstance(event, Mark):
            if found and event.phase not in ("loss", "zero_grad"):  # which is within the engine's step
                found[-1][3] = live
            if event.phase in PHASES:
                between = live if between is None else between
                found.append([event.phase, live, live, live])
        elif event.buffer.place == "device" and event.buffer.role != "workspace":
            live += event.buffer.requested * (1 if isinstance(event, Alloc) else -1)
            if found:
                found[-1][2] = max(found[-1][2], live)
    assert between is not None
    found[-1][3] = live
    assert live == between, "a step leaves what it found"
    return [(phase, *(at - between for at in rest)) for phase, *rest in found]


def close(ours: list[Row], theirs: list[Any]) -> bool:
    """Whether every phase starts, peaks and ends alike."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(a[0] == b[0] and all(abs(x - y) <= SCALARS for x, y in zip(a[1:], b[1:], strict=True)) for a, b in pairs)


@pytest.mark.parametrize("one", RECORDED, ids=lambda one: one["name"])
def test_every_phase_is_as_a_real_step_of_deepspeed_has_it(one):
    """Start, highest and end of forward, backward and step: to the byte but for single numbers, on the rank that is highest.

    Every rank that is told of is one of the real ones, and the highest of all is among them.
    """
    told = [rows(step) for step in steps(one)]
    for ours in told:
        assert any(close(ours, theirs) for theirs in one["ranks"]), (ours, one["ranks"])
    assert abs(highest(told) - highest(one["ranks"])) <= SCALARS


def highest(ranks: Any) -> int:
    """The highest instant of any rank."""
    return max(top for rank in ranks for _, _, top, _ in rank)


def told(**keys: Any) -> list[Any]:
    """The step of a small llama of 4 layers on 2 ranks unless told otherwise."""
    return steps(case("", keys.pop("world", 2), stage=keys.pop("stage"), precision="bf16", **keys))


def placed(sizes: list[int]) -> list[Placed]:
    """Parameters of these sizes, one after another."""
    return [Placed(f"p{number}", sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def reduced(stage: int, rank: int, bucket: int, sizes: list[int], *, copies: bool = True) -> list[tuple[str, int]]:
    """What a reducer makes (+) and lets go of (-) in bytes as gradients come from the last parameter to the first, in FP32."""
    partition = -(-sum(sizes) // 4) * 2
    reduction = Reduction(stage, rank, partition, "float32", bucket, False, copies, placed(sizes), range(len(sizes)))
    grads = [Buffer(f"p{number}.grad", 4 * size, "gradient") for number, size in enumerate(sizes)]
    events: list[Any] = [Mark("forward"), Mark("backward")]
    for number in reversed(range(len(sizes))):
        moment = Buffer(f"p{number}", 0, "temporary", operator=GRADIENT, shape=(sizes[number],))
        events += [Alloc(grads[number]), *([Free(grads[number])] if stage == 2 else []), Alloc(moment), Free(moment)]
    end = Buffer("", 0, "temporary", operator=END)
    reducer = Reducer(reduction, [(grad, 1) for grad in grads] if stage == 1 else [])
    made = reducer.rewritten([*events, Alloc(end), Free(end)])
    return [("+" if isinstance(e, Alloc) else "-", e.buffer.requested) for e in made if not isinstance(e, Mark)]


def test_a_bucket_is_reduced_when_the_next_gradient_does_not_fit():
    """Stage 2 on the first of two ranks, 12 + 6 + 2 elements cut at 10, in buckets of 10.

    The second rank's 2 and 6 are one slice, reduced as a view of the bucket; 12 is over the bucket's size, waits in its own
    memory, and is flattened for both ranks it reaches into. What the first rank touches is kept whole: 12.
    """
    assert reduced(2, 0, 10, [12, 6, 2]) == [
        ("+", 8), ("+", 40), ("-", 8), ("+", 24), ("-", 24), ("+", 48),  # 12 comes: 6 and 2 are reduced, nothing of them kept
        ("+", 48), ("-", 48), ("+", 48), ("-", 48), ("-", 40),  # flat copy; kept; its own memory; the bucket
    ]  # fmt: skip
    assert reduced(2, 0, 10, [12, 6, 2], copies=False) == [
        ("+", 8), ("+", 40), ("-", 8), ("+", 24), ("-", 24), ("+", 48), ("+", 48), ("-", 48), ("-", 40),
    ]  # fmt: skip


def test_stage_1_reduces_from_the_first_parameter_once_all_gradients_are_there():
    """8 + 4 + 4 elements cut at 8, in buckets of 12: gradients stay to the end, then go as they are copied.

    8 and 4 are two ranks' slices, hence a flat copy; the last rank keeps 4 + 4 of them.
    """
    assert reduced(1, 1, 12, [8, 4, 4]) == [
        ("+", 16), ("+", 48), ("+", 16), ("+", 32),  # the bucket with the first gradient's hook
        ("-", 32), ("-", 16), ("+", 48), ("-", 48), ("+", 32), ("-", 16), ("-", 48),
    ]  # fmt: skip


def test_only_ranks_that_may_be_the_highest_are_told_of():
    """In stage 2 the last rank keeps its gradients first, in stage 1 the first; another counts only if it keeps more."""
    for stage in (1, 2):
        assert len(told(stage=stage, world=4, reduce_bucket_size=5000)) == 2


@pytest.mark.parametrize(
    "keys", [{"stage": 1}, {"stage": 2, "steps": 2}, {"stage": 3, **AHEAD}], ids=lambda keys: str(keys["stage"])
)
def test_arrays_of_batches_are_single_jobs(keys):
    """A step of sizes held as arrays is what each size has alone."""
    one = case("", precision="bf16", reduce_bucket_size=9000, **keys)
    mapping = {key: value for key, value in one.items() if key not in ("name", "world")}
    job = read_job({**mapping, "dp": 2, "zero_backend": "deepspeed", "optimizer": "adamw"})
    model = read_model(job.model)
    sizes = [1, 2, 5, 16]
    alone = [
        estimate_job(job.model_copy(update={"training": job.training.model_copy(update={"micro_batch_size": size})}), model)
        for size in sizes
    ]
    assert list(peaks(job, model, "micro_batch_size", sizes)) == [footprint.peak.rounded for footprint in alone]
    assert all(footprint.peak.rounded > footprint.peak.allocated * 0.99 for footprint in alone)


def test_a_gather_of_several_is_split_as_the_first_is_waited_for():
    """Three parameters of 5, 6 and 200 elements on two ranks, 4 bytes each, one module each; two are sent for ahead.

    Those two come in one buffer, padded to 6 + 6; as the first is used both are copied, and the buffer goes with the second.
    """
    gathers = Coordinator([200, 5, 6], "abc", frozenset(), [[0], [1], [2]], Limits(2, 4, 1000, 0, 11, False))

    def sizes(events: Any) -> list[tuple[str, int]]:
        return [("+" if isinstance(event, Alloc) else "-", event.buffer.requested) for event in events]

    assert sizes(gathers.fetch("A", [0])) == [("+", 800), ("+", 48)]
    assert sizes(gathers.release("A", [0])) == [("-", 800)]
    assert sizes(gathers.fetch("B", [1])) == [("+", 20), ("+", 24)]
    assert sizes(gathers.release("B", [1])) == [("-", 20)]
    assert sizes(gathers.fetch("C", [2])) == [("-", 48)]
    assert sizes(gathers.release("C", [2])) == [("-", 24)]


def test_a_parameter_used_again_soon_stays():
    """Within the reuse distance a parameter is kept from forward to backward; persistent ones never go."""
    gathers = Coordinator([10, 20], "ab", frozenset({1}), [[0], [1], [1], [0]], Limits(2, 4, 1000, 60, 0, False))
    made = [gathers.fetch("A", [0]), gathers.release("A", [0]), gathers.fetch("B", [1]), gathers.release("B", [1])]
    assert [len(events) for events in made] == [1, 0, 0, 0]
    made = [gathers.fetch("B", [1]), gathers.release("B", [1]), gathers.fetch("A", [0]), gathers.release("A", [0])]
    assert [len(events) for events in made] == [0, 0, 0, 1]


@pytest.mark.parametrize("stage", [0, 1])
def test_megatrons_gradients_are_in_its_buffer_from_the_start(stage):
    """After backward there is no byte more than before it but activations' scratch; the step takes what its optimizer takes."""
    keys = {"model": MODEL, "precision": "megatron-bf16", "zero_stage": stage, "dp": 2, "optimizer": "adamw",
            "micro_batch_size": 2, "sequence_length": 24, "attention": "eager", "max_grad_norm": 1.0}  # fmt: skip
    job = read_job(keys)
    plan, model = make_plan(job), prepared(read_model(job.model), job)
    (step,), _ = steps_of(job, plan, model, accounts(plan, model, 2)[0])
    forward, backward, update = rows(step)
    assert (forward[1], backward[3], update[1], update[3]) == (0, 0, 0, 0)
    held = estimate_job(job, model)
    assert held.components.gradients == 4 * (model.num_parameters if stage == 0 else placements_end(plan, model))
    assert held.warnings == ()


def placements_end(plan: Any, model: Any) -> int:
    """Elements of Megatron's buffer: its end, to a multiple of 128."""
    return -(-placements(plan.setting(model))[1] // 128) * 128


def test_what_is_not_played_says_so():
    """Stage 0's wrapper, and frozen parameters under stage 3, have states and a reason, and no peak."""
    for keys, said in (
        ({"zero_backend": "deepspeed"}, "parallelism.zero_stage: 0"),
        ({"zero_stage": 3, "lora": {"r": 4}}, "frozen"),
    ):
        job = read_job({"model": MODEL, "dp": 2, "precision": "bf16", **keys})
        footprint = estimate_job(job, read_model(job.model))
        assert footprint.peak.allocated is None
        assert any(said in warning for warning in footprint.warnings), footprint.warnings


@pytest.mark.parametrize("model", ["t5-small", "resnet-50", "qwen2.5-7b", "bert-base-uncased"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_parameter_is_found_whatever_its_place_is_called(model, stage):
    """Lists in lists, layers of several kinds, parts numbered in a sequence: a step leaves what it found, no gradient left."""
    one = {"world": 4, "model": model, "precision": "bf16", "micro_batch_size": 1, "zero_stage": stage}
    keys = {} if model == "resnet-50" else {"attention": "eager"}
    job = read_job({**{key: value for key, value in one.items() if key != "world"}, **keys, "dp": 4, "optimizer": "adamw"})
    plan, read = make_plan(job), prepared(read_model(job.model), job)
    for step in steps_of(job, plan, read, accounts(plan, read, 4)[0])[0]:
        assert [row[0] for row in rows(step)] == list(PHASES)
