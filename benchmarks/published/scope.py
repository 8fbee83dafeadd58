"""The rule: which published runs memcalc's engines are asked to predict. By features alone, never by how well one comes out.

``static`` records (what is held between steps, optimizer states, a model's own bytes) are asked of the analytic engine.
``train_step`` records are asked of the trace, which runs one rank's step with the very code the run trained, and apart from
that of the analytic engine, which has a config alone. ``inference`` records, a model that is run and not trained, are the
analytic engine's. ``TRACE`` and ``ANALYTIC`` list what each models of them: the rule widens when a feature is added there, and
there alone.
A reason with a stand-in says what could be put in the place of what is not modelled: such records may be predicted too, and are
shown apart, but never counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.published.records import Record
from benchmarks.published.told import (
    PER_OPERATOR,
    builder,
    code_date,
    lengths,
    policy,
    quantization,
    rank,
    sharding,
    targets,
    weights_alone,
)
from memcalc.implementations._litgpt_shapes import SHAPES
from memcalc.implementations._torchtitan_versions import LAST, version_of
from memcalc.records import dataclass

STATIC = ("static_after_step", "optimizer_state", "model_init")
BUILT = ("transformers", "torchvision", "timm", "litgpt")
"""Model code that is run: from a config, or litgpt's own, of the commit that the run was made with."""
SAME_TENSORS = (*BUILT, "torchtune", "torchtitan", "megatron")
"""Implementations whose parameters are those of the family's config, whatever their layers keep for backward."""


@dataclass(frozen=True, slots=True)
class Features:
    """What an engine models of a training step; a record that needs anything else is out of its scope.

    Attributes:
        implementations: whose layers.
        checkpointing: policies of recomputation, in the words of ``Record.checkpointing``.
        methods: ways to train, in those of ``Record.method``.
        code_alone: a model that a package has by name, as its code; else what a config describes.
        quantized: a base in 4 or 8 bits.
        mixed_adapters: adapters in another dtype than the base.
        compiled: code that was compiled.
        offload: tensors that are sent to the host and come back.
        in_backward: an update within backward.
        ranks: data-parallel engines whose step of several ranks is played, as ``sharding`` names them.
        dated: implementations that changed, of which the commit of a run's code must be told.
        generates: implementations whose prompts and steps of decoding are modelled, on one GPU.
    """

    implementations: tuple[str, ...]
    checkpointing: tuple[str, ...] = ("none", "full")
    methods: tuple[str, ...] = ("full", "lora")
    code_alone: bool = False
    quantized: bool = False
    mixed_adapters: bool = False
    compiled: bool = False
    offload: bool = False
    in_backward: bool = False
    ranks: tuple[str, ...] = ()
    dated: tuple[str, ...] = ()
    generates: tuple[str, ...] = ()


TRACE = Features(implementations=BUILT, code_alone=True)
"""The trace, which runs the code it is asked about."""
ANALYTIC = Features(
    implementations=("transformers", "litgpt", "timm", "torchtune", "torchvision", "torchtitan", "megatron"),
    checkpointing=("none", "full", PER_OPERATOR),
    quantized=True,
    in_backward=True,
    ranks=("fsdp2", "megatron"),
    dated=("litgpt", "torchtitan", "torchtune"),
    generates=("transformers", "litgpt"),
)
"""The analytic engine. Widened here as it learns; whoever widens it predicts again."""
STEP = {"trace": TRACE, "analytic": ANALYTIC}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a record is not in scope.

    Attributes:
        feature: what is not modelled, in one word.
        text: the sentence.
        stand_in: what may be put in its place, for a prediction shown apart; empty where nothing may.
    """

    feature: str
    text: str
    stand_in: str = ""


ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, StopIteration, TypeError, ValueError)
"""What a record comes to whose field is of another kind than those that were seen: it is told of, and stops no other."""
Rule = Callable[[Record, Features], Reason | None]


def why_not(record: Record, engine: str = "trace") -> tuple[Reason, ...]:
    """Every reason that keeps a record out of an engine's scope; none: it is in.

    Args:
        record: a published run.
        engine: who is asked for steps: ``trace`` or ``analytic``. Statics are the analytic engine's either way.
    """
    try:
        return tuple(_reasons(record, STEP[engine]))
    except ODD as error:
        return (Reason("record", f"a field of it is not what it is elsewhere ({type(error).__name__}: {error})"),)


def engine_of(record: Record, engine: str = "trace") -> str:
    """Who answers."""
    return "analytic" if record.kind in STATIC else engine


def _reasons(record: Record, modelled: Features) -> Iterator[Reason]:
    if record.grade == "C":
        yield Reason("grade", "grade C: the run is not told unambiguously")
    if record.measured is None:
        yield Reason("unit", "the unit is not known")
    if record.kind in ("component", "cuda_context") or (record.kind == "inference" and not modelled.generates):
        yield Reason("kind", f"a {record.kind} is no training step")
        return
    if record.metric is None:
        yield Reason("metric", "what was counted is not stated")
    for rule in RUN if record.kind == "inference" else RULES:
        reason = rule(record, modelled)
        if reason is not None:
            yield reason


def _quantized(record: Record, modelled: Features) -> Reason | None:
    known = not record.quantized or (modelled.quantized and quantization(record) is not None)
    return None if known else Reason("quantized base", "a quantised base is not modelled")


def _method(record: Record, modelled: Features) -> Reason | None:
    known = record.method in modelled.methods or (record.kind == "model_init" and record.method == "none")
    return None if known or record.quantized else Reason("method", f"{record.method} is not modelled")


def _compiled(record: Record, modelled: Features) -> Reason | None:
    known = modelled.compiled or not record.text("compile")
    return None if known else Reason("compile", "compiled code keeps other tensors")


def _offload(record: Record, modelled: Features) -> Reason | None:
    words = " ".join(record.text(key) for key in ("optimizer", "sharding", "activation_checkpointing"))
    known = modelled.offload or "offload" not in words.lower()
    return None if known else Reason("offload", "offloading is not modelled")


def _in_backward(record: Record, modelled: Features) -> Reason | None:
    known = modelled.in_backward or not record.in_backward
    return None if known else Reason("optimizer in backward", "an update within backward is not modelled")


def _optimizer(record: Record, _: Features) -> Reason | None:
    if record.optimizer is not None or record.kind == "model_init":
        return None
    return Reason("optimizer", f"no optimizer of the registry is meant by {record.text('optimizer')!r}")


def _precision(record: Record, _: Features) -> Reason | None:
    return None if record.precision else Reason("precision", f"no scheme is meant by {record.text('precision')!r}")


def _adapters(record: Record, modelled: Features) -> Reason | None:
    if record.method in ("lora", "qlora") and (targets(record) is None or rank(record) is None):
        return Reason("adapters", "what is adapted, and by which rank, is not told")
    if record.kind == "train_step" and record.precision == "bf16-pure, adapters fp32" and not modelled.mixed_adapters:
        return Reason("precision", "adapters in another dtype than the base are not modelled")
    return None


def _ranks(record: Record, modelled: Features) -> Reason | None:
    if record.raw["world_size"] == 1:
        return None
    keys = sharding(record)
    if record.kind == "train_step" and (keys is None or keys["zero_backend"] not in modelled.ranks):
        return Reason(
            "ranks", "the step of several ranks is not modelled" + (f" ({record.text('sharding')})" if modelled.ranks else "")
        )
    return None if keys is not None else Reason("ranks", f"{record.text('sharding')} is not modelled")


def _checkpointing(record: Record, modelled: Features) -> Reason | None:
    if record.kind in STATIC or policy(record) in modelled.checkpointing:
        return None
    return Reason("checkpointing", f"another policy of recomputation than {' and '.join(modelled.checkpointing)}")


def _sizes(record: Record, _: Features) -> Reason | None:
    sizes = (record.raw["micro_batch_size"], record.raw["seq_len"], record.accumulation)
    told = all(isinstance(size, int) and size > 0 for size in sizes)
    return None if told or record.kind in STATIC else Reason("sizes", "the batch's shape is not stated")


def _lengths(record: Record, _: Features) -> Reason | None:
    if weights_alone(record):
        return None
    rows = record.raw["micro_batch_size"]
    told = isinstance(rows, int) and rows > 0 and lengths(record) is not None
    return None if told else Reason("sizes", "the prompt's and the answer's lengths are not stated")


def _one_gpu(record: Record, _: Features) -> Reason | None:
    one = record.raw["world_size"] == 1
    return None if one else Reason("ranks", f"a model over several GPUs is not modelled ({record.text('sharding')})")


def _generates(record: Record, modelled: Features) -> Reason | None:
    if record.implementation in (SAME_TENSORS if weights_alone(record) else modelled.generates):
        return None
    named = record.implementation or "unknown"
    return Reason("implementation", f"implementation {named} is not modelled where nothing trains")


def _packed(record: Record, _: Features) -> Reason | None:
    known = not record.quantized or (record.implementation == "litgpt" and quantization(record) is not None)
    return None if known else Reason("quantized base", "a quantised model is not modelled, but for litgpt's in 4 bits")


def _device(record: Record, _: Features) -> Reason | None:
    if record.gpu is not None or record.kind in STATIC or weights_alone(record):
        return None
    return Reason("device", f"{record.text('gpu')}: kernels are known for NVIDIA's GPUs", "an NVIDIA GPU")


def _implementation(record: Record, modelled: Features) -> Reason | None:
    known = SAME_TENSORS if record.kind in STATIC else modelled.implementations
    if record.implementation in known:
        return None
    named = record.implementation or "unknown"
    stand_in = "transformers" if named in ("torchtune",) else ""
    return Reason("implementation", f"implementation {named} is not modelled yet", stand_in)


def _dated(record: Record, modelled: Features) -> Reason | None:
    asked = modelled.generates if record.kind == "inference" else modelled.dated
    if record.kind in STATIC or weights_alone(record) or record.implementation not in set(asked) & set(modelled.dated):
        return None
    date = code_date(record)
    if record.implementation == "torchtitan":
        known = date is not None and version_of(date) is not None and date <= LAST
        return None if known else Reason("commit", "the run's code is of a commit that is not told, or not known")
    if record.implementation == "torchtune":
        known = date is not None and builder(record) is not None
        return None if known else Reason("commit", "torchtune's commit, or what builds the model, is not told or not known")
    return None if date is not None else Reason("commit", "the commit of the run's code is not told, and that code changed")


def _model(record: Record, modelled: Features) -> Reason | None:
    from benchmarks.published.models import config_of

    config = config_of(record, coded=modelled.code_alone)
    if config is None:
        return Reason("model", "the record does not have the whole shape of a family memcalc knows")
    if isinstance(config, str) and config.startswith("py:") and record.kind == "train_step" and not modelled.code_alone:
        return Reason("model", f"{config} is known by its code, and has no config")
    families = FAMILIES.get(str(record.implementation))
    if isinstance(config, dict) and families is not None and config["model_type"] not in families:
        return Reason("model", f"{record.implementation}'s {config['model_type']} is not modelled")
    return None


FAMILIES = {
    "litgpt": tuple(SHAPES), "torchtitan": ("llama", "qwen3"), "torchtune": ("llama", "qwen2"), "megatron": ("gpt2", "llama"),
    "timm": ("vit",),
}  # fmt: skip
"""Whose models each implementation has (memcalc.implementations)."""
RULES: tuple[Rule, ...] = (
    _quantized, _method, _compiled, _offload, _in_backward, _optimizer, _precision, _adapters, _ranks, _checkpointing, _sizes,
    _device, _implementation, _dated, _model,
)  # fmt: skip
RUN: tuple[Rule, ...] = (_packed, _compiled, _offload, _precision, _one_gpu, _lengths, _device, _generates, _dated, _model)
"""The rules of a model that is run and not trained."""
