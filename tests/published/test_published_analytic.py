"""Published runs asked of the analytic engine: its scope, its jobs, what null becomes, and that what is kept is its answer."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.published import convert, scope
from benchmarks.published.convert import question
from benchmarks.published.needs import PAGE as NEEDS
from benchmarks.published.needs import needs
from benchmarks.published.needs import page as needs_page
from benchmarks.published.predict import KEPT_ANALYTIC, PAGE_ANALYTIC, answer, asked_for, main, predict, read_kept, run
from benchmarks.published.report import Row
from benchmarks.published.report_analytic import ALONE, NOT_YET, bound, listing, page
from benchmarks.published.scope import Features, why_not
from memcalc.footprint import Peak
from memcalc.job import read_job
from tests.published.test_published import SMALL, features, load, record

LITGPT = {"repo": "Lightning-AI/litgpt", "code_commit": "3cf6493c"}
AGAIN = "predict them again: python -m benchmarks.published.predict --engine analytic"


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("Lightning-AI/litgpt", "the commit of the run's code is not told, and that code changed"),
        ("NVIDIA/Megatron-LM", None),
        ("pytorch/torchtitan", "the run's code is of a commit that is not told, or not known"),
        ("huggingface/transformers", None),
    ],
)
def test_another_implementation_is_out_of_scope_until_it_is_listed(repo, said):
    """Layers of another implementation keep a step out of the analytic scope, in these words, and transformers' do not."""
    reasons = why_not(record(source={"repo": repo}), "analytic")
    assert [reason.text for reason in reasons] == ([said] if said else [])


def test_scopes_differ_by_engine():
    """Steps of litgpt's are in both scopes, in the analytic one's where the commit of the code is told."""
    litgpt = record(source={"repo": "Lightning-AI/litgpt"})
    assert not why_not(litgpt)
    assert why_not(litgpt, "analytic")
    assert not why_not(record(source=LITGPT), "analytic")
    assert features(source={"repo": "Lightning-AI/litgpt"}) == []


def test_litgpt_s_jobs_say_which_code():
    """A run of litgpt's becomes a job with the date of its commit, its own names of adapted parts, and its default dropout."""
    lora = {"method": "lora", "rank": 4, "targets": ["q", "mlp"]}
    job = question(record(source=LITGPT, trainable=lora), "analytic").job
    assert job["implementation_args"] == {"version": "2024-03-28"}
    assert job["training"]["lora"]["target_modules"] == ["query", "mlp"]
    assert job["training"]["lora"]["lora_dropout"] == 0.05
    quantized = {**lora, "method": "qlora", "base_quantization": "bnb.nf4-dq"}
    assert question(record(source=LITGPT, trainable=quantized), "analytic").job["training"]["quantization"] == "nf4-double"


def test_torchtitan_s_jobs_say_which_code():
    """A run that a commit's message tells of is a job of that date, over FSDP2, checkpointed operator by operator."""
    told = {"repo": "pytorch/torchtitan", "path": "commit message", "commit": "5940ddeb532c60928314aa1a19b54e043eec2a44"}
    sharded = {
        "world_size": 8,
        "sharding": "FSDP2 8, reshard_after_forward=never",
        "precision": "fp32 sharded params; reduce_dtype=fp32",
    }
    run = record(source=told, activation_checkpointing="selective, per-op", software="2025-02 nightly", **sharded)
    assert not why_not(run, "analytic")
    job = question(run, "analytic").job
    assert job["implementation_args"] == {"version": "2025-02-06"}
    assert job["training"]["activation_checkpointing"] == "selective"
    assert job["parallelism"] == {"dp": 8, "zero_stage": 2, "zero_backend": "fsdp2", "zero_args": {"reduce_in_float32": True}}
    assert job["behaviour"]["allocator"] == "expandable_segments:True"
    assert (job["behaviour"]["torch"], job["training"]["max_grad_norm"]) == ("2.7", 1.0)
    assert job["training"]["optimizer_args"] == {"foreach": True}
    later = {**told, "commit": "e23bb707d6ce308c3c316d92c40c12d841ddd886"}
    assert question(record(source=later, **sharded), "analytic").job["training"]["optimizer_args"] == {"fused": True}
    first = question(record(source={**told, "commit": "40f8fd007957914bc2dced0bc5c018ec9f3ff30f"}, **sharded), "analytic").job
    assert "allocator" not in first["behaviour"]
    always = question(record(source=told, **{**sharded, "sharding": "FSDP2 8, reshard_after_forward=always"}), "analytic").job
    assert always["implementation_args"] == {"version": "2025-02-06", "reshard_after_forward": "always"}
    assert always["parallelism"]["zero_stage"] == 3
    named = {
        "repo": "pytorch/torchtitan",
        "locator": "run with torchtitan 9dec370ad26b5f8e9a7333a0e36165018262644b; read there",
    }
    assert question(record(source=named), "analytic").job["implementation_args"] == {"version": "2024-12-26"}
    early = record(source={**told, "commit": "83c879f18763611bda68586c45f0082fd568d646"}, **sharded)
    assert [reason.feature for reason in why_not(early, "analytic")] == ["commit"]


def test_timm_s_and_torchtune_s_jobs_say_what_is_their_own():
    """A DINOv2 ViT has layer scale and gates, as its record says; torchtune's runs a builder, a loss, and packed samples."""
    told = {each.id: question(each, "analytic").job for each in asked_for(load(), engine="analytic")}
    giant, tune = told["ao-vitg-bf16-adamw"], told["tune-readme-3b-packed"]
    assert giant["implementation_args"] == {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked"}
    assert (giant["model"]["intermediate_size"], giant["model"]["num_labels"]) == (4096, 45)
    assert tune["implementation_args"] == {
        "version": "2024-11-18", "builder": "llama3_2", "packed": True, "loss": "CrossEntropyLoss",
    }  # fmt: skip
    assert "implementation" not in told["pt-tutorial-vitl16-adam-foreach"]  # torchvision's ViT is a family


def test_scope_widens_in_one_place(monkeypatch):
    """An implementation that is added to the engine's list is in scope, and its name is in the job."""
    wider = Features(implementations=("transformers", "torchtitan"))
    monkeypatch.setattr(scope, "STEP", {**scope.STEP, "analytic": wider})
    monkeypatch.setattr(convert, "ANALYTIC", wider)
    titan = record(source={"repo": "pytorch/torchtitan"})
    assert not why_not(titan, "analytic")
    assert question(titan, "analytic").job["implementation"] == "torchtitan"
    assert "implementation" not in question(record(), "analytic").job


@pytest.mark.parametrize(
    ("change", "feature", "widened"),
    [
        ({"compile": True}, "compile", {"compiled": True}),
        ({"trainable": {"method": "qlora", "base_quantization": "nf4"}}, "quantized base", {"quantized": True}),
        ({"world_size": 8, "sharding": "FSDP2 8"}, "ranks", {"ranks": ("fsdp2",)}),
        ({"activation_checkpointing": "selective, per-op"}, "checkpointing", {"checkpointing": ("none", "selective, per-op")}),
        ({"optimizer": "torch.optim.AdamW", "activation_checkpointing": "full + offload"}, "offload", {"offload": True}),
        ({"optimizer": "AdamW fused into backward"}, "optimizer in backward", {"in_backward": True}),
    ],
)
def test_each_feature_opens_its_records(monkeypatch, change, feature, widened):
    """Every switch of the list keeps records out while it is off, and is no reason once it is on."""
    found = record(**change)
    monkeypatch.setattr(scope, "STEP", {"analytic": Features(implementations=("transformers",))})
    assert feature in [reason.feature for reason in why_not(found, "analytic")]
    monkeypatch.setattr(scope, "STEP", {"analytic": Features(implementations=("transformers",), **widened)})
    assert feature not in [reason.feature for reason in why_not(found, "analytic")]


def test_every_case_in_scope_is_a_job():
    """What the rule lets in is a job that the engine reads; steps say all their micro-batches, which a trace cuts short."""
    chosen = asked_for(load(), engine="analytic")
    assert len(chosen) > 20
    for each in chosen:
        assert read_job(question(each, "analytic").job).engine == "analytic"
    whole = question(record(gradient_accumulation_steps=64), "analytic").job["training"]
    assert whole["gradient_accumulation_steps"] == 64


@pytest.mark.parametrize(
    ("metric", "reading"),
    [
        ("torch.cuda.max_memory_allocated()", "peak.allocated"), ("active_bytes.all.peak", "peak.allocated"),
        ("max_memory_reserved", "peak.reserved"), ("nvidia-smi memory.used", "peak.device"),
    ],
)  # fmt: skip
def test_each_metric_has_its_own_figure(metric, reading):
    """Allocated, reserved and the device's memory are held against three figures, never one against another."""
    found = record(measured={**SMALL["measured"], "metric": metric})
    assert question(found, "analytic").reading == (reading,)


def test_null_is_not_zero():
    """A peak that the engine leaves null is no prediction, and one that it gives is."""

    class Footprint:
        peak = Peak(allocated=None, reserved=7, device_low=8, device_high=12)

    assert answer(Footprint, ("peak.allocated",)) is None
    assert answer(Footprint, ("peak.reserved",)) == 7
    assert answer(Footprint, ("peak.device",)) == 10


def test_what_is_kept_is_what_the_engine_says():
    """analytic.json holds today's answers of the engine for every case in scope, byte for byte."""
    records = load()
    assert run(asked_for(records, engine="analytic"), None, {}, "analytic") == read_kept(KEPT_ANALYTIC), AGAIN


def test_the_page_is_what_the_answers_give():
    """docs/published-analytic.md is made from the cases, the rule and the answers kept, and is not stale."""
    text = PAGE_ANALYTIC.read_text(encoding="utf-8")
    assert text == page(load(), read_kept(KEPT_ANALYTIC)), AGAIN
    assert "not explained" not in text, "a miss over a tenth has no line in benchmarks/published/explained.yaml"


def test_unexplained_misses_show():
    """A miss over a tenth without a line of its own is called that on the page."""
    found = record(source={"repo": "huggingface/transformers"})
    told = {"small": {"id": "small", "engine": "analytic", "predicted": 2 * 10**6, "of": ["peak.allocated"]}}
    assert "- small (+100.00 %): not explained." in page([found], told)
    assert f"peak.allocated: {NOT_YET}" in page([found], {"small": {**told["small"], "predicted": None}})


def test_small_groups_have_the_pooled_bound():
    """A group of 20 errors has its own extremes, one of 19 those of all steps, and statics are not pooled with steps."""

    def rows(count, predicted, **changes):
        return [Row(record(**changes), {"predicted": predicted}) for _ in range(count)]

    few, many = rows(ALONE - 1, 1_100_000), rows(ALONE, 950_000)
    static = rows(1, 3_000_000, kind="model_init")
    everything = [*few, *many, *static]
    assert bound(many, everything) == "-5.00 % … -5.00 %"
    assert bound(few, everything) == f"-5.00 % … +10.00 % (pooled, n = {2 * ALONE - 1})"
    assert bound(static, everything) == "+200.00 % … +200.00 % (pooled, n = 1)"


def test_a_file_by_path_says_why_each_case_is_out(tmp_path, capsys):
    """Of a file by its path: the errors, what is not answered, the reason of each case out of scope, and nothing kept."""
    path = tmp_path / "mine.yaml"
    state = {**SMALL, "id": "state", "kind": "optimizer_state",
             "measured": {**SMALL["measured"], "metric": "sum of optimizer state tensors"}}  # fmt: skip
    other = {**SMALL, "id": "other", "source": {"repo": "Lightning-AI/litgpt"}}
    path.write_text(yaml.safe_dump({"records": [state, other]}), encoding="utf-8")
    before = KEPT_ANALYTIC.read_bytes()
    assert main([str(path), "--engine", "analytic"]) == 0
    said = capsys.readouterr().out
    assert "| huggingface/transformers | optimizer_state | tensors | 1 |" in said
    assert "other: the commit of the run's code is not told" in said
    assert KEPT_ANALYTIC.read_bytes() == before


def test_listing_of_nothing():
    """No case at all is no error."""
    assert "None." in listing([], {})


def test_needs_agree_with_the_rule():
    """A step that needs nothing built is in scope, or what keeps it out is in the record and not in the engine."""
    stated = {"metric", "sizes", "device", "optimizer", "precision", "unit", "commit"}
    for each in load():
        if each.grade != "C" and each.kind == "train_step" and not needs(each):
            assert {reason.feature for reason in why_not(each, "analytic")} <= stated
    assert NEEDS.read_text(encoding="utf-8") == needs_page(load()), "python -m benchmarks.published.needs"


def test_one_prediction_names_its_three_peaks():
    """A step's prediction keeps allocated, reserved and device apart, whichever is asked."""
    told = predict(record(), engine="analytic")
    assert told["of"] == ["peak.allocated"]
    assert told["predicted"] == told["allocated"]
    assert {"reserved", "device"} <= set(told)
