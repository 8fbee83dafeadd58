"""Mamba: counts made by hand, tokens counted or played one by one, arrays, and the fused kernel beside its restatement."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.played.against import heights, played, traced
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Repeat
from tests.play.batches import check_arrays
from tests.play.test_step import events_of, sizes

H, STATE, RANK, KERNEL = 48, 4, 3, 4
D = 2 * H
TORCH = {"implementation_args": {"kernels": "torch"}}


def job(layers: int = 2, tokens: int = 7, **keys: Any) -> dict[str, Any]:
    """A small Mamba on three rows."""
    model = {"model_type": "mamba", "hidden_size": H, "num_hidden_layers": layers, "vocab_size": 304, "state_size": STATE}
    return {"model": model, "optimizer": "adamw", "precision": "bf16", "micro_batch_size": 3, "sequence_length": tokens, **keys}


def a_layer_more(**keys: Any) -> int:
    """What a third layer saves for backward."""
    two, three = (heights(played(job(layers, **keys), unrolled=False)).saved for layers in (2, 3))
    return three - two


def test_a_fused_layer_keeps_what_mamba_ssm_saves():
    """By hand, in BF16: states projected once more, latents, what enters and leaves, one state in 2048 tokens, the result."""
    places = 3 * 7
    norm = 4 * H + 4 + 2 * H + 2 * H  # its operand in FP32, 1/root, normalised, what comes out
    scan = 2 * 2 * D + 2 * (RANK + 2 * STATE) + 2 * 2 * STATE + 2 * D  # xz, x_dbl, B and C, out
    states = 4 * 3 * D * 1 * 2 * STATE  # (rows, channels, chunks, 2 · state) in FP32
    decay = 2 * 4 * D * STATE  # exp(A_log), and its negative
    assert a_layer_more() == places * (norm + scan) + states + decay + 2 * 4 * D  # D and dt_proj.bias in FP32
    longer = a_layer_more(tokens=2049) - a_layer_more(tokens=2048)
    assert longer == 3 * (norm + scan) + states


def test_a_layer_in_pytorch_keeps_every_token_s_state():
    """By hand, in BF16: the scan's operands at every place and entry of the state, and its states, one after another."""
    rows, tokens = 3, 7
    places, square = rows * tokens, rows * tokens * D * STATE
    norm = 4 * H + 4 + 2 * H + 2 * H
    convolved = 2 * rows * D * (tokens + KERNEL - 1) + 2 * D * places  # padded, then under SiLU
    latent = (2 * D + 2 * (RANK + 2 * STATE)) * places  # its operand copied, and it
    steps = 2 * 2 * D * places  # before softplus, and after
    wide = 2 * 4 * square + (4 * D + 4 * STATE) * places  # exp(A dt), dt B; x and B in FP32
    states = rows * D * STATE * (2 + 4 * (tokens - 1) + 2 * tokens)  # zeros in BF16, states in FP32, and in BF16 to be read
    gated = (4 * D + 2 * D + 2 * D) * places  # the sum in FP32, SiLU of the gate, what the last matrix reads
    decay = 2 * 4 * D * STATE + 4 * D
    expected = places * (norm + 4 * D) + convolved + latent + steps + wide + states + gated + decay
    assert a_layer_more(**TORCH) == expected


@pytest.mark.parametrize(("precision", "checkpointing"), [("bf16", "none"), ("amp-fp16", "full"), ("fp32", "selective")])
def test_tokens_counted_are_tokens_one_by_one(precision, checkpointing):
    """First token, middle times n, last, inside of first layer, middle times m, last: the very events of all of them."""
    asked = job(4, 9, precision=precision, activation_checkpointing=checkpointing, **TORCH)
    folded, whole = play_job(asked), play_job(asked, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    assert any(isinstance(inner, Repeat) for event in folded.events if isinstance(event, Repeat) for inner in event.body)


def test_a_tape_does_not_grow_with_the_tokens():
    """Ten times as many tokens are written in as many events."""
    assert events_of(play_job(job(5, 40_000, **TORCH)).events) == events_of(play_job(job(5, 4_000, **TORCH)).events)


@pytest.mark.parametrize("kernels", ["mamba-ssm", "torch"])
def test_arrays_of_jobs_are_each_job_alone(kernels):
    """Batches and lengths as int64 arrays give, element by element, the folded heights of each job alone."""
    check_arrays(job(5, precision="amp-bf16"), kernels=kernels)


def test_the_fused_kernel_is_its_restatement():
    """A trace of mamba-ssm's function without its kernels: saved and left to the byte, the highest point too."""
    pytest.importorskip("transformers")
    from tests.play.fused_mamba import installed

    with installed():
        found = heights(traced(job(1)))
    assert heights(played(job(1))) == found


def test_the_fused_kernel_is_its_restatement_under_every_setting():
    """The same by recorded traces: one row or several, every precision and checkpointing."""
    pytest.importorskip("torch")
    from tests.play.fused_mamba import RECORDED, SETTINGS, name_of

    known = json.loads(RECORDED.read_text())
    for setting in SETTINGS:
        found = heights(played(job(4, **setting), unrolled=False))
        assert [found.top, found.net, found.saved] == known[name_of(setting)], setting


@pytest.mark.parametrize(
    ("changes", "keys", "kind", "message"),
    [
        ({"conv_kernel": 5}, {}, NotModelledError, "model.conv_kernel: 5 is not taken by causal-conv1d"),
        ({"state_size": 257}, {}, NotModelledError, "model.state_size: 257 is not taken by mamba-ssm"),
        ({"use_bias": True}, {}, NotModelledError, "model.use_bias: .* say implementation_args: {kernels: torch}"),
        ({}, {"lora": {"target_modules": ["in_proj", "x_proj"]}}, NotModelledError, "training.lora: x_proj is read past"),
        ({}, {"implementation_args": {"kernels": "triton"}}, InputError, "use mamba-ssm or torch"),
        ({}, {"implementation_args": {"kernel": "torch"}}, InputError, "kernel: torch is not known to transformers' mamba"),
    ],
)
def test_refusals(changes, keys, kind, message):
    """What a kernel does not take is refused with the way that does, and so is what nobody knows."""
    asked = job(**keys)
    asked["model"] |= changes
    with pytest.raises(kind, match=message):
        play_job(asked)


def test_a_trace_runs_what_is_installed():
    """Kernels that are not there cannot be traced."""
    from memcalc.engines.trace.estimate import trace_job

    with pytest.raises(NotModelledError, match=r"implementation_args.kernels: mamba-ssm is not what runs here: torch"):
        trace_job(read_job({**job(implementation_args={"kernels": "mamba-ssm"}), "engine": "trace"}))


def test_wide_convolutions_run_in_pytorch():
    """What causal-conv1d does not take, PyTorch's convolution does."""
    asked = job(**TORCH)
    asked["model"] |= {"conv_kernel": 5, "use_bias": True}
    model = prepared(read_model(read_job(asked).model), read_job(asked))
    assert model.config.kernels == "torch"
    assert heights(played(asked)).top > heights(played(job(**TORCH))).top
