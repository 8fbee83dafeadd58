"""The pieces a measurement stands on: masters around any optimizer, storages found, live bytes followed, events packed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the oracle is real tensors")

from memcalc.engines.measure import driver  # noqa: E402
from memcalc.engines.measure.history import pack, unpack  # noqa: E402
from memcalc.errors import InputError, MissingPackageError, NotModelledError  # noqa: E402
from memcalc.optimizers.names import find_optimizer  # noqa: E402
from memcalc.runtime.checkpointing import layers_of, repeated_layers, switch_on  # noqa: E402
from memcalc.runtime.live import LiveBytes  # noqa: E402
from memcalc.runtime.masters import MasterWeights  # noqa: E402
from memcalc.runtime.mixed_precision import LossScale  # noqa: E402
from memcalc.runtime.optimizers import Trained, real_optimizer  # noqa: E402
from memcalc.runtime.walk import storages_of  # noqa: E402
from tests.measure.small import transformer  # noqa: E402


def parameters(dtype=torch.float16):
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(8, 6), (6,), (3, 4, 5)]]


def fill(params, scale=1.0):
    generator = torch.Generator().manual_seed(4)
    for param in params:
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_masters_take_the_optimizer_s_own_step(make):
    """Taking turns and all together end in the same masters, which are those of the optimizer run on FP32 alone."""
    runs = [parameters() for _ in range(2)]
    alone = [torch.nn.Parameter(param.detach().float()) for param in parameters()]
    steps = [
        MasterWeights(params, make, in_turn=in_turn, loss_scale=LossScale(8.0))
        for params, in_turn in zip(runs, (True, False), strict=True)
    ]
    truth = make(alone)
    for _ in range(3):
        for params, step in zip(runs, steps, strict=True):
            fill(params, 8.0)
            step.step()
        fill(alone)
        for param in alone:
            param.grad = (param.grad * 8.0).half().float() / 8.0
        truth.step()
    for turn, together, own in zip(steps[0].masters, steps[1].masters, alone, strict=True):
        torch.testing.assert_close(turn, own, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(together, own, rtol=1e-6, atol=1e-7)
    for param, master in zip(runs[0], steps[0].masters, strict=True):
        assert torch.equal(param, master.half())
        assert master.grad is None, "the cast gradient is gone after its turn"


def test_an_fp32_parameter_is_its_own_master():
    """Among low-precision parameters one that is FP32 already is updated in place, once a step, with no copy."""
    low, high = torch.nn.Parameter(torch.ones(3).half()), torch.nn.Parameter(torch.ones(3))
    step = MasterWeights([low, high], lambda p: torch.optim.SGD(p, 0.5), in_turn=True, loss_scale=LossScale.none())
    low.grad, high.grad = torch.ones(3).half(), torch.ones(3)
    step.step()
    assert step.masters[1] is high
    assert torch.equal(high, torch.full((3,), 0.5))
    assert torch.equal(low, torch.full((3,), 0.5).half())


def test_masters_leave_an_overflow_out():
    """One infinite gradient leaves every master, parameter and state of any optimizer as it was."""
    params = parameters()
    step = MasterWeights(params, torch.optim.Adagrad, in_turn=True)
    fill(params)
    params[1].grad[0] = float("inf")
    before = [master.clone() for master in step.masters]
    step.step()
    assert step.skipped_steps == 1
    for master, same in zip(step.masters, before, strict=True):
        assert torch.equal(master, same)


def test_live_bytes_follow_birth_death_and_growth():
    """What operators return counts while it lives, views and in-place results do not, and a resized storage is followed."""
    with LiveBytes() as live:
        kept = torch.zeros(100)
        assert live.live == 400
        view = kept[10:20].add_(1)
        assert live.live == 400
        live.reset_peak()
        other = (kept + kept) * 2  # the sum dies once the product is there
        assert (live.live, live.peak) == (800, 1200)
        other.untyped_storage().resize_(0)
        assert live.live == 400
        other.untyped_storage().resize_(4000)
        assert (live.live, live.peak) == (4400, 4400)
        del other, kept
        assert live.live == 400, "a view keeps the storage it looks into"
        del view
        gc.collect()
        assert live.live == 0
    assert torch.UntypedStorage.resize_.__qualname__ != "LiveBytes.__enter__.<locals>.followed", "the patch is taken back"


def test_autocast_s_copies_are_told_apart():
    """Inside autocast the casts of a module's weights are counted as copies of parameters, and its inputs' casts are not."""
    module = torch.nn.Linear(16, 8)
    with LiveBytes() as live:
        live.watch_copies_of(module.parameters())
        with torch.autocast("cpu", torch.bfloat16):
            out = module(torch.ones(4, 16))
            assert live.copies == 2 * (16 * 8 + 8)
        out.float().mean().backward()
        del out
        assert live.copies == 0


def test_every_storage_is_found_once_and_named():
    """Through attributes, slots, lists and dicts, a shared storage counts once and a state belongs to its parameter."""
    first, second = parameters(torch.float32)[:2]
    shared, table = torch.zeros(7), torch.zeros(9)

    class Slotted:
        __slots__ = ("inside",)

        def __init__(self):
            self.inside = [shared[2:]]

    class Odd:
        def __init__(self):
            self.state = {first: {"moment": torch.zeros(5)}, second: {"deep": Slotted()}}
            self.again = {id(first): shared}
            self.table = (table, first)
            self.numbers = {3: torch.zeros(2)}

    found = {each.path: each for each in storages_of(Odd(), [first, second])}
    assert found["moment"].owner == 0
    assert (found["deep.inside.0"].owner, found["deep.inside.0"].nbytes) == (None, 28), "reached from both: nobody's own"
    assert found["table.0"].owner is None
    assert found["numbers.3"].owner is None
    assert len(found) == 4


def test_layers_are_the_members_of_lists():
    """A decoder's layers are its list's; of a sequence, those that recur are layers and the stem and head are not."""
    assert [type(layer).__name__ for layer in layers_of(transformer())] == ["Layer", "Layer"]
    sequence = torch.nn.Sequential(torch.nn.Linear(3, 8), *(torch.nn.Linear(8, 8) for _ in range(3)), torch.nn.Linear(8, 2))
    assert len(layers_of(sequence)) == 5
    assert repeated_layers(sequence) == list(sequence)[1:4]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_checkpointing_changes_no_gradient(mode):
    """Recomputing gives the very gradients that keeping gives."""
    torch.manual_seed(0)
    plain, other = transformer(), transformer()
    other.load_state_dict(plain.state_dict())
    switch_on(other, mode)
    tokens = torch.randint(0, 256, (2, 8))
    for module in (plain, other):
        module(tokens).float().square().mean().backward()
    for param, same in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(param.grad, same.grad)


def test_a_module_without_layers_cannot_be_checkpointed():
    """The error says where layers are looked for."""
    with pytest.raises(InputError, match=r"finds no list of layers in the module; keep them in an nn\.ModuleList"):
        switch_on(torch.nn.Linear(2, 2), "full")


@pytest.mark.parametrize(
    ("name", "arguments", "error", "says"),
    [
        ("apex:FusedAdam", {}, MissingPackageError, "pip install apex"),
        ("torch:SparseAdam", {}, NotModelledError, "takes sparse gradients"),
        ("adam", {"eps": -1.0}, InputError, "refuses its arguments (Invalid epsilon value"),
        ("bitsandbytes:Adam8bit", {"percentile_clipping": 5}, NotModelledError, "cannot be told to the real"),
    ],
)
def test_optimizers_that_cannot_be_built_say_why(name, arguments, error, says):
    """A missing package, a step no loop can take, a refused value and an option the class has not: one sentence each."""
    if name.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    entry = find_optimizer(name)
    with pytest.raises(error) as caught:
        real_optimizer(entry, arguments, entry.resolve(arguments), [Trained("w", parameters()[0])])
    assert says in str(caught.value)


def test_projecting_optimizers_get_their_groups():
    """GaLore's matrices in target modules go into a group with a rank, everything else into one without."""
    pytest.importorskip("galore_torch", reason="the oracle is the library's own class")
    entry = find_optimizer("galore-adamw")
    names = ["h.0.attn.weight", "h.0.attn.bias", "embed.weight"]
    shapes, kinds = [(8, 8), (8,), (20, 8)], ["linear", "linear", "embedding"]
    trained = [
        Trained(name, torch.nn.Parameter(torch.zeros(shape)), kind)
        for name, shape, kind in zip(names, shapes, kinds, strict=True)
    ]
    made = real_optimizer(entry, {"rank": 4}, entry.resolve({"rank": 4}), trained)
    assert [("rank" in group, len(group["params"])) for group in made.param_groups] == [(True, 1), (False, 2)]
    assert made.param_groups[0]["rank"] == 4


def test_events_are_packed_without_loss():
    """Actions, sizes, order, streams and phases survive; addresses become their order; the measurement's own looks are gone."""
    trace = [
        {"action": "segment_alloc", "addr": 0x7F00, "size": 2097152, "stream": 0},
        {"action": "alloc", "addr": 0x7F00, "size": 512, "stream": 0},
        {"action": "snapshot", "addr": 0, "size": 0, "stream": 0},
        {"action": "alloc", "addr": 0x6F02, "size": 1024, "stream": 139},
        {"action": "free_requested", "addr": 0x7F00, "size": 512, "stream": 0},
        {"action": "oom", "device_free": 17, "size": 4096, "stream": 0},
    ]
    history = pack(trace, [("1 forward", 1), ("1 backward", 3)])
    assert history.count == 5
    assert unpack(history) == [
        ("segment_alloc", 1, 2097152, 0, "before"),
        ("alloc", 1, 512, 0, "1 forward"),
        ("alloc", 0, 1024, 1, "1 backward"),
        ("free_requested", 1, 512, 0, "1 backward"),
        ("oom", 0, 4096, 0, "1 backward"),
    ]


def test_workspaces_are_what_their_release_frees(monkeypatch):
    """The blocks gone after cuBLAS lets go of its workspaces are those workspaces: sizes and how many of each."""
    blocks = [(0x10, 8519680), (0x20, 512), (0x30, 8519680), (0x40, 4096)]

    def snapshot(*_):
        listed = [{"address": a, "size": s + 7, "requested_size": s, "state": "active_allocated"} for a, s in blocks]
        return {"segments": [{"device": 0, "blocks": [*listed, {"address": 1, "size": 9, "state": "inactive"}]}]}

    monkeypatch.setattr(torch.cuda.memory, "_snapshot", snapshot)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: blocks.__delitem__(slice(0, 3, 2)), raising=False)
    assert [(each.nbytes, each.times) for each in driver.workspaces(0)] == [(8519680, 2)]


def test_nvml_s_word_is_for_this_process(monkeypatch):
    """Listed by its number, or the only one there, a process is ours; among strangers there is no figure."""
    listed = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5), SimpleNamespace(pid=1, usedGpuMemory=9)]
    nvml = SimpleNamespace(NVMLError=OSError, nvmlDeviceGetComputeRunningProcesses=lambda handle: listed)
    monkeypatch.setattr(driver, "_nvml", lambda: nvml)
    monkeypatch.setattr(torch.cuda, "_get_pynvml_handler", lambda index: index)
    assert driver.process_bytes(0) == 5
    del listed[0]
    assert driver.process_bytes(0) == 9
    listed.append(SimpleNamespace(pid=2, usedGpuMemory=1))
    assert driver.process_bytes(0) is None
    monkeypatch.setattr(driver, "_nvml", lambda: None)
    assert driver.process_bytes(0) is None


def test_without_torch_the_command_says_what_to_install(tmp_path):
    """On a machine without torch, measuring is one line on stderr and exit code 2."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    paths = os.pathsep.join([str(tmp_path), os.getcwd()])  # noqa: PTH109
    done = subprocess.run(
        [sys.executable, "-m", "memcalc", "measure", "mlp"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "memcalc: measure: torch is not installed; pip install 'memcalc[torch]'\n"


def test_bytes_beyond_rounding_are_laid_to_the_large_tensors():
    """Allocated bytes beyond whole 512 B blocks are said with the tensors that can have them, and beyond 1 MiB each is said."""
    from memcalc.engines.measure.assemble import unsplit
    from memcalc.measurement import Component, Tensor
    from memcalc.units import MIB

    def component(allocated):
        return Component(walked=3 * MIB + 100, counted=3 * MIB + 100, allocated=allocated)

    rows = [
        Tensor(component="parameters", name=name, dtype="uint8", shape=[size], nbytes=size, device="cuda")
        for name, size in (("large", 3 * MIB), ("small", 100))
    ]
    blocks = 3 * MIB + 512
    assert unsplit("parameters", component(blocks), rows) == ""
    said = unsplit("parameters", component(blocks + MIB), rows)
    assert said == "1,048,576 B beyond rounding, within 1 MiB for each of 1 tensors over 1 MiB: large"
    assert "NOT within" in unsplit("parameters", component(blocks + MIB + 512), rows)
    assert unsplit("parameters", Component(walked=5, counted=5), rows) == "", "a CPU has no blocks"
