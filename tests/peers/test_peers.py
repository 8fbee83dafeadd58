"""The comparison with peers: how a run becomes a case, how an adapter answers, that the page is not stale; no peer needed."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from benchmarks.peers.cases import GROUPS, case, chosen, group, optimizer, ranks, scheme
from benchmarks.peers.report import page, predictions, row
from benchmarks.peers.run import HERE, PAGE, RESULTS, ROOT, TOOLS, Tool, ask, main
from benchmarks.peers.words import TOLD, TRACE
from benchmarks.published.records import load
from memcalc.errors import InputError
from tests.published.test_published import record

FORMULAS = Tool("EleutherAI's formulas", ("for_eleutherai.py",))


def told(**changes):
    """The case of the small record: two layers of hidden 64, four heads, 512 tokens of vocabulary, batch 2 of 64 tokens."""
    return case(record(**changes))


def formulas(*cases):
    """What EleutherAI's formulas say."""
    return ask(FORMULAS, sys.executable, list(cases))["answers"]


@pytest.mark.parametrize(
    ("words", "world", "repo", "expected"),
    [
        ("none", 1, "pytorch/torchtitan", {"dp": 1, "tp": 1, "pp": 1, "zero": 0}),
        ("FSDP2 (dp_shard 128)", 128, "pytorch/torchtitan", {"dp": 128, "tp": 1, "pp": 1, "zero": 3}),
        ("FSDP1 FULL_SHARD 8", 8, "pytorch/torchtitan", {"dp": 8, "tp": 1, "pp": 1, "zero": 3}),
        ("FSDP2 4 x TP/SP 2", 8, "pytorch/torchtitan", {"dp": 4, "tp": 2, "pp": 1, "zero": 3}),
        ("FSDP2 8, reshard_after_forward=never", 8, "pytorch/torchtitan", {"dp": 8, "tp": 1, "pp": 1, "zero": 3}),
        ("FSDP2 8 x TP 8 x PP 8, 1F1B", 512, "pytorch/torchtitan", None),
        ("TP 2 x PP 2 x CP 1 x EP 1", 8, "NVIDIA/Megatron-LM", {"dp": 2, "tp": 2, "pp": 2, "zero": 0}),
        ("TP 4 x PP 1 x CP 1 x EP 1 + distributed optimizer", 8, "NVIDIA/Megatron-LM", {"dp": 2, "tp": 4, "pp": 1, "zero": 1}),
        ("TP 2 x PP 2 x CP 1 x EP 2", 8, "NVIDIA/Megatron-LM", None),
    ],
)
def test_ranks(words, world, repo, expected):
    """Words on sharding become ranks of each kind, or nothing where they say more."""
    assert ranks(record(sharding=words, world_size=world, source={"repo": repo})) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("torch.optim.AdamW (foreach or fused depending on commit)", "adamw"), ("bnb.optim.PagedAdamW8bit", "adamw8bit"),
        ("bnb Adam8bit", "adamw8bit"), ("Adafactor", "adafactor"), ("SGD", None),
    ],
)  # fmt: skip
def test_optimizers(words, expected):
    """An optimizer in one word, or none."""
    assert optimizer(record(optimizer=words)) == expected


def test_schemes():
    """Dtypes of parameters, computation and gradients, and the copy, follow the scheme; a quantised base computes in BF16."""
    assert scheme(record()) == ("bf16", "bf16", "bf16", False)
    assert scheme(record(precision="bf16 AMP")) == ("fp32", "bf16", "fp32", False)
    quantized = {"method": "qlora", "rank": 8, "targets": ["q"], "base_quantization": "bnb.nf4-dq"}
    assert scheme(record(precision="nf4 weights, bf16 compute", trainable=quantized)) == ("bf16", "bf16", "bf16", False)
    assert scheme(record(precision="something else")) is None


def test_a_case_has_everything_of_the_run():
    """Sizes, modules, parameters and the job of a run are in its case, and a run out of memcalc's scope has no job."""
    lora = {"method": "lora", "rank": 8, "targets": ["q", "mlp"], "alpha": 16, "base_quantization": None}
    found = told(trainable=lora)
    assert found["lora"]["modules"] == ["q_proj", "gate_proj", "up_proj", "down_proj"]
    # embeddings and head 2 * 512 * 64; a layer q, o 64 * 64, k, v 64 * 32, three of 64 * 128, two norms; the last norm
    assert found["parameters"] == 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    assert sum(count * math.prod(shape) for _, shape, count in found["tensors"]) == found["parameters"]
    assert found["job"]["job"]["training"]["sequence_length"] == 64
    assert told(source={"repo": "Lightning-AI/litgpt"})["job"] is None
    assert json.loads(json.dumps(found))["id"] == "small"


def test_every_chosen_run_is_a_case_of_a_group():
    """What is put to the tools is stated whole: measured, of a known group, and turned into a case without a refusal."""
    runs = chosen(load())
    assert len(runs) > 80
    assert {group(run) for run in runs} == set(GROUPS)
    assert all(run.measured and case(run)["parameters"] > 0 for run in runs)


def test_formulas_by_hand():
    """EleutherAI's totals, multiplied out by hand: whole and recomputed, eager, mixed, and sharded over eight GPUs."""
    plain = told()
    count, tokens = plain["parameters"], 2 * 64 * 64 * 2  # s b h L
    found = formulas(
        plain, {**plain, "eager": True}, {**plain, "checkpointing": "full"}, told(precision="bf16 AMP"),
        {**told(precision="bf16 AMP"), "ranks": {"dp": 8, "tp": 1, "pp": 1, "zero": 3}, "checkpointing": "full"},
        {**plain, "optimizer": "adamw8bit"},
    )  # fmt: skip
    assert [one["tensors"] for one in found] == [
        count * (2 + 2 + 8) + 34 * tokens,
        count * (2 + 2 + 8) + 34 * tokens + 5 * 2 * 64 * 64 * 4 * 2,  # 5 b s s a L
        count * (2 + 2 + 8) + 2 * tokens,
        count * (2 + 4 + 12) + 34 * tokens,
        count * (2 + 4 + 12) // 8 + 2 * tokens,
        count * (2 + 2 + 2) + 34 * tokens,
    ]


def test_null_has_its_reason():
    """What a tool has no word for is no answer, and says why; nothing is put in its place."""
    lora = {"method": "lora", "rank": 8, "targets": ["q"], "base_quantization": None}
    found = formulas(told(trainable=lora), told(optimizer="Adafactor"), told(activation_checkpointing="selective"),
                     told(optimizer="bnb.optim.PagedAdamW"), {**told(), "ranks": None})  # fmt: skip
    assert [one["reason"] for one in found] == [
        "not covered: LoRA", "not covered: this optimizer", "not covered: this policy of recomputation",
        "not covered: a paged optimizer", "not covered: these ranks",
    ]  # fmt: skip
    assert not any("tensors" in one for one in found)


def test_a_tool_that_raises_or_prints(tmp_path):
    """An exception of a tool is a reason with its words, and what it prints is kept out of the answer."""
    script = tmp_path / "noisy.py"
    script.write_text(
        "from worker import answer, serve\n"
        "def estimate(case):\n"
        "    print('noise')\n"
        "    if case['id'] == 'bad':\n"
        "        raise ValueError('no such model')\n"
        "    return answer(7, 9)\n"
        "serve('memcalc', estimate)\n"
    )
    asked = json.dumps({"cases": [{"id": "good"}, {"id": "bad"}]})
    ran = subprocess.run([sys.executable, str(script)], input=asked, text=True, capture_output=True, check=True,
                         env={"PYTHONPATH": str(HERE / "adapters")})  # fmt: skip
    good, bad = json.loads(ran.stdout)["answers"]
    assert (good["tensors"], good["process"]) == (7, 9)
    assert bad["reason"] == "ValueError: no such model"
    assert "noise" in ran.stderr


def test_an_interpreter_without_the_tool_is_named():
    """A peer that is not installed where its flag points is an error that names the flag."""
    with pytest.raises(InputError, match="--python no-such-peer"):
        ask(Tool("x", ("no_such_adapter.py",), "no-such-peer"), sys.executable, [])
    with pytest.raises(InputError, match="is no peer"):
        main(["--python", "nobody=python"])


def test_rows_count_what_is_answered():
    """A tool's errors are over its own answers, and the trace's beside them over those that both have."""
    runs = [record(id=name) for name in "abc"]  # each measured 1,000,000
    line = row("tool", runs, {"a": 1_100_000, "b": 800_000}, {"b": 1_010_000, "c": 5})
    assert line == "| tool | 2 | 15.00 % | 20.00 % | -5.00 % | 1 | 1.00 % |"
    assert row("tool", runs, {}, {}).startswith("| tool | 0 | –")


def test_page_is_what_was_kept():
    """docs/comparison.md is made from the answers kept and the predictions of the published runs, and is not stale."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    records = load()
    assert PAGE.read_text(encoding="utf-8") == page(records, kept), "python -m benchmarks.peers.run --page"
    assert set(TOLD) == {tool.name for tool in TOOLS} == set(kept["tools"])
    runs = {run.id for run in chosen(records)}
    for tool in TOOLS:
        if tool.answers:
            assert set(kept["tools"][tool.name]["answers"]) == runs, f"{tool.name}: ask it again"
    assert len(predictions(chosen(records), kept)[TRACE]) > 30


def test_formulas_kept_are_todays():
    """The formulas' answers that are kept are those of today's adapter, so that none was kept from another."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["tools"][FORMULAS.name]["answers"]
    found = formulas(*(case(run) for run in chosen(load())))
    assert {one["id"]: (one.get("tensors"), one.get("reason")) for one in found} == {
        name: (one.get("tensors"), one.get("reason")) for name, one in kept.items()
    }


def test_no_peer_is_imported_here():
    """No adapter is part of the package or of what it imports: each is a script of its own."""
    assert not any(path.name == "__init__.py" for path in (ROOT / "benchmarks" / "peers" / "adapters").iterdir())
