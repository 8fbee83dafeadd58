"""Real steps on the CPU, held tensor by tensor to the prediction, and by the live bytes to themselves."""

from __future__ import annotations

import gc

import pytest

torch = pytest.importorskip("torch", reason="a measurement is a real step")

from memcalc.campaign import RunSettings  # noqa: E402
from memcalc.cli.measure import _record  # noqa: E402
from memcalc.collecting import seldom  # noqa: E402
from memcalc.engines.measure import here  # noqa: E402
from memcalc.engines.measure.footprint import footprint_of  # noqa: E402
from memcalc.engines.measure.here import Ask, measure_here  # noqa: E402
from memcalc.errors import InputError  # noqa: E402
from memcalc.measurement import measurement_from  # noqa: E402
from memcalc.verify.files import Models  # noqa: E402
from memcalc.verify.judge import PASSED, judge  # noqa: E402
from memcalc.verify.tolerance import EXACT  # noqa: E402
from tests.measure.against import assert_counted, assert_every_byte  # noqa: E402

TRANSFORMER = {"model": "py:tests.measure.small:transformer", "sequence_length": 16, "micro_batch_size": 2}


def measure(settings=None, **request):
    return measure_here(Ask(request={**TRANSFORMER, **request}, settings=RunSettings(**{"iterations": 2, **(settings or {})})))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp-fp16", "amp-bf16", "fp32", "bf16-pure", "fp16-pure", "as-is"])
def test_every_precision_holds_what_is_predicted(precision):
    """Under each scheme a real Adam step keeps the predicted tensors, byte by byte, and the live bytes agree with the walk."""
    record = measure(precision=precision)
    assert_every_byte(record)
    assert_counted(record)


@pytest.mark.parametrize(
    ("optimizer", "precision", "package", "early"),
    [
        ("adamw", "fp16", "torch", ()),
        ("adagrad", "bf16", "torch", ()),
        ("adagrad", "fp32", "torch", ()),
        ("torch:Adafactor", "fp16", "torch", ()),
        ("lion", "bf16-pure", "lion_pytorch", ()),
        ("came", "fp16", "came_pytorch", ()),
        ("sophia", "fp32", "sophia_opt", ()),
        ("adamw8bit", "fp16", "bitsandbytes", ("optimizer_states", "master_parameters")),
        ("galore-adamw", "fp32", "galore_torch", ()),
        ("schedule-free-adamw", "amp-bf16", "schedulefree", ()),
    ],
)
def test_real_optimizers_hold_what_is_predicted(optimizer, package, early, precision):
    """Optimizers from their own packages, on FP32 masters and alone, keep what the registry says of every tensor."""
    pytest.importorskip(package, reason="the real optimizer is the oracle")
    record = measure(optimizer=optimizer, precision=precision)
    assert_every_byte(record)
    assert_counted(record, but=early)
    for name in early:
        assert "born with the optimizer" in record.ranks[0].components[name].reason


def test_prodigy_keeps_less_for_what_begins_as_zeros():
    """Prodigy keeps one element of a start that is all zeros; the record says which were, and the prediction heeds it."""
    pytest.importorskip("prodigyopt", reason="the real optimizer is the oracle")
    record = measure(optimizer="prodigy", precision="fp32")
    assert any(name.endswith(".bias") for name in record.zeros)
    start = [t.nbytes for t in record.ranks[0].tensors if t.name.endswith(" p0")]
    assert start.count(4) == len(record.zeros)
    assert judge(record, "live", EXACT, Models(allow_code=True)).reason == "every byte agrees"
    forgotten = judge(record.model_copy(update={"zeros": []}), "live", EXACT, Models(allow_code=True))
    assert "p0 takes 4 B, not" in forgotten.reason


def test_lomo_has_no_gradient_left_and_none_is_expected():
    """LOMO frees each gradient as it uses it: none is there at the end of backward, and the prediction lists none for then."""
    pytest.importorskip("lomo_optim", reason="the real optimizer is the oracle")
    record = measure(optimizer="lomo", precision="fp32")
    assert_every_byte(record)
    assert judge(record, "live", EXACT, Models(allow_code=True)).reason == "every byte agrees"


def test_an_optimizer_for_every_parameter_updates_inside_backward():
    """With a hook on every parameter no gradient is left, and the states are those of one optimizer for all, to the byte."""
    record = measure(optimizer="adamw", precision="fp32", optimizer_in_backward=True)
    assert_every_byte(record)
    assert_counted(record)
    assert record.ranks[0].components["gradients"].walked == 0


@pytest.mark.parametrize("options", [{"r": 3}, {"r": 2, "target_modules": ["c_proj"]}, {"r": 2, "use_dora": True}])
def test_adapters_of_peft_are_measured_and_predicted(options):
    """With LoRA everything but the adapters is frozen: gradients and states are theirs alone, to the byte, and judged so."""
    pytest.importorskip("peft", reason="the adapters are peft's own")
    model = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 31, "n_positions": 16}
    record = measure({"lora": options}, model=model, precision="bf16")
    verdict = judge(record, "live", EXACT, Models())
    assert (verdict.outcome, verdict.reason) == (PASSED, "every byte agrees")
    trained = {t.owner for t in record.ranks[0].tensors if t.component == "gradients"}
    assert trained
    assert all(".lora_" in name for name in trained)
    other = record.model_copy(update={"settings": record.settings.model_copy(update={"lora": {"bias": "all"}})})
    assert "lora.bias: all is not modelled yet" in judge(other, "live", EXACT, Models()).reason


@pytest.mark.parametrize(
    "arguments",
    [{"foreach": True}, {"fused": True}, {"weight_decay": 0.1}, {"amsgrad": True}, {"lr": 0.01, "betas": [0.8, 0.9]}],
)
def test_every_form_of_the_step_holds_what_is_predicted(arguments):
    """Foreach, fused and optioned Adam on masters keep what is predicted, the step counter on the device or the host."""
    assert_every_byte(measure(optimizer_args=arguments))


@pytest.mark.parametrize(
    ("request_", "settings"),
    [
        ({"gradient_accumulation_steps": 3, "max_grad_norm": 0.5}, {}),
        ({"precision": "fp32", "max_grad_norm": 0.5}, {"set_to_none": False}),
        ({"activation_checkpointing": "full"}, {"schedule": "cosine"}),
        ({"activation_checkpointing": "selective", "precision": "amp-bf16"}, {"schedule": "warmup", "iterations": 1}),
        ({"attention": "math", "precision": "fp32", "set_to_none": False}, {"seed": 3}),
    ],
)
def test_switches_of_the_loop_change_no_kept_byte(request_, settings):
    """Accumulation, clipping, checkpointing, schedules and kept gradients leave what is kept as predicted."""
    record = measure(settings, **request_)
    assert record.settings.set_to_none is ({**settings, **request_}.get("set_to_none", True))
    assert_every_byte(record)
    assert_counted(record)


def test_checkpointing_lowers_what_backward_waits_for():
    """Full checkpointing keeps fewer activations than selective, and that fewer than none, on the very same step."""
    modes = [measure(precision="fp32", activation_checkpointing=mode) for mode in ("full", "selective", "none")]
    full, selective, none = (record.ranks[0].components["activations"].counted for record in modes)
    assert 0 < full < selective < none


def test_phases_follow_each_other():
    """Each iteration is forward, loss, backward (per micro-batch), clip, step and zero; its peaks bound its ends."""
    record = measure(gradient_accumulation_steps=2, max_grad_norm=1.0)
    rank = record.ranks[0]
    assert [phase.what for phase in rank.init] == ["model", "inputs", "data_parallel", "optimizer"]
    names = ["forward", "loss", "backward"] * 2 + ["clip", "optimizer_step", "zero_grad"]
    for iteration in rank.iterations:
        assert [phase.phase for phase in iteration.phases] == names
        assert [phase.micro_batch for phase in iteration.phases[:6]] == [0, 0, 0, 1, 1, 1]
        for phase in iteration.phases:
            assert phase.peak.live >= max(phase.start.live, phase.end.live)
        assert iteration.gradient_norm > 0
    assert [iteration.index for iteration in rank.iterations] == [1, 2]
    steady = [iteration.phases[-1].end.live for iteration in rank.iterations]
    assert len(set(steady)) == 1, "nothing is left behind by a step"


def test_a_cpu_never_speaks_for_a_gpu():
    """On a CPU every CUDA counter is null, in the record and in its footprint, and requested is the live bytes."""
    record = measure()
    for phase in [p for i in record.ranks[0].iterations for p in i.phases]:
        for counters in (phase.start, phase.end, phase.peak):
            assert (counters.allocated, counters.requested, counters.reserved, counters.active) == (None,) * 4
            assert counters.live > 0
    shown = footprint_of(record)
    assert (shown.peak.allocated, shown.peak.reserved, shown.peak.device) == (None, None, None)
    assert shown.engine == shown.job["engine"] == "measure"
    count = shown.model.num_parameters
    assert shown.components.optimizer_states + shown.components.master_parameters == 12 * count
    assert shown.components.parameters == shown.components.gradients == 2 * count
    assert shown.peak.requested > shown.states.requested == 16 * count
    assert shown.peak.iteration == 2


def test_the_record_names_what_it_depends_on():
    """Environment, job and settings say enough to ask the same again: device, versions, every default, the inputs made."""
    record = measure()
    assert record.environment.device.name
    assert record.environment.torch == torch.__version__
    assert record.job["training"]["optimizer"] == "torch:Adam"
    assert record.settings.inputs == ["args0=int64[2,16]<256"]
    again = measure_here(Ask(request=record.request, settings=RunSettings(iterations=2)))
    assert again.ranks[0].tensors == record.ranks[0].tensors
    assert measurement_from(record.model_dump(mode="json")) == record


def test_attention_kernels_are_seen():
    """The kernel that ran is found by its operator: flash on a CPU by itself, math where that is asked for."""
    taken = {asked: measure(precision="fp32", attention=asked).ranks[0].attention for asked in ("auto", "math")}
    assert taken["auto"].taken == "flash"
    assert taken["math"].taken == "math"
    assert not any("flash" in name for name in taken["math"].operators)


def test_ranks_have_to_be_there():
    """A job over two ranks cannot be measured by one, and the error says how to start two."""
    with pytest.raises(InputError, match=r"^parallelism\.dp: 2 is not the 1 ranks.*torchrun --nproc-per-node 2"):
        measure(dp=2)


def test_a_rank_is_measured_under_pythons_own_thresholds(monkeypatch):
    """Where torchrun started the command itself, garbage is looked for as in a training script, and afterwards as before."""
    usual, seen = gc.get_threshold(), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(here, "measure_here", lambda ask: seen.append(gc.get_threshold()))
    seldom()
    try:
        _record({"model": "gpt2"}, "cpu", None, None, ())
        assert (seen, gc.get_threshold()) == ([usual], (100_000, 10, 10))
    finally:
        gc.set_threshold(*usual)
