"""Apex's O2 in the played step: when the masters' gradients are there, by hand, and whose others are dropped when."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.errors import InputError
from memcalc.job import read_job
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.unroll import unroll

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 5, "n_head": 4, "vocab_size": 512, "n_positions": 16}
RESNET = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "embedding_size": 8,
          "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 5}  # fmt: skip
JOB = {"model": GPT2, "precision": "apex-o2", "optimizer": "sgd", "micro_batch_size": 1, "sequence_length": 2,
       "attention": "eager"}  # fmt: skip
N = (512 + 16) * 64 + 5 * (12 * 64 * 64 + 13 * 64) + 2 * 64
WORKSPACE = 64 * 2**20
"""What cuBLAS keeps: 32 MiB, of cublas and of cublasLt each, on an H100."""


def gradients(keys: dict[str, object]) -> list[tuple[str, int, int]]:
    """(phase, bytes of gradients when it begins, the fewest in it) of the second iteration, in order."""
    job = {**JOB, **keys}
    live, found = 0, []
    for event in unroll(estimate_whole(read_job(job), read_model(job["model"]), replayed=False).tape):
        if isinstance(event, Mark):
            found.append([event.iteration, event.phase, live, live])
        elif event.buffer.role == "gradient":
            live += event.buffer.requested if isinstance(event, Alloc) else -event.buffer.requested
            if found:
                found[-1][3] = min(found[-1][3], live)
    return [(phase, begun, fewest) for iteration, phase, begun, fewest in found if iteration == 2]


def test_the_peak_by_hand():
    """As backward returns: 2 of parameters, 4 of masters, 2 and 4 of gradients, the batch, the loss and the scaled loss."""
    found = estimate_mapping(JOB)
    assert found.peak.requested == 12 * N + WORKSPACE + 2 * 2 * 8 + 4 + 4
    assert (found.peak.phase, found.peak.instant) == ("backward", "transformer.ln_f.bias.main_grad")
    assert found.states.rounded <= found.peak.rounded <= found.peak.allocated
    assert found.components.gradients == 6 * N


@pytest.mark.parametrize("times", [2, 5])
def test_the_masters_gradients_live_through_accumulation(times):
    """FP16 gradients are dropped before each backward, those of the masters once the step is through."""
    found = gradients({"gradient_accumulation_steps": times})
    once = [(phase, 0, 0) for phase in ("forward", "loss", "backward")]
    again = [("forward", 6 * N, 6 * N), ("loss", 6 * N, 6 * N), ("backward", 6 * N, 4 * N)]
    assert found[:3] == once
    assert found[3:6] == found[-5:-2] == again
    assert found[-2:] == [("optimizer_step", 6 * N, 2 * N), ("zero_grad", 2 * N, 0)]


def test_gradients_that_zero_grad_fills_with_zeros_live_to_the_next_backward():
    """The masters' go with the step whatever zero_grad does."""
    found = gradients({"set_to_none": False})
    assert found == [
        ("forward", 2 * N, 2 * N), ("loss", 2 * N, 2 * N), ("backward", 2 * N, 0), ("optimizer_step", 6 * N, 2 * N),
        ("zero_grad", 2 * N, 2 * N),
    ]  # fmt: skip


@pytest.mark.parametrize(("keys", "beside"), [({}, 0), ({"gradient_accumulation_steps": 2}, 4), ({"set_to_none": False}, 4)])
def test_batch_norms_have_gradients_of_their_own_alone(keys, beside):
    """In FP32 as they are, they have no second one; what a former backward left of them is put aside through the next."""
    job = {"model": RESNET, "precision": "apex-o2", "optimizer": "sgd", "micro_batch_size": 1, **keys}
    model = read_model(RESNET)
    norms = sum(t.numel * t.count for t in model.parameters if t.kind == "batch_norm")
    others = sum(t.numel * t.count for t in model.parameters) - norms
    found = estimate_mapping(job)
    assert norms > 0
    assert found.components.gradients == 6 * others + (4 + beside) * norms
    assert found.states.rounded <= found.peak.rounded <= found.peak.allocated


def test_a_master_s_gradient_is_in_no_bucket():
    """Under DDP whose buckets the gradients are views of, the masters' alone have memory of their own."""
    found = estimate_mapping({**JOB, "dp": 2, "zero_args": {"gradient_as_bucket_view": True}})
    assert found.components.gradients == 4 * N
    assert found.states.rounded <= found.peak.rounded <= found.peak.allocated


@pytest.mark.parametrize("backend", ["deepspeed", "fsdp2", "megatron"])
def test_no_other_engine_has_its_layout(backend):
    """Each has a layout of its own for masters, and says so."""
    with pytest.raises(InputError, match="does not have the layout apex-o2; use torch"):
        estimate_mapping({**JOB, "dp": 2, "zero_stage": 3 if backend == "fsdp2" else 1, "zero_backend": backend})
