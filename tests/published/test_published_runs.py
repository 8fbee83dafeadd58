"""Published runs that do not train, and updates within backward: how their words are read, and which jobs they become."""

from __future__ import annotations

import pytest

from benchmarks.published.convert import question
from benchmarks.published.optimizers import in_backward, optimizer_of
from benchmarks.published.predict import answer, asked_for, estimated, predict
from benchmarks.published.records import load
from benchmarks.published.scope import why_not
from benchmarks.published.told import lengths
from tests.published.test_published import record

PAGE = {"repo": "Lightning-AI/litgpt", "path": "tutorials/resource-tables.md"}
RUN = {"kind": "inference", "trainable": "none", "optimizer": "none", "precision": "bf16-true", "micro_batch_size": 1,
       "seq_len": "prompt ~5-6 tokens + 50 new tokens", "source": PAGE}  # fmt: skip


def why(**changes):
    """Features that keep a small run of litgpt's out of the analytic engine's scope."""
    return [reason.feature for reason in why_not(record(**{**RUN, **changes}), "analytic")]


@pytest.mark.parametrize(
    ("words", "name", "arguments", "within"),
    [
        (
            "torch.optim.Adam([p], foreach=False) per parameter in post_accumulate_grad hook",
            "torch:Adam",
            {"foreach": False},
            True,
        ),
        ("AdamW fused into backward", "torch:AdamW", {}, True),
        ("bnb.optim.PagedAdamW fused into backward", "bitsandbytes:PagedAdamW", {}, True),
        ("torch.optim.AdamW(fused=True), optimizer_in_bwd", "torch:AdamW", {"fused": True}, True),
        ("AdamW (betas=(0.9, 0.95), fused=True)", "torch:AdamW", {"fused": True}, False),
        ("torch.optim.SGD(lr=0.1, momentum=0.9)", "torch:SGD", {"momentum": 0.9}, False),
        ("paged AdamW 8-bit (bitsandbytes)", "bitsandbytes:PagedAdamW8bit", {}, False),
        ("AdamW (adamw_torch)", "torch:AdamW", {}, False),
        ("8-bit AdamW fused into backward (bnb PagedAdamW8bit or torchao)", None, None, True),
        ("AdamW in bf16", None, None, False),
    ],
)
def test_words_of_optimizers(words, name, arguments, within):
    """A class and its options are read apart from where it is stepped; words that are not known are no optimizer."""
    found = optimizer_of(words)
    assert (found and found.name, found and found.arguments) == (name, arguments)
    assert in_backward(words) is within


def test_an_update_within_backward_is_told_to_the_engine():
    """The key is in the job, and what is updated so holds no gradient at its peak of the update."""
    plain, inside = (record(optimizer=f"AdamW{words}", micro_batch_size=1, seq_len=4) for words in ("", " fused into backward"))
    assert not why_not(inside, "analytic")
    assert question(inside, "analytic").job["training"]["optimizer_in_backward"] is True
    assert "optimizer_in_backward" not in question(plain, "analytic").job["training"]
    assert predict(inside, engine="analytic")["predicted"] < predict(plain, engine="analytic")["predicted"]
    assert [reason.feature for reason in why_not(inside)] == ["optimizer in backward"]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("prompt ~5-6 tokens + 50 new tokens; KV cache allocated for that length", (6, 56)),
        ("prompt + 256 new tokens", (6, 262)), ("prompt of 128 tokens + 32 tokens", (128, 160)),
        ("512 prompt tokens + 128 new", (512, 640)), ("input 128, output 64", (128, 192)), ("128+32", (128, 160)),
        ("2k", None), (20, (20, 20)),
        ("variable", None), (None, None), (0, None), (True, None),
    ],
)  # fmt: skip
def test_lengths(told, found):
    """Tokens of a prompt and of all, the longer where two are told, litgpt's own prompt where none is; else nothing."""
    assert lengths(record(**{**RUN, "seq_len": told})) == found


def test_a_number_of_tokens_that_were_generated_has_no_prompt():
    """What is said to be generated came one by one."""
    assert lengths(record(**{**RUN, "seq_len": 64, "notes": "generating 64 tokens"})) == (None, 64)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"precision": "bnb.nf4-dq linears, bf16 embeddings"}, []),
        ({"precision": "bnb.fp4+bf16"}, []),
        ({"precision": "bnb.int8+fp16"}, ["quantized base", "precision"]),
        ({"precision": "gptq-int4"}, ["quantized base", "precision"]),
        ({"world_size": 4, "sharding": "tensor parallel"}, ["ranks"]),
        ({"seq_len": "2k"}, ["sizes"]),
        ({"source": {"repo": "Lightning-AI/litgpt"}}, ["commit"]),
        ({"source": {"repo": "pytorch/torchtune"}}, ["implementation"]),
        ({"source": {"repo": "huggingface/transformers"}}, []),
        ({"source": {"repo": "huggingface/transformers"}, "precision": "bnb.nf4+bf16"}, ["quantized base"]),
        ({"compile": True}, ["compile"]),
        ({"gpu": "TPU v4"}, ["device"]),
    ],
)
def test_rule_of_runs(changes, expected):
    """Each feature of a run that is not modelled keeps it out by itself; the trace is asked for none."""
    assert why(**changes) == expected
    assert "kind" in [reason.feature for reason in why_not(record(**{**RUN, **changes}))]


def test_a_run_is_its_prompt_and_its_last_token():
    """Two jobs, the cache as long as all tokens, of the code that the page's figures are of; the higher is the answer."""
    asked = question(record(**{**RUN, "precision": "bnb.fp4-dq"}), "analytic")
    prompt, last = asked.job, asked.more[0]
    assert (prompt["mode"], prompt["training"]["sequence_length"]) == ("prefill", 6)
    assert (last["mode"], last["inference"]) == ("decode", {"max_cache_length": 56, "context_length": 55})
    assert prompt["inference"] == {"max_cache_length": 56}
    assert prompt["implementation_args"] == {"version": "2023-10-16"}
    assert prompt["training"]["quantization"] == "nf4-double"
    found = record(**{**RUN, "precision": "bnb.fp4-dq"})
    alone = [answer(estimated(question(found, "analytic")), ("peak.allocated",))]
    told = predict(found, engine="analytic")
    assert told["mode"] == "prefill"
    assert told["predicted"] == alone[0]


def test_a_model_that_was_loaded_is_its_weights():
    """Where nothing ran yet, parameters and buffers are the answer, of any implementation with the family's tensors."""
    loaded = {**RUN, "seq_len": None, "micro_batch_size": None, "precision": "fp16", "gpu": "TPU",
              "source": {"repo": "deepspeedai/DeepSpeed"}, "assumptions": ["after load"]}  # fmt: skip
    assert why(**loaded) == []
    assert question(record(**loaded), "analytic").reading == ("parameters", "buffers")
    assert (
        predict(record(**loaded), engine="analytic")["predicted"] == 2 * _parameters() + 2 * 4 * 8
    )  # rotary frequencies, twice


def _parameters() -> int:
    hidden, inner, words, narrow = 64, 128, 512, 32
    return 2 * words * hidden + 2 * (2 * hidden**2 + 2 * hidden * narrow + 3 * hidden * inner + 2 * hidden) + hidden


def test_published_runs_are_predicted_closely():
    """What is known of litgpt's runs on one GPU is met within a hundredth."""
    found = [each for each in asked_for(load(), engine="analytic") if each.kind == "inference" and each.repo == PAGE["repo"]]
    assert len(found) >= 20
    for each in found[::5]:
        assert abs(predict(each, engine="analytic")["predicted"] / each.measured - 1) < 0.01
