"""``estimate --engine trace`` and its twins in the library, as a person would use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
jsonschema = pytest.importorskip("jsonschema")

import memcalc  # noqa: E402
from memcalc.__main__ import run  # noqa: E402
from memcalc.allocator.snapshot import read_snapshot, tape_of  # noqa: E402
from memcalc.api import trace_whole  # noqa: E402
from memcalc.engines.trace.tracker import Tracker  # noqa: E402
from memcalc.schemas import schema  # noqa: E402

CONFIG = """
model_type: llama
architectures: [LlamaForCausalLM]
vocab_size: 128
hidden_size: 64
intermediate_size: 96
num_hidden_layers: 1
num_attention_heads: 4
num_key_value_heads: 2
"""
OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.first(x).relu())

class Choosy(Net):
    def forward(self, x):
        if x.sum() > 0:  # the person's line
            return self.last(self.first(x))
        return self.last(self.first(x).relu())

class Failing(Net):
    def forward(self, x):
        return self.last(x)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small model and some code of a person's own."""
    pytest.importorskip("transformers")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return tmp_path


@pytest.fixture
def answer(capsys):
    """Run a command line: (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


TINY = ("estimate", "tiny.yaml", "--engine", "trace", "--sequence-length", 32, "--micro-batch-size", 2)


def test_the_json_is_the_contract_with_the_peak_filled(here, answer):
    """One object on stdout that meets the schema; requested, rounded, allocated and reserved in that order of size."""
    code, out, err = answer(*TINY, "--format", "json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    jsonschema.validate(told, schema("footprint"))
    peak = told["peak"]
    assert 0 < peak["requested"] <= peak["rounded"] <= peak["allocated"] <= peak["reserved"]
    assert sum(told["at_peak"].values()) == peak["rounded"]
    assert told["engine"] == "trace"
    assert told["job"]["inputs"] == ["input_ids=int64[2,32]<128", "labels=int64[2,32]<128"]


@pytest.mark.parametrize("precision", ["fp16", "amp-bf16", "bf16-pure"])
def test_what_is_kept_is_what_the_config_says(here, answer, precision):
    """Parameters, gradients, masters and optimizer states equal the analytic engine's to the byte, and so do their parts."""
    told = [
        json.loads(answer("estimate", "tiny.yaml", "--engine", engine, "--precision", precision, "--format", "json")[1])
        for engine in ("trace", "analytic")
    ]
    for name in ("parameters", "gradients", "master_parameters", "optimizer_states"):
        assert told[0]["components"][name] == told[1]["components"][name], name
    assert told[0]["optimizer_states"] == told[1]["optimizer_states"]
    assert told[0]["states"]["requested"] == told[1]["states"]["requested"]


def test_files_and_tables(here, answer):
    """The timeline as a page and as JSON, the snapshot that PyTorch's visualiser reads, the largest tensors, the groups."""
    code, out, _ = answer(*TINY, "--timeline", "t.html", "--snapshot", "t.pickle", "--top", 3, "--by", "role")
    assert code == 0
    assert "The largest buffers at the peak" in out
    assert "By role at the peak" in out
    assert (here / "t.html").read_text().startswith("<!DOCTYPE html>")
    assert len(tape_of(read_snapshot(here / "t.pickle"))) > 100
    told = json.loads(answer(*TINY, "--top", 3, "--by", "module", "--format", "json", "--timeline", "t.json")[1])
    assert len(told["top"]) == 3
    assert sum(row["bytes"] for row in told["by"]["module"]) == told["peak"]["rounded"]
    assert json.loads((here / "t.json").read_text())["peak"]["bytes"] == told["peak"]["rounded"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("estimate", "gpt2", "--timeline", "t.html"), "--timeline: t.html needs the step to be traced; add --engine trace"),
        ((*TINY, "--by", "modul"), "--by: modul is no way to group the peak; did you mean module?"),
        ((*TINY, "--timeline", "t.gif"), "is no kind of file a timeline is written as"),
        ((*TINY, "--dp", 2), "asks for several ranks, which are not traced yet; use engine analytic"),
        ((*TINY, "--gpu", "mi300x"), "is not NVIDIA's, and its kernels are not known; use engine analytic"),
        ((*TINY, "--allocator", "max_split_size_mb:x"), "max_split_size_mb"),
        ((*TINY, "--input", "ids"), "does not name an input"),
        (("estimate", "--params", "7e9", "--engine", "trace"), "has no code that could be run"),
        (("estimate", "py:own_nets:Choosy", "--engine", "trace"), "decides by a tensor's values, at "),
        (("estimate", "py:own_nets:Failing", "--engine", "trace"), "fails in forward at "),
    ],
)
def test_what_cannot_be_is_one_line(here, answer, words, said):
    """Bad input is one error on stderr with its path and the way out, exit code 2, and nothing on stdout or on the disk."""
    before = set(here.iterdir())
    code, out, err = answer(*words)
    assert (code, out) == (2, "")
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err
    assert {each.name for each in set(here.iterdir()) - before} <= {"__pycache__"}


def test_the_persons_own_line_is_named(here, answer):
    """Code that decides by values is shown where it does."""
    _, _, err = answer("estimate", "py:own_nets:Choosy", "--engine", "trace")
    line = next(number for number, text in enumerate(OWN.splitlines(), 1) if "the person's line" in text)
    assert f"own_nets.py:{line}" in err.replace("\n", "")


def test_without_torch_the_extra_is_named(here):
    """The trace engine says what to install, and no other command notices."""
    (here / "torch.py").write_text("raise ImportError(\"No module named 'torch'\", name='torch')")
    root = str(Path(memcalc.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), root))}
    words = [sys.executable, "-m", "memcalc", "estimate", "tiny.yaml", "--engine"]
    done = subprocess.run([*words, "trace"], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    assert "memcalc[torch]" in done.stderr
    assert subprocess.run([*words, "analytic"], capture_output=True, env=environment, timeout=60, check=False).returncode == 0


def test_a_job_file_may_ask_for_a_trace(here, answer):
    """``engine: trace`` in a job: the states' verdict is exact; code in it runs only when that is allowed."""
    (here / "job.yaml").write_text("{model: tiny.yaml, engine: trace, memory: 1GiB, scope: states}")
    assert answer("check", "job.yaml")[0] == 0
    (here / "job.yaml").write_text("{model: tiny.yaml, engine: trace, memory: 1MiB}")
    assert answer("check", "job.yaml")[0] == 1
    (here / "job.yaml").write_text("{model: 'py:own_nets:Net', engine: trace, memory: 1GiB}")
    code, out, _ = answer("check", "job.yaml")
    assert code == 2
    assert "--allow-code" in out
    (here / "sweep.yaml").write_text("{base: {model: tiny.yaml, engine: trace}, grid: {optimizer: [adam]}}")
    code, _, err = answer("sweep", "sweep.yaml")
    assert code == 2
    assert "is not an engine for many jobs" in err


def test_a_live_module_keeps_its_own_tensors():
    """``memcalc.trace`` of a module on the CPU gives the same parameters back, values, gradients and all."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    module(torch.ones(2, 8)).sum().backward()
    before = [(param, param.clone(), param.grad) for param in module.parameters()]
    footprint = memcalc.trace(module, [torch.zeros(4, 8)], optimizer="adamw", loss="mse")
    for param, (same, values, gradient) in zip(module.parameters(), before, strict=True):
        assert param is same
        assert torch.equal(param, values)
        assert param.grad is gradient
    count = 8 * 16 + 16 + 16 * 4 + 4
    assert footprint.components.parameters == footprint.components.gradients == 4 * count
    assert footprint.optimizer_states == {"momentum": 4 * count, "variance": 4 * count}
    assert not torch.cuda.is_available()


def test_a_step_of_ones_own():
    """A step function with two losses on one model: phases are told by what runs, and both gradients are there."""
    module = torch.nn.Linear(8, 8)

    def step(model, batch, optimizer):
        out = model(batch["args0"])
        (out.sum() + out.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    found = trace_whole(module, [torch.zeros(4, 8)], optimizer="sgd-momentum", step=step)
    assert found.footprint.components.gradients == 4 * (8 * 8 + 8)
    assert {"forward", "backward", "optimizer_step"} <= set(found.footprint.phases)


def test_a_loop_of_ones_own():
    """Inside ``memcalc.tracing`` a plain CUDA training loop runs; its optimizer's states are found, its parts are named."""
    with memcalc.tracing(gpu="a100-80gb", name="mine") as session:
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)).cuda()
        session.watch(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            model(torch.randn(2, 8, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    footprint = session.traced.footprint
    count = 8 * 16 + 16 + 16 * 4 + 4
    assert footprint.components.parameters == footprint.components.gradients == 4 * count
    assert footprint.components.optimizer_states == 8 * count
    assert footprint.peak.iteration == 2
    assert footprint.job["training"]["optimizer"] == "torch:AdamW"
    assert not torch.cuda.is_available()


def test_a_loop_without_a_step_has_no_answer():
    """Asked before the end, or where no optimizer stepped, the session says so."""
    with memcalc.tracing() as session, pytest.raises(memcalc.InputError, match="takes at least one step"):
        _ = session.traced
    with pytest.raises(memcalc.InputError, match="takes at least one step"):
        _ = session.traced


def test_a_snapshot_is_read_back(here, answer):
    """``replay`` of the snapshot a trace wrote gives the trace's own peak (what was alive at its start is all in it)."""
    told = json.loads(answer(*TINY, "--snapshot", "t.pickle", "--format", "json")[1])
    code, out, err = answer("replay", "t.pickle", "--format", "json", "--timeline", "again.html")
    assert (code, err) == (0, "")
    peak = json.loads(out)["peak"]
    for name in ("requested", "rounded", "allocated"):
        assert peak[name] == told["peak"][name], name
    assert (here / "again.html").exists()
    code, out, _ = answer("replay", "t.pickle", "--allocator", "expandable_segments:True", "--top", 2)
    assert code == 0
    assert "The largest buffers at the peak" in out
    (here / "bad.pickle").write_bytes(b"\x80\x04cos\nsystem\n(S'echo'\ntR.")
    code, out, err = answer("replay", "bad.pickle")
    assert (code, out) == (2, "")
    assert "bad.pickle" in err


def test_an_interrupt_ends_it_quietly(here, answer, monkeypatch):
    """Ctrl-C in the middle of a trace: exit 130, no traceback, no file, and the next trace is as good as any."""
    words = ("estimate", "py:own_nets:Net", "--engine", "trace", "--timeline", "never.html")

    def interrupting(self, phase, iteration):
        mark(self, phase, iteration)
        if phase == "backward":
            raise KeyboardInterrupt  # as Python does between two of its instructions when the signal comes

    mark = Tracker.mark
    monkeypatch.setattr(Tracker, "mark", interrupting)
    code, out, err = answer(*words)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert not (here / "never.html").exists()
    monkeypatch.setattr(Tracker, "mark", mark)
    assert answer(*words)[0] == 0


def test_a_traced_step_gets_its_bounds_its_device_total_and_a_verdict(here, answer):
    """What the allocator reserves, the context and libraries are lines that add up, and the bound gives the verdict."""
    code, out, _ = answer(*TINY, "--gpu", "h100-80gb", "--format", "json")
    told = json.loads(out)
    jsonschema.validate(told, schema("footprint"))
    peak, outside = told["peak"], told["outside"]
    assert (code, told["fits"]["verdict"]) == (0, "fits")
    assert peak["low"] <= peak["allocated"] < peak["high"]
    assert peak["device_low"] == peak["reserved"] + sum(line["low"] for line in outside)
    assert peak["device_high"] == peak["reserved"] + sum(line["high"] for line in outside)
    assert (peak["device"], told["components"]["context"]) == (None, None)
    code, out, _ = answer(*TINY, "--memory", "16MiB", "--explain")
    assert (code, "does not fit: the step and its context take at least" in out) == (1, True)
    assert "CUDA context, kernels and libraries" in out
