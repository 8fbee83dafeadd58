"""The textbook step: its equations, its trajectory, overflow, clipping, schedules and checkpoints."""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch", reason="the step is torch's")

from memcalc.runtime.mixed_precision import LossScale, MixedPrecisionAdam  # noqa: E402

STEPS = 200
DTYPES = [torch.float16, torch.bfloat16]


def problem(dtype=torch.float32):
    """A student network that learns a fixed teacher's answers: (network, inputs, answers)."""
    generator = torch.Generator().manual_seed(7)
    teacher = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.Tanh(), torch.nn.Linear(24, 3))
    student = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        for param in (*teacher.parameters(), *student.parameters()):
            param.copy_(torch.randn(param.shape, generator=generator) * 0.4)
        inputs = torch.randn(64, 8, generator=generator)
        answers = teacher(inputs)
    return student.to(dtype), inputs.to(dtype), answers


def train(student, inputs, answers, optimizer, steps=STEPS, *, scale=None, max_norm=None):
    """The losses of real steps."""
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(student(inputs).float(), answers)
        (optimizer.scale(loss) if scale else loss).backward()
        if max_norm is not None:
            optimizer.clip(max_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_step_is_the_equations(weight_decay):
    """Two steps on scalars equal Adam's equations worked by hand in double precision, to FP32's rounding."""
    weights, gradients = [0.5, -1.25, 3.0], [[0.125, -0.5, 2.0], [0.25, 0.5, -1.0]]
    lr, beta1, beta2, eps = 0.1, 0.9, 0.99, 1e-6
    param = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float16))
    optimizer = MixedPrecisionAdam([param], lr, (beta1, beta2), eps, weight_decay, LossScale(8.0))
    expected, moments, variances = list(weights), [0.0] * 3, [0.0] * 3
    for t, gradient in enumerate(gradients, start=1):
        param.grad = (torch.tensor(gradient) * 8.0).half()  # as a scaled loss leaves it
        optimizer.step()
        for i, g in enumerate(gradient):
            moments[i] = beta1 * moments[i] + (1 - beta1) * g
            variances[i] = beta2 * variances[i] + (1 - beta2) * g * g
            corrected = math.sqrt(variances[i] / (1 - beta2**t)) + eps
            expected[i] -= lr * weight_decay * expected[i]
            expected[i] -= lr * moments[i] / (1 - beta1**t) / corrected
    state = optimizer.state[param]
    torch.testing.assert_close(state["master"].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state["exp_avg"].double(), torch.tensor(moments, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(state["exp_avg_sq"].double(), torch.tensor(variances, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert torch.equal(param, state["master"].half()), "the working copy is the master, rounded"


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, torch.optim.Adam), (0.05, torch.optim.AdamW)])
def test_in_fp32_it_walks_torch_s_path(ours, theirs):
    """Over 200 steps on a real problem FP32 parameters stay within rounding of torch.optim's, and the loss falls."""
    student, inputs, answers = problem()
    other = copy.deepcopy(student)
    optimizer = MixedPrecisionAdam(student.parameters(), 1e-2, weight_decay=ours, loss_scale=LossScale.none())
    mine = train(student, inputs, answers, optimizer)
    reference = theirs(other.parameters(), 1e-2, weight_decay=ours, foreach=False)
    truth = train(other, inputs, answers, reference)
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(truth), rtol=1e-5, atol=1e-7)
    for param, same in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, same, rtol=1e-4, atol=1e-6)
    assert mine[-1] < 0.02 * mine[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_low_precision_it_learns_what_fp32_learns(dtype):
    """With FP16 or BF16 parameters the masters let the loss fall as far as FP32's, to the working copy's rounding."""
    student, inputs, answers = problem()
    low, low_inputs, _ = problem(dtype)
    high = train(student, inputs, answers, MixedPrecisionAdam(student.parameters(), 1e-2, loss_scale=LossScale.none()))
    scale = LossScale(2.0**10) if dtype is torch.float16 else LossScale.none()
    optimizer = MixedPrecisionAdam(low.parameters(), 1e-2, loss_scale=scale)
    lossy = train(low, low_inputs, answers, optimizer, scale=True)
    assert optimizer.skipped_steps == 0
    assert lossy[-1] < 2 * high[-1] + 1e-3
    assert {param.dtype for param in low.parameters()} == {dtype}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_leaves_the_step_out(bad):
    """One bad element changes no parameter, master or moment, halves the scale, and the next good step goes on."""
    first, second = (torch.nn.Parameter(torch.ones(3).half()) for _ in range(2))
    optimizer = MixedPrecisionAdam([first, second], loss_scale=LossScale(1024.0))
    first.grad, second.grad = torch.ones(3).half(), torch.ones(3).half()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    first.grad, second.grad = torch.ones(3).half(), torch.tensor([1.0, bad, 1.0]).half()
    assert optimizer.clip(1.0) is None
    optimizer.step()
    after = optimizer.state_dict()["state"]
    for number, state in before.items():
        for key, value in state.items():
            assert torch.equal(value, after[number][key]), key
    assert (optimizer.skipped_steps, optimizer.loss_scale.value) == (1, 512.0)
    second.grad = torch.ones(3).half()
    optimizer.step()
    assert after[0]["step"].item() == 2.0
    assert not torch.equal(after[0]["master"], before[0]["master"])


def test_training_recovers_from_a_scale_that_is_too_large():
    """Starting where every gradient overflows, the scale falls until steps are taken, and training then works."""
    student, inputs, answers = problem(torch.float16)
    optimizer = MixedPrecisionAdam(student.parameters(), 1e-2, loss_scale=LossScale(2.0**40))
    losses = train(student, inputs, answers, optimizer, scale=True)
    assert 10 < optimizer.skipped_steps < 40
    assert losses[-1] < 0.05 * losses[0]
    assert all(torch.isfinite(param).all() for param in student.parameters())


def test_the_scale_grows_after_enough_good_steps():
    """Growth comes after the whole interval of steps in a row without overflow, and starts again after one."""
    scale = LossScale(4.0, interval=3)
    for overflowed in (False, False, True, False, False, False, False):
        scale.update(overflowed=overflowed)
    assert (scale.value, scale.good_steps) == (4.0 * 0.5 * 2.0, 1)


def test_the_scale_stays_a_usable_number():
    """However often gradients overflow, or never do, the scale reaches neither zero nor infinity."""
    low, high = LossScale(1.0), LossScale(1.0, interval=1)
    for _ in range(400):
        low.update(overflowed=True)
        high.update(overflowed=False)
    assert low.value > 0
    assert math.isfinite(high.value)


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_clipping_is_torch_s(scale):
    """The clipped step equals the one torch takes after clip_grad_norm_, whatever the loss scale, and the norm is its norm."""
    generator = torch.Generator().manual_seed(1)
    ours = [torch.nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(3)]
    theirs = [torch.nn.Parameter(param.detach().clone()) for param in ours]
    mine = MixedPrecisionAdam(ours, 0.1, eps=1e-2, loss_scale=LossScale(scale))  # with a large eps the norm matters
    truth = torch.optim.Adam(theirs, 0.1, eps=1e-2)
    for mine_param, param in zip(ours, theirs, strict=True):
        param.grad = torch.randn(param.shape, generator=generator)
        mine_param.grad = param.grad * scale
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.25)
    assert mine.clip(0.25) == pytest.approx(norm.item(), rel=1e-6)
    mine.step()
    truth.step()
    for param, same in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, same, rtol=1e-5, atol=1e-7)


def test_the_norm_does_not_overflow_in_fp16():
    """Gradients whose squares FP16 cannot hold still have a finite norm, for it is accumulated in FP32."""
    param = torch.nn.Parameter(torch.zeros(100).half())
    optimizer = MixedPrecisionAdam([param], loss_scale=LossScale(1.0))
    param.grad = torch.full((100,), 60000.0).half()
    assert optimizer.clip(1.0) == pytest.approx(600000.0, rel=1e-3)


def test_schedules_work_and_hold_no_tensors():
    """Warm-up and cosine follow their formulas around the step, and nothing reachable from a schedule is a new tensor."""
    from memcalc.runtime.walk import storages_of

    param = torch.nn.Parameter(torch.ones(4).half())
    optimizer = MixedPrecisionAdam([param], 1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[10])
    seen = []
    for _ in range(30):
        param.grad = torch.ones(4).half()
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    expected = [0.1 + 0.9 * i / 10 for i in range(10)] + [(1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]
    assert seen == pytest.approx(expected, abs=1e-9)
    assert {each.key for each in storages_of(schedule)} == {each.key for each in storages_of(optimizer)}


def test_a_checkpoint_goes_on_as_if_never_stopped(tmp_path):
    """Saved, loaded and gone on, the run equals the unbroken one bit by bit: masters and moments are not rounded to FP16."""
    student, inputs, answers = problem(torch.float16)
    optimizer = MixedPrecisionAdam(student.parameters(), 1e-2, loss_scale=LossScale(2.0**8, interval=15))
    train(student, inputs, answers, optimizer, 20, scale=True)
    torch.save({"model": student.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    train(student, inputs, answers, optimizer, 20, scale=True)

    again, *_ = problem(torch.float16)
    resumed = MixedPrecisionAdam(again.parameters(), 1e-2)
    saved = torch.load(tmp_path / "checkpoint.pt")
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    resumed.loss_scale.interval = 15
    assert {resumed.state[p][key].dtype for p in again.parameters() for key in resumed.state[p]} == {torch.float32}
    train(again, inputs, answers, resumed, 20, scale=True)
    for param, same in zip(student.parameters(), again.parameters(), strict=True):
        assert torch.equal(param, same)
        assert torch.equal(optimizer.state[param]["master"], resumed.state[same]["master"])
    assert resumed.loss_scale.state_dict() == optimizer.loss_scale.state_dict()
