"""Numbers and words that no option can be: each is one error with its path, value, rule and way out, and never a fault."""

from __future__ import annotations

import math

import pytest

from memcalc.api import estimate_mapping
from memcalc.errors import InputError, MemcalcError
from memcalc.implementations import load_implementation
from memcalc.job import read_job
from memcalc.optimizers.base import Param
from memcalc.optimizers.names import all_optimizers, find_optimizer

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "vocab_size": 99,
         "num_hidden_layers": 2}  # fmt: skip
ODD = [math.nan, math.inf, -1, 0, 1e300, 10**24, 2**53 + 1, 0.5, "", "abc", True, None, [], [1], ["a"], {}]
FINITE = "is not a finite number; give one that is"
LARGE = "is beyond 2**53, the largest whole number that an option may be; give a smaller one"


BUCKET, COMM, OF = "parallelism.zero_args.reduce_bucket_size", "parallelism.zero_args.overlap_comm", "training.optimizer_args"


def bucket(size):
    """A job's bucket size."""
    return {"zero_args": {"reduce_bucket_size": size}}


def comm(value):
    """Whether its communication overlaps."""
    return {"zero_args": {"overlap_comm": value}}


def option(value, key="lr", optimizer="adam"):
    """A job's optimizer with one option."""
    return {"optimizer": optimizer, "optimizer_args": {key: value}}


def code(name, key, value):
    """Another project's layers with one argument."""
    return {"implementation": name, "implementation_args": {key: value}}


@pytest.mark.parametrize(("keys", "said"), [
    (bucket(math.nan), f"{BUCKET}: nan {FINITE}"), (bucket(-math.inf), f"{BUCKET}: -inf {FINITE}"),
    (bucket(10**24), f"{BUCKET}: {10**24} {LARGE}"),
    (bucket(1e300), f"{BUCKET}: 1e+300 is beyond 2**53, the largest size that an option may be; give a smaller one; the "
     "default is 500000000"),
    (bucket(-1), f"{BUCKET}: -1 is below 0; use a size; the default is 500000000"),
    (comm("abc"), f"{COMM}: abc is not true, false or a number; give one of them"),
    (comm(""), f"{COMM}: '' is not true, false or a number; give one of them"),
    (option(math.nan), f"{OF}.lr: nan {FINITE}"), (option([0.9, math.nan], "betas"), f"{OF}.betas: [0.9, nan] {FINITE}"),
    (option("abc"), f"{OF}.lr: abc is not a number; give one, as 1e-4, or leave it out; it changes no byte"),
    (option("abc", "betas"), f"{OF}.betas: abc is not a list of numbers; give one, as [0.9, 0.95], or leave it out; it changes "
     "no byte"),
    (option(0.9, "betas"), f"{OF}.betas: 0.9 is not a list of numbers; give one, as [0.9, 0.95], or leave it out; it changes "
     "no byte"),
    (option({}), f"{OF}.lr: {{}} is not true, false, a number, text or a list; give one of them"),
    (option("abc", "fused"), f"{OF}.fused: abc is not true or false; the default is None"),
    (option(-1, "momentum", "sgd"), f"{OF}.momentum: -1 is below 0; the default is 0.0"),
    (option(0, "rank", "galore-adamw"), f"{OF}.rank: 0 is below 1; the default is 128"),
    (option(None, "rank", "galore-adamw"), f"{OF}.rank: None is not a whole number; the default is 128"),
    (option("fp8", "momentum_dtype", "timm:AdafactorBigVision"), f"{OF}.momentum_dtype: fp8 is not a known dtype; there are 18 "
     "to choose from"),
    (code("megatron", "make_vocab_size_divisible_by", 10**24),
     f"implementation_args.make_vocab_size_divisible_by: {10**24} {LARGE}"),
    (code("litgpt", "version", "abc"), "implementation_args.version: abc is no date; write it as 2024-08-02"),
    (code("torchtune", "builder", []), "implementation_args.builder: [] does not build a llama; use llama2, llama3, llama3_1 "
     "or llama3_2"),
    ({"lora": {"lora_dropout": "abc"}}, "lora.lora_dropout: abc is not a share; give a number from 0 to 1"),
    ({"lora": {"target_modules": []}}, "lora.target_modules: [] is not a list of modules' names; write it as [q_proj, v_proj]"),
    ({"lora": {"r": True}}, "lora.r: True is not a rank; give 1 or more"),
    ({"model": 5}, "model: 5 is not text or a mapping; give one of them"),
])  # fmt: skip
def test_what_cannot_be_is_one_clear_error(keys, said):
    """Under ZeRO-1, where bucket sizes matter; also of options that change no byte, where the constructor would refuse them."""
    job = {"model": LLAMA, "precision": "fp32", "scope": "states", **keys}
    with pytest.raises(InputError) as refused:
        estimate_mapping(job | ({"dp": 2, "zero_stage": 1} if "zero_args" in keys else {}))
    assert str(refused.value) == said


@pytest.mark.parametrize(("keys", "said"), [
    ({"micro_batch_size": 0, "lora": {"r": math.nan}}, "training.micro_batch_size: 0 is not above 0; give a larger one"),
    ({"lora": {"r": math.nan}, "optimizer_args": {"lr": {}}},
     f"{OF}.lr: {{}} is not true, false, a number, text or a list; give one of them"),
    ({"dp": 0, "zero_stage": 1} | bucket("abc"), "parallelism.dp: 0 is not above 0; give a larger one"),
    ({"dp": 2, "zero_stage": 7} | bucket(math.nan), "parallelism.zero_stage: 7 is above 3; give a smaller one"),
    (option({"a": 1}, optimizer=["a"]), "training.optimizer: ['a'] is not text; put it in quotes"),
])  # fmt: skip
def test_of_two_values_the_first_is_said(keys, said):
    """By its own path and rule, though the other may be of several kinds and stands deeper in the same section."""
    with pytest.raises(InputError) as refused:
        read_job({"model": "gpt2", **keys})
    assert str(refused.value) == said


def test_a_job_among_many_keeps_its_path():
    """What pydantic finds and what is looked at after it are said of the same place."""
    for value in (math.nan, 10**24):
        with pytest.raises(InputError, match=r"^jobs\.3\.training\.optimizer_args\.lr: "):
            read_job({"model": "gpt2", "optimizer_args": {"lr": value}}, "jobs.3")


def refusal(call) -> MemcalcError | None:
    """The error of a call, if there is one of memcalc's."""
    try:
        call()
    except MemcalcError as error:
        return error
    return None


@pytest.mark.parametrize("name", all_optimizers())
def test_no_option_of_an_optimizer_is_a_fault(name):
    """Every option of every optimizer takes an odd value or refuses it; what it takes gives states of a matrix and a vector."""
    entry, params = find_optimizer(name, "optimizer"), (Param((8, 6)), Param((5,), name="bias"))

    def states(key, value):
        options = entry.resolve(read_job({"model": "gpt2", "optimizer_args": {key: value}}).training.optimizer_args)
        assert all(state.nbytes * state.count >= 0 for param in params for state in entry.states(param, options))

    for key in {*entry.options, "lr", "betas"}:
        refused = [error for value in ODD if (error := refusal(lambda: states(key, value))) is not None]  # noqa: B023
        assert len(refused) > 3
        assert {error.path for error in refused} == {f"training.optimizer_args.{key}"}


@pytest.mark.parametrize("name", ["litgpt", "megatron", "nanogpt", "torchtitan", "torchtune"])
def test_no_argument_of_an_implementation_is_a_fault(name):
    """Nor is any that is told how to run another project's layers."""
    model = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99} if name == "nanogpt" else LLAMA
    job = {"model": model, "precision": "fp32", "scope": "states"}
    for key in load_implementation(name).arguments:
        refused = [error for value in ODD if (error := refusal(lambda: estimate_mapping(job | code(name, key, value))))]  # noqa: B023
        assert len(refused) > 3
        assert all(error.path.startswith("implementation_args") for error in refused)
