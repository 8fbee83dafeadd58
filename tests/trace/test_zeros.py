"""Optimizers that make a gradient of zeros for a parameter without one, held to a trace of such a step."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping
from memcalc.sweep import run
from memcalc.tape.events import Alloc, Buffer, Free, Repeat, outliving
from tests.sweep.oracle import differences

BERT = {"model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 99, "max_position_embeddings": 32, "architectures": ["BertModel"]}  # fmt: skip
POOLER = 64 * 64 + 64
"""Elements that the loss of the body alone does not depend on."""
JOB = {"model": BERT, "optimizer": "muon-optimizer:SingleDeviceMuonWithAuxAdam", "micro_batch_size": 2, "sequence_length": 16}


@pytest.fixture
def muon(monkeypatch):
    """The package's class with the step of the project's later code, which its README installs.

    source: KellerJordan/Muon 857d1ad muon.py:SingleDeviceMuonWithAuxAdam.step (lines 251-283)
    """
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("muon", reason="its updates are the package's own")

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            names = ["momentum_buffer"] if group["use_muon"] else ["exp_avg", "exp_avg_sq"]
            for param in group["params"]:
                if param.grad is None:
                    param.grad = torch.zeros_like(param)
                state = self.state[param]
                if not state:
                    state.update({name: torch.zeros_like(param) for name in names})
                if group["use_muon"]:
                    update = package.muon_update(param.grad, state["momentum_buffer"], beta=group["momentum"])
                else:
                    update = package.adam_update(param.grad, *(state[name] for name in names), 1, group["betas"], group["eps"])
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"])

    monkeypatch.setattr(package.SingleDeviceMuonWithAuxAdam, "step", step)


@pytest.mark.parametrize(("precision", "more"), [
    ("fp32", {}), ("fp32", {"max_grad_norm": 1.0, "set_to_none": False}), ("bf16", {}), ("bf16-pure", {}),
])  # fmt: skip
def test_zeros_are_counted_as_a_trace_has_them(muon, precision, more):
    """Made in the step, alive to ``zero_grad`` or for good, of masters for the update alone: peaks and parts to the byte."""
    pytest.importorskip("transformers", reason="the model is its own")
    job = {**JOB, "precision": precision, **more}
    played, traced = estimate_mapping(job), estimate_mapping({**job, "engine": "trace"})
    assert (played.peak.requested, played.peak.allocated) == (traced.peak.requested, traced.peak.allocated)
    assert played.components.gradients == traced.components.gradients
    assert played.components.optimizer_states == traced.components.optimizer_states
    for phase in ("optimizer_step", "zero_grad"):
        assert played.phases[phase]["peak_allocated"] == traced.phases[phase]["peak_allocated"]


def test_zeros_counted_by_hand():
    """A gradient for every element, the pooler's too; under the textbook's masters the step makes them and lets them go."""
    for scope in ("states", "step"):
        found = estimate_mapping({**JOB, "precision": "fp32", "scope": scope}, replayed=False)
        usual = estimate_mapping({**JOB, "precision": "fp32", "scope": scope, "optimizer": "adamw"}, replayed=False)
        assert found.components.gradients == 4 * found.model.num_parameters == usual.components.gradients + 4 * POOLER
    masters = estimate_mapping({**JOB, "precision": "bf16"}, replayed=False)
    assert masters.components.gradients == 2 * (masters.model.num_parameters - POOLER)


def test_zeros_add_up_in_the_explanation():
    """Each component is the sum of its buffers, those of zeros among them by name."""
    found = estimate_mapping({**JOB, "precision": "fp32", "scope": "states"}, explained=True)
    gradients = [held for held in found.buffers if held.component == "gradients"]
    assert sum(held.requested * held.times for held in gradients) == found.components.gradients
    zeros = [held for held in gradients if "zeros" in held.name]
    assert {held.lives for held in zeros} == {"the step to zero_grad"}
    assert sum(held.requested for held in zeros) == 4 * POOLER


def test_zeros_go_as_arrays():
    """Models of several widths in a sweep are each their own estimate."""
    models = [{**BERT, "hidden_size": 64 * n, "intermediate_size": 32 * n} for n in (1, 2, 3)]
    base = {key: value for key, value in JOB.items() if key != "model"}
    sweep = run({"base": {**base, "precision": "fp32"}, "grid": {"model": models, "set_to_none": [True, False]}})
    rows = list(sweep)
    assert [row["error"] for row in rows] == [None] * 6
    assert differences(sweep, rows) == []


def test_what_outlives_events():
    """Births inside repetitions are multiplied, and what dies anywhere behind them is not among them."""
    kept, once, gone = (Buffer(name, 4, "gradient") for name in ("kept", "once", "gone"))
    other = Buffer("other", 4, "temporary")
    events = [
        Repeat(3, (Alloc(kept), Repeat(2, (Alloc(kept), Alloc(gone))))),
        Alloc(once),
        Alloc(other),
        Repeat(6, (Free(gone),)),
    ]
    assert [(one.site, times) for one, times in outliving(events, "gradient")] == [("kept", 9), ("once", 1)]
