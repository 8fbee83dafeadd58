"""Litgpt's GPT under its own scripts: fused attention, no tied head, logits and loss in chunks, adapters of its own.

source: Lightning-AI/litgpt model.py, lora.py, config.py, utils.py, finetune/*.py, pretrain.py, at the commits of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError, did_you_mean, either
from memcalc.families._forward import Batch
from memcalc.implementations import _litgpt_generate as generating
from memcalc.implementations._litgpt_cache import LitCache
from memcalc.implementations._litgpt_layers import LitAttention, LitBlock, LitMLP, LitNorm, Tables
from memcalc.implementations._litgpt_lora import TARGETS, Lora, LoraFused, LoraLinear
from memcalc.implementations._litgpt_scripts import SCRIPTS, head
from memcalc.implementations._litgpt_shapes import SHAPES, VERSIONS, Shape, Version
from memcalc.implementations.base import Asked, Generation, Implementation, dated
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Embedding, Linear
from memcalc.layers.packed import PackedLinear
from memcalc.models import Model
from memcalc.play.checkpoint import checkpointed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import scaled, tanh
from memcalc.play.values import Value
from memcalc.records import replace
from memcalc.tape.events import Buffer
from memcalc.tensors import ITEMSIZE

REGROUPED = "2024-12-31"
"""From when its cache keeps keys and values as they come, and not repeated (17a58dfa)."""


def build(model: Model, asked: Asked) -> Model:
    """The model with litgpt's tensors, its head never tied; adapted where the job asks for it.

    Raises:
        NotModelledError: a family whose config is not translated.
        InputError: arguments that litgpt's record does not know.
    """
    if model.family not in SHAPES or not str(model.architecture).endswith("ForCausalLM"):
        raise NotModelledError("implementation", "litgpt", f"is not modelled for {model.architecture or model.family}",
                               f"use one of {either(list(SHAPES))}")  # fmt: skip
    if asked.lora is not None and not asked.trains:
        raise NotModelledError("training.lora", dict(asked.lora), "is merged into the weights before litgpt generates "
                               "(generate/lora.py)", "leave it out")  # fmt: skip
    if not asked.trains and str(asked.arguments.get("version", "")) >= REGROUPED:
        raise NotModelledError("implementation_args.version", asked.arguments["version"], "is of code whose cache is another, "
                               "which is not modelled", f"give a date before {REGROUPED}")  # fmt: skip
    if asked.quantization is not None and asked.lora is None and asked.trains:
        raise InputError("training.quantization", asked.quantization, "is of a frozen base, and nothing else trains",
                         "add adapters, as lora: {r: 8}")  # fmt: skip
    version, script = _version(asked.arguments), _script(asked)
    shape = replace(SHAPES[model.family](model.config), version=version, lora=_lora(asked, version), script=script,
                    quantization=asked.quantization)  # fmt: skip
    root = Module((("lm_head", _matrix(shape, "head", shape.width, shape.vocabulary, bias=shape.head_bias)),
                   ("transformer", _body(shape))))  # fmt: skip
    tensors = tuple(
        replace(one, trainable=shape.lora is None or ".lora_" in one.name or one.name.startswith("lora_"))
        for one in root.tensors()
    )
    return replace(model, tensors=tensors, tied={}, root=root, config=shape)


def _version(arguments: Mapping[str, Any]) -> Version:
    date = dated(arguments, max(VERSIONS))
    known = [each for each in VERSIONS if each <= date]
    if not known:
        raise InputError("implementation_args.version", date, "is before what is known of litgpt",
                         f"give a date from {min(VERSIONS)} on")  # fmt: skip
    return VERSIONS[max(known)]


def _script(asked: Asked) -> str:
    script = str(asked.arguments.get("script", "full"))
    if script not in ("full", "pretrain"):
        raise InputError("implementation_args.script", script, "is no script of litgpt's", "use full or pretrain")
    return script if asked.lora is None else "lora"


def _lora(asked: Asked, version: Version) -> Lora | None:
    """Litgpt's defaults: finetune/lora.py:setup (rank 8, dropout 0.05, query and value)."""
    if asked.lora is None:
        return None
    targets = asked.lora.get("target_modules") or ("query", "value")
    for name in targets:
        if name not in TARGETS:
            raise InputError("training.lora.target_modules", name, "is nothing that litgpt adapts", did_you_mean(name, TARGETS))
    return Lora(int(asked.lora.get("r", 8)), float(asked.lora.get("lora_dropout", 0.05)), frozenset(targets), version.in_place)


def _matrix(shape: Shape, part: str, into: Count, out: Count, *, bias: bool) -> Layer:
    base = _linear(shape, into, out, bias=bias)
    if shape.lora is None:
        return base
    return LoraLinear(base, shape.lora if part in shape.lora.targets else None)


def _linear(shape: Shape, into: Count, out: Count, *, bias: bool) -> Linear | PackedLinear:
    """An ``nn.Linear``; in 4 bits each is another, lm_head too, quantised from FP16.

    source: lightning 2.1.0 fabric/plugins/precision/bitsandbytes.py: BitsandbytesPrecision.init_context, _Linear4bit
    """
    base = Linear(into, out, bias)
    if shape.quantization is None:
        return base
    # requirements of all these commits: bitsandbytes 0.41.0 to 0.42.0
    return PackedLinear(base, "float16", nested=shape.quantization == "nf4-double", keeps=True)


def _norm(shape: Shape) -> LitNorm:
    return LitNorm(shape.width, "layer" if shape.norm == "layer" else shape.version.rms, shape.gemma)


def _body(shape: Shape) -> Module:
    layer = _block(shape, sliding=False)
    stack = Stack(layer, shape.layers)
    return Module((("wte", Embedding(shape.vocabulary, shape.width)), ("h", stack), ("ln_f", _norm(shape))))


def _block(shape: Shape, *, sliding: bool) -> LitBlock:
    parts: list[tuple[str, Layer]] = [("norm_1", _norm(shape)), ("attn", _attention(shape, sliding=sliding))]
    parts += [("post_attention_norm", _norm(shape))] if shape.capped else []
    parts += [] if shape.shared_norm else [("norm_2", _norm(shape))]
    parts += [("mlp", _mlp(shape)), *((("post_mlp_norm", _norm(shape)),) if shape.capped else ())]
    return LitBlock(tuple(parts), shape.parallel, shape.version.residual_first, shape.version.two_names)


def _attention(shape: Shape, *, sliding: bool) -> LitAttention:
    width, size = shape.width, shape.head_size
    fused = _linear(shape, width, (shape.heads + 2 * shape.groups) * size, bias=shape.bias)
    widths = (shape.heads * size, shape.groups * size, shape.groups * size)
    qkv = fused if shape.lora is None else LoraFused(fused, widths, shape.lora)
    return LitAttention(
        qkv, _matrix(shape, "projection", shape.heads * size, width, bias=shape.bias), shape.heads, shape.groups, size,
        shape.rotated, shares=shape.version.shares, softcap=shape.capped, sliding=sliding,
    )  # fmt: skip


def _mlp(shape: Shape) -> LitMLP:
    def matrix(into: Count, out: Count) -> Layer:
        return _matrix(shape, "mlp", into, out, bias=shape.bias)

    first = ("fc",) if shape.mlp == "neox" else ("fc_1", "fc_2")
    parts = [(name, matrix(shape.width, shape.inner)) for name in first]
    return LitMLP(shape.mlp, (*parts, ("proj", matrix(shape.inner, shape.width))))


def play(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """A script's forward and loss."""
    run = SCRIPTS[config.script]
    forward = partial(machine.call, "", _forward, machine, config, root, batch)
    return run(machine, forward, batch["labels"], counts=config.version.counts), None


def _forward(machine: Machine, shape: Shape, root: Module, batch: Batch) -> list[Value]:
    """source: model.py:GPT.forward, lora.py:GPT.forward"""
    body = root.part("transformer")
    tables = _tables(machine, shape, batch.tokens)
    with machine.at("transformer"):
        x = machine.call("wte", body.part("wte").play, machine, batch["input_ids"])
        if shape.gemma and (shape.lora is None or shape.version.lora_scales):
            x = scaled(machine, x)
        box = [x]
        del x  # the loop's own name for it is that of what a block gives
        x = _layers(machine, shape, body.part("h"), box, tables)
        x = machine.call("ln_f", body.part("ln_f").play, machine, x)
    logits = head(machine, root.part("lm_head").play, x, chunked=shape.lora is not None)
    if not shape.capped:
        return logits
    if shape.lora is not None:
        return logits  # lora.py caps what is not in chunks alone
    del x
    return [scaled(machine, tanh(machine, scaled(machine, logits[0], "div.Tensor")))]


def _tables(machine: Machine, shape: Shape, tokens: Count) -> Tables:
    """Views of the sequence's rows, or copies of them by position where a cache is asked."""
    dtype = _table(shape, machine.policy.dtype)
    if machine.cache is not None:
        return generating.tables_of(machine, dtype, tokens, shape.rotated)
    rows = (tokens, shape.rotated)
    return Tables(machine.constant(rows, dtype), machine.constant(rows, dtype))


def _table(shape: Shape, dtype: str) -> str:
    """Their dtype (model.py:build_rope_cache, under Fabric's default dtype)."""
    return "float16" if shape.version.low_tables and dtype != "float32" else "float32"


def _layers(machine: Machine, shape: Shape, stack: Stack, box: list[Value], tables: Tables) -> Value:
    """Blocks one after another, from what is in the box; of Gemma 2 in pairs, the first of which looks back on a window."""
    each = (_block(shape, sliding=True), stack.layer) if shape.capped else (stack.layer,)
    count = stack.count // len(each)

    def step(index: object) -> None:
        for place, layer in enumerate(each):
            number = index * len(each) + place if isinstance(index, int) else f"{index}{place if len(each) > 1 else ''}"
            box[0] = machine.call(f"h.{number}", checkpointed, machine, _block_play, machine, layer, box[0], tables)

    if not machine.same(count * len(each), stack.count):
        raise NotModelledError("model.num_hidden_layers", stack.count, "is odd where kinds of layers alternate", "use even")
    if machine.unrolled or machine.decide(count <= 3):
        place = 0
        while machine.decide(place < count):
            step(place)
            place += 1
        return box.pop()
    step(0)
    machine.repeated(count - 2, lambda: step("*"), box)
    step("last")
    return box.pop()


def _block_play(machine: Machine, layer: LitBlock, x: Value, tables: Tables) -> Value:
    return layer.play(machine, x, tables)


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """Rotary tables, as long as the batch's sequences (``max_seq_length``), and the index that padding goes by, once made."""
    shape: Shape = model.config
    size = batch.tokens * shape.rotated * ITEMSIZE[_table(shape, dtype)]
    yield Buffer("cos", size, "buffer"), 1
    yield Buffer("sin", size, "buffer"), 1
    if shape.lora is not None and shape.version.in_place:
        fused = _attention(shape, sliding=False).qkv
        yield Buffer("transformer.h.*.attn.attn._lora_ind", 8 * fused.padded(), "buffer"), shape.layers


def generate(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> Value:
    """One forward of generate/base.py, and what its next token is chosen from."""
    logits = machine.call("", _forward, machine, config, root, batch)
    machine.leave_autocast()  # Fabric's context is around the model alone
    return generating.last_logits(machine, logits.pop())


def generated_with(model: Model, batch: Batch, capacity: Count, dtype: str) -> Iterable[tuple[Buffer, Count]]:
    """Tables and a mask as long as the cache."""
    return generating.held(model.config.rotated, _table(model.config, dtype), batch, capacity)


GENERATION = Generation(generate, LitCache, generated_with, generating.SAID)

IMPLEMENTATION = Implementation(
    name="litgpt", source="Lightning-AI/litgpt, commits of 2023-09-27 to 2024-08-02", build=build, play=play, held=held,
    summary="its GPT, finetune and pretrain scripts, and adapters of its own", arguments=("version", "script"), adapts=True,
    enters=True, generates=GENERATION,
)  # fmt: skip
