"""Optimizers in a trace: their own classes where they run without data, else the registry, as the analytic engine has it."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from memcalc.api import estimate_mapping  # noqa: E402
from memcalc.engines.trace.estimate import Feed, trace_job  # noqa: E402
from memcalc.job import read_job  # noqa: E402

TORCH = [
    ("Adadelta", {}), ("Adafactor", {}), ("Adagrad", {}), ("Adam", {"amsgrad": True}), ("AdamW", {"foreach": False}),
    ("AdamW", {"fused": True}), ("Adamax", {}), ("ASGD", {}), ("NAdam", {}), ("RAdam", {}), ("RMSprop", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}), ("SGD", {"fused": True}), ("Adagrad", {"fused": True}),
]  # fmt: skip


def both(optimizer, precision, arguments=None):
    """The footprints of the two engines for one small module."""
    # from torch 2.14 on a product's workspace comes and goes with it, in a step that multiplies too
    job = {
        "model": "py:tests.trace.small:Tower",
        "precision": precision,
        "optimizer": optimizer,
        "behaviour": {"torch": "2.13"},
    }
    job |= {"optimizer_args": arguments} if arguments else {}
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    found = trace_job(read_job(job), Feed(inputs=[f"args0={dtype}[4,16]"]))
    return found.footprint, estimate_mapping(job)


def assert_states_agree(trace, analytic):
    """States by part on the device, on the host, masters, and the most that a step needs beside them."""
    assert trace.optimizer_states == {part: size for part, size in analytic.optimizer_states.items() if size}
    assert trace.components.master_parameters == analytic.components.master_parameters
    assert trace.components.optimizer_states == analytic.components.optimizer_states
    assert trace.host["optimizer_states"] == analytic.host["optimizer_states"]
    assert trace.states.requested == analytic.states.requested


@pytest.mark.parametrize(("name", "arguments"), TORCH, ids=[f"{n}-{'-'.join(a)}" for n, a in TORCH])
def test_torch_s_own_run_on_the_trace(name, arguments):
    """Each of torch's classes, single, foreach or fused, keeps and needs to the byte what the registry says."""
    trace, analytic = both(f"torch:{name}", "fp32", arguments)
    if analytic.states.instant.startswith("left beside"):
        # equal tensors are taken to follow each other there; here a weight follows a bias, which leaves less behind
        assert 0 <= analytic.states.requested - trace.states.requested <= 16 * 64 * 4
        analytic = replace(analytic, states=trace.states)
    assert_states_agree(trace, analytic)
    assert not any("registry" in assumption for assumption in trace.assumptions)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("adam", "fp16"), ("adamw", "bf16"), ("torch:Adagrad", "bf16"), ("torch:NAdam", "bf16"),
        ("lion-pytorch:Lion", "bf16"), ("adamw8bit", "bf16"), ("sophia", "fp16"),
        ("schedulefree:AdamWScheduleFree", "fp32"), ("torch:SGD+momentum", "bf16"),
    ],
)  # fmt: skip
def test_other_packages_and_masters(name, precision):
    """Masters beside states, by the textbook's step and by other packages' classes, as the analytic engine has them."""
    entry = read_job({"model": "gpt2", "optimizer": name}).training.optimizer
    package = {"lion-pytorch": "lion_pytorch", "adamw8bit": "bitsandbytes", "schedulefree": "schedulefree"}.get(
        entry.partition(":")[0]
    )
    if package:
        pytest.importorskip(package, reason="its own class is run")
    trace, analytic = both(name, precision)
    assert_states_agree(trace, analytic)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("apex:FusedAdam", "fp32"),
        ("nikhilvyas-soap:SOAP", "fp32"),
        ("torch-npu:NpuFusedAdam", "fp32"),
        ("apex:FusedLAMB", "bf16"),
    ],
)
def test_the_registry_stands_for_what_is_not_installed(name, precision):
    """Without its package an optimizer's states and temporaries are the registry's, and the result says so."""
    trace, analytic = both(name, precision)
    assert_states_agree(trace, analytic)
    (said,) = [assumption for assumption in trace.assumptions if "registry" in assumption]
    assert name in said
