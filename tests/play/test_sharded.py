"""The played step under FSDP2, against real ranks over gloo and against counts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import engine_hooks, family_of, play_job, play_step
from memcalc.errors import InputError
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.parallelism.engines import hooks_of
from memcalc.parallelism.fsdp2_gathers import GATHER, REDUCE
from memcalc.parallelism.fsdp2_units import Units
from memcalc.plan import make_plan
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll
from tests.play.sharded_cases import CASES, MODELS, asked
from tests.play.test_step import sizes

OWN = ("all-gather input", "all-gather output", "(gathered)", "reduce-scatter input", "reduced gradients")
"""How the names of FSDP2's own buffers end."""
RECORDED = json.loads((Path(__file__).parent / "sharded.json").read_text())


@cache
def played(name: str, *, unrolled: bool) -> Any:
    """A case, played."""
    read = read_job(asked(CASES[name]))
    model, plan = prepared(read_model(read.model), read), make_plan(read)
    units = CASES[name].get("units")
    wrapped = units and Units(*(tuple(tuple(paths) for paths in units[key]) for key in ("groups", "stays")))
    hooks = hooks_of(plan.setting(model), plan.backend, wrapped)
    return play_step(read, plan, model, family_of(model), Behaviour(), unrolled=unrolled, hooks=hooks)


def told(played: Any) -> dict[str, Any]:
    """How high a played iteration is at each allocation of FSDP2's own, at its highest, where backward begins, at its end."""
    live = top = saved = 0
    at, before = [], ""
    for event in unroll(played.events):
        if isinstance(event, Mark):
            saved = live if event.phase == "backward" else saved
            continue
        buffer = event.buffer
        if buffer.role != "workspace":
            live += buffer.requested if isinstance(event, Alloc) else -buffer.requested
            top = max(top, live)
            if not isinstance(event, Alloc):
                continue
            cast = buffer.site == before and "reduced" in before  # by an operator like any other, of which none is told
            if buffer.site.endswith(OWN) and not cast:
                at.append([buffer.requested, live])
            before = buffer.site
    return {"top": top, "saved": saved, "net": live, "at": at}


@pytest.mark.parametrize("name", CASES)
def test_every_buffer_of_fsdp2_is_alive_when_it_is_on_real_ranks(name):
    """At each gather, copy and reduction of a real iteration as many bytes are alive as are played; so at its highest."""
    assert told(played(name, unrolled=True)) == RECORDED[name]


@pytest.mark.parametrize("name", CASES)
def test_layers_played_once_are_the_layers_played_one_by_one(name):
    """A stack whose middle is played once and counted has the very events of one whose layers are all played."""
    folded, whole = played(name, unrolled=False), played(name, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    assert fold(folded.events, requested).stretch.top == fold(whole.events, requested).stretch.top
    held = [sum(buffer.requested * times for buffer, times in each.gradients) for each in (folded, whole)]
    assert held[0] == held[1]


L, R = 4 * 64 * 64 - 2 * 32 * 64 + 3 * 64 * 176 + 2 * 64, 2 * 99 * 64 + 64
"""Elements of one of llama's layers: four projections, two of them half as wide, three matrices, two norms; of its root."""
PADDED = R + 2 * 64
"""99 rows of both tables are 50 for each of two ranks."""


def tops(job: dict[str, Any]) -> dict[str, int]:
    """Each role's own highest point."""
    return fold(play_job(job).events, requested).stretch.role_top


def test_gathered_parameters_are_the_roots_and_one_layers():
    """By hand: BF16 copies of the root, which stays, and of a layer; under ZeRO-2 of everything."""
    mixed, kept = (tops(asked(CASES[name]))["parameter_copy"] for name in ("mixed", "kept gathered"))
    assert mixed == 2 * (PADDED + L)
    assert kept == 2 * (PADDED + 5 * L)


def test_buffers_of_gathers_and_reductions_are_counted_by_hand():
    """Their highest, in BF16: behind a layer, the next one's gather, this one's reduce-scatter and what comes of it.

    In front of a layer it is the gather before and its own, and the cast half that goes into it.
    """
    behind = 2 * L + 2 * L + 2 * L // 2  # ahead, the input, the output before it is cast
    forward = 2 * L + 2 * L + 2 * L // 2  # of the layer before, of this one, this rank's half in BF16
    assert tops(asked(CASES["mixed"]))["communication"] == max(behind, forward)
    wide = tops(asked(CASES["reduced in fp32"]))["communication"]
    assert wide == 4 * L + 2 * L + 2 * L // 2  # the input in FP32, held while the next gather is made


def test_sharded_gradients_are_a_ranks_share_in_the_parameters_dtype():
    """FP32 of half of everything, whatever was gathered and reduced in."""
    for name in ("fp32", "mixed", "reduced in fp32", "kept gathered"):
        assert tops(asked(CASES[name]))["gradient"] == 4 * (PADDED + 5 * L) // 2


def test_what_is_left_on_fewer_ranks_is_a_share_of_what_was_gathered():
    """By hand, FP32 over four ranks, then two: each layer leaves half from its forward to its backward.

    Highest where the first layer of backward, the last, is copied out: the root, its own and every layer's half; its gather, of
    two ranks, is as large as one of four.
    """
    to_two = tops(asked(CASES["to fewer"]))
    root = R + 64 * 2  # 99 rows of both tables are 25 for each of four ranks
    assert to_two["parameter_copy"] == 4 * (root + 5 * L // 2 + L)
    assert to_two["communication"] == tops({**asked(CASES["fp32"]), "dp": 4})["communication"]


def test_more_ranks_take_less_for_good_and_the_same_for_a_moment():
    """Eight times the ranks: an eighth of the gradients, the same gathered parameters but for their padding."""
    two, sixteen = (tops({**asked(CASES["fp32"]), "dp": ranks}) for ranks in (2, 16))
    assert sixteen["gradient"] * 8 == 4 * (5 * L + (112 - 100) * 128 + PADDED) * 8 // 16
    assert sixteen["parameter_copy"] - two["parameter_copy"] == 4 * 128 * (112 - 100)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 70), st.integers(1, 3), st.integers(2, 5)), min_size=2, max_size=4),
    st.sampled_from(
        [
            "mixed",
            "reduced in fp32",
            "kept gathered",
            "mixed, checkpointed",
            "to fewer",
            "a layer that is shared",
            "lists of lists",
        ]
    ),
)
def test_arrays_of_ranks_are_each_job_alone(points, name):
    """Ranks that shard, replicas and batches as int64 arrays give the folded heights of each job alone."""
    read = read_job(asked(CASES[name]))
    model, plan = prepared(read_model(read.model), read), make_plan(read)

    def heights(shards: Any, replicas: Any, rows: Any) -> Any:
        spread = replace(plan, shards=shards, replicas=replicas)
        training = read.training.model_copy(update={"micro_batch_size": rows})
        hooks = engine_hooks(spread, model)
        job = read.model_copy(update={"training": training})
        folded = fold(play_step(job, spread, model, family_of(model), Behaviour(), hooks=hooks).events, requested).stretch
        return folded.top, folded.total, folded.role_top

    shards, replicas, rows = (np.array(column, dtype=np.int64) for column in zip(*points, strict=True))
    shards *= 2 if name == "to fewer" else 1
    replicas[:] = replicas[0]  # whether there are several is one for all
    top, total, roles = heights(shards, replicas, rows)
    for place in range(len(points)):
        alone = heights(int(shards[place]), int(replicas[place]), int(rows[place]))
        assert (top[place], total[place]) == alone[:2]
        for role, value in alone[2].items():
            assert np.broadcast_to(roles.get(role, 0), len(points))[place] == value


def test_an_estimate_has_the_step_on_its_streams():
    """The whole step is estimated, allocator and all; gathers and reductions have streams, and so blocks, of their own."""
    told_ = estimate_mapping({**asked(CASES["mixed"]), "dp": 4, "max_grad_norm": 1.0}, explained=True)
    peak, parts = told_.peak, told_.components
    assert peak.requested <= peak.rounded <= peak.allocated <= peak.reserved
    assert not told_.warnings
    assert parts.gradients == parts.parameters  # FP32 both, a fourth of everything
    for component in ("communication", "parameter_copies", "gradients", "temporaries"):
        lines = [held.requested * held.times for held in told_.buffers if held.component == component]
        assert sum(lines) == getattr(parts, component), component
    streams = {event.buffer.stream for event in unroll(played("mixed", unrolled=False).events) if isinstance(event, Alloc)}
    assert streams == {0, GATHER, REDUCE}


def test_a_shared_layer_is_gathered_for_each_pass_and_reduced_once():
    """Six passes and the root: autograd hands a shared parameter its gradient when the last of its uses has given its part."""
    events = [event for event in unroll(played("a layer that is shared", unrolled=True).events) if isinstance(event, Alloc)]
    times = {name: sum(event.buffer.site == name for event in events) for name in ("all-gather output", "reduce-scatter input")}
    assert times == {"all-gather output": 1 + 6 + 6, "reduce-scatter input": 1 + 1}


def test_a_stage_of_layers_is_one_unit():
    """By hand: gathered parameters are the root's and at most one of ResNet's stages; the second is the larger."""
    case = CASES["lists of lists"]
    model = read_model(asked(case)["model"])

    def whole(start: str) -> int:
        found = [tensor for tensor in model.parameters if tensor.name.startswith(start)]
        return sum(tensor.elements for tensor in found)

    stages = "resnet.encoder.stages."
    root = whole("") - whole(stages)
    assert all(tensor.shape[0] % 2 == 0 for tensor in model.parameters)  # nothing is padded
    assert tops(asked(case))["parameter_copy"] == 4 * (root + max(whole(f"{stages}0."), whole(f"{stages}1.")))


def test_a_tower_that_does_not_run_is_never_gathered():
    """Words alone leave Gemma 3's tower as it is, but for what of it is the root's; the gradients are those of the rest."""
    alone, seen = (tops(asked(CASES[name])) for name in ("a tower that does not run", "a tower"))
    model = read_model(MODELS["gemma3"])
    unused = [tensor for tensor in model.parameters if ".vision_tower." in tensor.name or ".multi_modal" in tensor.name]
    assert seen["gradient"] - alone["gradient"] == 4 * sum(tensor.elements for tensor in unused) // 2


def test_adapters_stand_on_the_layers_of_their_kind():
    """By hand: Qwen's dense and sparse layers have matrices of their own, and both have adapters of rank 4 on two 64 x 64."""
    model = {"model_type": "qwen2_moe", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 98,
             "num_hidden_layers": 2, "decoder_sparse_step": 2, "num_experts": 2, "intermediate_size": 96,
             "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "tie_word_embeddings": False}  # fmt: skip
    job = {**asked(CASES["fp32"]), "model": model, "lora": {"r": 4, "target_modules": ["q_proj", "o_proj"]}}
    events = [event.buffer for event in unroll(play_job(job).events) if isinstance(event, Alloc)]
    attention = 4 * 64 * 64 + 3 * 64 + 2 * 64 + 2 * 2 * 4 * 64
    dense, sparse = 3 * 64 * 96, 2 * 3 * 64 * 32 + 2 * 64 + 3 * 64 * 48 + 2 * 64  # the last, of one row, is padded to two
    root = 2 * 98 * 64 + 64
    gathers = {buffer.requested // 4 for buffer in events if buffer.site == "all-gather output"}
    assert gathers == {root, attention + dense, attention + sparse}


def test_what_fsdp2_does_otherwise_is_refused():
    """Layers of several kinds in 4 bits are not told apart, and no peak is told."""
    model = {"model_type": "qwen2_moe", "num_hidden_layers": 4, "decoder_sparse_step": 2, "num_experts": 4}
    keys = {"optimizer": "sgd", "micro_batch_size": 1, "zero_stage": 3, "zero_backend": "fsdp2", "dp": 2, "precision": "fp32"}
    answer = estimate_mapping({"model": model, **keys, "quantization": "nf4", "lora": {"r": 4, "target_modules": ["q_proj"]}})
    assert answer.peak.allocated is None
    assert any("layers.*, whose members are of kinds that are not told apart" in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"zero_args": {"reshard_after_forward": 3}}, r"reshard_after_forward: 3 does not divide the 4 ranks that shard"),
        ({"zero_args": {"reshard_after_forward": 1}}, r"reshard_after_forward: 1 is False to fully_shard.*use zero_stage 2"),
        ({"zero_args": {"reshard_after_forward": True}}, r"reshard_after_forward: True is a number.*with zero_stage 3"),
        ({"zero_args": {"reshard_after_forward": 2}, "zero_stage": 2}, r"forward: 2 has no use under zero_stage 2"),
    ],
)
def test_a_number_of_ranks_after_forward_is_a_factor_of_use(given, said):
    """What torch refuses or takes for a truth value is an error that says what to write."""
    with pytest.raises(InputError, match=said):
        estimate_mapping({**asked(CASES["to fewer"]), **given})


def test_layers_that_backward_never_gathers_are_refused_on_fewer_ranks():
    """What a tower without gradients left after forward is let go of by nobody (FSDPParam.to_sharded), and no peak is told."""
    answer = estimate_mapping({**asked(CASES["a tower without gradients"]), "dp": 4, "zero_args": {"reshard_after_forward": 2}})
    assert answer.peak.allocated is None
    assert any("left on fewer ranks for good, where backward never comes" in warning for warning in answer.warnings)


def test_all_ranks_after_forward_are_the_default():
    """As many ranks as shard change nothing (_get_post_forward_mesh_info)."""
    whole, told_ = ({**asked(CASES["fp32"]), "zero_args": args} for args in ({}, {"reshard_after_forward": 2}))
    assert sizes(play_job(whole).events) == sizes(play_job(told_).events)


def test_options_of_fsdp2_are_checked():
    """An option it does not have is an error that names those it has."""
    with pytest.raises(InputError, match=r"parallelism\.zero_args\.reduce_in_float16.*did you mean reduce_in_float32"):
        estimate_mapping({**asked(CASES["mixed"]), "zero_args": {"reduce_in_float16": True}})
