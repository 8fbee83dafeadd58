"""What people do in a step beyond forward, backward and update: losses, optimizers, policies and gradients of their own."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from torch.utils.checkpoint import CheckpointPolicy  # noqa: E402

import memcalc  # noqa: E402
from memcalc.__main__ import run  # noqa: E402
from memcalc.api import trace_whole  # noqa: E402
from memcalc.errors import InputError, NotModelledError  # noqa: E402
from memcalc.runtime.live import LiveBytes  # noqa: E402
from tests.trace import small  # noqa: E402
from tests.trace.oracle import live_at, traced_activations  # noqa: E402

ADDMM = torch.ops.aten.addmm.default


def keeps_products(context, operator, *args, **kwargs):
    """A policy as a function: results of products are kept, all else is made again."""
    return CheckpointPolicy.MUST_SAVE if operator is ADDMM else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("policy", [[ADDMM], keeps_products, []], ids=["list", "function", "nothing"])
def test_selective_checkpointing_by_ones_own_policy(policy):
    """What a policy keeps is, to the byte, what lives on a CPU after a real forward under the same policy."""
    found = trace_whole(small.Selective(policy), [torch.zeros(8, 16)], optimizer="sgd", loss="mean")
    module, x = small.Selective(policy), torch.zeros(8, 16)
    own = sum(tensor.untyped_storage().nbytes() for tensor in (*module.parameters(), x))
    with LiveBytes() as seen:
        loss = module(x).mean()
        real = seen.live - own
    assert loss.requires_grad
    assert (traced_activations(found.tape, 1), traced_activations(found.tape, 2)) == (real, real)


def test_several_inputs_and_outputs_and_dtypes():
    """A mapping of tensors goes in by name; half of the weights are BF16, and weight norm has parameters of its own."""
    batch = {"x": torch.zeros(4, 8), "other": torch.zeros(4, 8), "scale": torch.zeros(3)}
    footprint = memcalc.trace(small.Mixed(), batch, optimizer="adamw")
    kept = 2 * (8 * 8 + 8) + 4 * (4 * 1 + 4 * 8 + 4)  # low: weight, bias; high: magnitudes, directions, bias
    assert footprint.components.parameters == footprint.components.gradients == kept
    assert footprint.components.optimizer_states == 2 * kept
    assert footprint.components.inputs == 4 * (32 + 32 + 3)
    assert footprint.job["inputs"] == ["x=float32[4,8]", "other=float32[4,8]", "scale=float32[3]"]


def test_frozen_parts_have_neither_gradients_nor_states():
    """Of a frozen layer with an adapter of rank 2 only the adapter's 64 weights get either."""
    footprint = memcalc.trace(small.Low(), [torch.zeros(4, 16)], optimizer="adamw")
    assert footprint.components.parameters == 4 * (16 * 16 + 16 + 64)
    assert (footprint.components.gradients, footprint.components.optimizer_states) == (4 * 64, 2 * 4 * 64)
    assert (footprint.model.num_parameters, footprint.model.num_trainable_parameters) == (336, 64)


def test_adversaries_with_an_optimizer_each():
    """An iteration ends when both have stepped: in the second, both have their states from its beginning to its end."""
    with memcalc.tracing(gpu="a100-80gb") as session:
        model = small.Adversaries().cuda()
        session.watch(model)
        judges, makes = torch.optim.Adam(model.judge.parameters()), torch.optim.Adam(model.make.parameters())
        for _ in range(2):
            fake = model.make(torch.randn(2, 4, device="cuda"))
            for _ in range(2):  # the critic steps twice as often
                judges.zero_grad()
                model.judge(fake.detach()).mean().backward()
                judges.step()
            makes.zero_grad()
            (-model.judge(fake).mean()).backward()
            makes.step()
    count = 4 * 8 + 8 + 8 + 1
    held = [sum(b.requested for b in live_at(session.traced.tape, "forward", n) if b.role == "optimizer_state") for n in (1, 2)]
    assert held == [0, 8 * count]
    assert session.traced.footprint.peak.iteration == 2
    assert session.traced.footprint.components.optimizer_states == 8 * count
    assert not any("one step alone" in line for line in session.traced.footprint.warnings)


def test_an_optimizer_for_each_parameter():
    """Steps taken inside backward, each parameter's by its own optimizer, make one iteration together."""
    with memcalc.tracing(gpu="a100-80gb") as session:
        model = small.Tower(count=2).cuda()
        session.watch(model)
        own = {param: torch.optim.SGD([param], lr=0.1, momentum=0.9) for param in model.parameters()}

        def step(param):
            own[param].step()
            own[param].zero_grad()

        for param in own:
            param.register_post_accumulate_grad_hook(step)
        for _ in range(2):
            model(torch.randn(8, 16, device="cuda")).mean().backward()
    footprint = session.traced.footprint
    count = 2 * (16 * 64 + 64 + 64 * 16 + 16)
    assert footprint.components.optimizer_states == 4 * count
    assert footprint.components.gradients == 4 * (16 * 64 + 64)  # never more than the largest layer's two
    assert {"forward", "backward", "optimizer_step"} <= set(footprint.phases)
    assert session.traced.replay.phases()[(2, "forward")]["requested"] > 8 * count


def test_a_step_of_ones_own_on_the_command_line(tmp_path, monkeypatch, capsys):
    """``--step`` names a function in the folder of ``--app-dir``; what it does itself is not to be asked for beside it."""
    (tmp_path / "own_code_of_a_step.py").write_text(
        "import torch\n"
        "def net():\n    return torch.nn.Linear(4, 4)\n"
        "def step(model, batch, optimizer):\n"
        "    out = model(*batch.values())\n"
        "    (out.sum() + out.square().mean()).backward()\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
    )
    own = "py:own_code_of_a_step"
    words = [
        "estimate",
        f"{own}:net",
        "--engine",
        "trace",
        "--app-dir",
        str(tmp_path),
        "--format",
        "json",
        "--precision",
        "fp32",
    ]
    assert run([*words, "--step", f"{own}:step"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["components"]["gradients"] == 4 * 20
    assert set(told["phases"]) == {"forward", "backward", "optimizer_step", "zero_grad"}
    assert run([*words, "--step", f"{own}:stop"]) == 2
    assert "--step: py:own_code_of_a_step:stop is not there" in capsys.readouterr().err.replace("\n", " ")
    assert run([*words, "--step", f"{own}:step", "--max-grad-norm", "1"]) == 2
    assert "training.max_grad_norm: 1.0 is for a step of one's own to do" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("precision", ["fp16", "amp-bf16"])
def test_gradients_that_are_zeroed_live_always(precision):
    """With ``set_to_none=False`` both engines have the gradients there in forward too, and agree on the states to the byte."""
    model, job = "py:tests.trace.small:Tower", {"precision": precision, "optimizer": "adamw"}
    dtype = "float16" if precision == "fp16" else "float32"
    peaks = {}
    for keep in (True, False):
        trace = trace_whole(model, (f"args0={dtype}[4,16]",), loss="mean", set_to_none=not keep, **job)
        analytic = memcalc.estimate(model, set_to_none=not keep, **job)
        assert trace.footprint.states.requested == analytic.states.requested
        assert trace.footprint.components.gradients == analytic.components.gradients
        peaks[keep] = trace.replay.phases()[(2, "forward")]["requested"], analytic.phases["forward"]["states_requested"]
    gradients = analytic.components.gradients
    assert peaks[True][1] - peaks[False][1] == gradients
    # without, the gradients' memory was there for what the forward left behind, so that the trace's peak grows by no more
    assert peaks[True][0] - peaks[False][0] == gradients


def test_gradients_that_are_zeroed_from_the_command_line(capsys):
    """``--keep-gradients`` is the job's ``set_to_none: false`` for either engine; engines that give them up refuse it."""
    assert run(["estimate", "gpt2", "--keep-gradients", "--format", "json", "--explain"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["job"]["training"]["set_to_none"] is False
    lives = {row["lives"] for row in told["buffers"] if row["component"] == "gradients"}
    assert lives == {"always"}
    with pytest.raises(NotModelledError, match="set_to_none: False is not modelled under deepspeed"):
        memcalc.estimate("gpt2", set_to_none=False, dp=8, zero_stage=2)


@pytest.mark.parametrize("way", small.Raggedly.WAYS)
def test_ragged_tensors_made_in_forward_are_refused(way):
    """Nested, jagged and sparse tensors are refused with the reason, the way out and the line that makes them."""
    with pytest.raises(NotModelledError) as caught:
        memcalc.trace(small.Raggedly(way), [torch.zeros(2, 3, 4)])
    kind = "sparse" if way == "sparse" else "nested or jagged"
    line = small.Raggedly.WAYS[way].__code__.co_firstlineno
    assert f"makes a {kind} tensor at {small.__file__}:{line}, whose bytes depend on its values" in str(caught.value)
    assert "pad it to a dense tensor there" in str(caught.value)


def test_ragged_inputs_are_refused():
    """A jagged tensor among the inputs is refused by its name."""
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(InputError, match=r"^inputs\.x: torch\.jagged is a nested or sparse tensor"):
        memcalc.trace(small.Low(), {"x": ragged})
