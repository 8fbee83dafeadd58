"""NanoGPT's GPT under its train.py: GPT-2's layers as ``nn.Linear``, biases if asked, one loss over all logits.

source: karpathy/nanoGPT model.py: LayerNorm, CausalSelfAttention, MLP, Block, GPT.forward; train.py: the training loop
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families._forward import Batch
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Embedding, Linear, Norm, TiedLinear
from memcalc.models import Model
from memcalc.play.attention import attend
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout, gelu
from memcalc.play.reshape import contiguous, merge_dims, pieces, split_dim, transpose
from memcalc.play.values import Value
from memcalc.records import dataclass, replace
from memcalc.tape.events import Buffer
from memcalc.tensors import ITEMSIZE, Tensor


@dataclass
class Shape:
    """``GPTConfig``, read from a GPT-2 config of Hugging Face's."""

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    positions: Count
    bias: bool
    dropout: float


@dataclass
class NanoBlock:
    """One layer: attention and feed-forward, each behind a layer normalisation."""

    shape: Shape

    def parts(self) -> dict[str, Any]:
        """By name, in the order they are registered."""
        shape, width = self.shape, self.shape.width
        return {
            "ln_1": _norm(shape), "attn.c_attn": Linear(width, 3 * width, shape.bias),
            "attn.c_proj": Linear(width, width, shape.bias), "ln_2": _norm(shape),
            "mlp.c_fc": Linear(width, 4 * width, shape.bias), "mlp.c_proj": Linear(4 * width, width, shape.bias),
        }  # fmt: skip

    def tensors(self) -> Iterator[Tensor]:
        """Of each part."""
        return Module(tuple(self.parts().items())).tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """source: model.py:Block.forward"""
        parts = self.parts()

        def run(name: str, value: Value) -> Value:
            return machine.call(name, parts[name].play, machine, value)  # type: ignore[no-any-return]

        x = add(machine, x, self._attended(machine, run("ln_1", x), run))
        return add(machine, x, self._fed(machine, run("ln_2", x), run))

    def _attended(self, machine: Machine, x: Value, run: Any) -> Value:
        shape = self.shape
        q, k, v = pieces(machine, run("attn.c_attn", x), 2, [shape.width] * 3)
        k = self._by_head(machine, k)
        q = self._by_head(machine, q)
        v = self._by_head(machine, v)
        y = attend(machine, q, k, v, probability=shape.dropout, causal=True)
        y = merge_dims(machine, contiguous(machine, transpose(machine, y, 1, 2)), 2, 3)
        return dropout(machine, run("attn.c_proj", y), shape.dropout)

    def _by_head(self, machine: Machine, value: Value) -> Value:
        shape = self.shape
        return transpose(machine, split_dim(machine, value, 2, (shape.heads, shape.width // shape.heads)), 1, 2)

    def _fed(self, machine: Machine, x: Value, run: Any) -> Value:
        x = run("mlp.c_fc", x)
        x = gelu(machine, x)
        x = run("mlp.c_proj", x)
        return dropout(machine, x, self.shape.dropout)


def _norm(shape: Shape) -> Norm:
    return Norm(shape.width, bias=shape.bias, function="layer")


def build(model: Model, asked: Asked) -> Model:
    """The model with nanoGPT's tensors; ``bias`` and ``dropout`` as its own config has them (False and 0.0).

    Raises:
        NotModelledError: another family than GPT-2's, or adapters, which nanoGPT does not have.
    """
    if model.family != "gpt2" or model.architecture != "GPT2LMHeadModel":
        raise NotModelledError("implementation", "nanogpt", f"has no {model.architecture or model.family}", "use a gpt2 config")
    config, bias, share = model.config, asked.arguments.get("bias", False), asked.arguments.get("dropout", 0.0)
    if not isinstance(bias, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(
            "implementation_args", dict(asked.arguments), "is not nanoGPT's config", "use bias: true, dropout: 0.1"
        )
    shape = Shape(config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
                  config.max_position_embeddings, bias, float(share))  # fmt: skip
    parts: tuple[tuple[str, Layer], ...] = (
        ("wte", Embedding(shape.vocabulary, shape.width)), ("wpe", Embedding(shape.positions, shape.width)),
        ("h", Stack(NanoBlock(shape), shape.layers)), ("ln_f", _norm(shape)),
    )  # fmt: skip
    root = Module((("transformer", Module(parts)), ("lm_head", TiedLinear(shape.width, shape.vocabulary))))
    tied = {"lm_head.weight": "transformer.wte.weight"}
    return replace(model, tensors=tuple(root.tensors()), tied=tied, root=root, config=shape)


def play(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """source: model.py:GPT.forward"""
    body = root.part("transformer")
    with machine.at("transformer"):
        pos = machine.new((batch.tokens,), "int64", "arange")
        tok_emb = machine.call("wte", body.part("wte").play, machine, batch["input_ids"])
        pos_emb = machine.call("wpe", body.part("wpe").play, machine, pos)
        x = dropout(machine, add(machine, tok_emb, pos_emb), config.dropout)
        x = _layers(machine, body.part("h"), x)
        x = machine.call("ln_f", body.part("ln_f").play, machine, x)
    logits = machine.call("lm_head", root.part("lm_head").play, machine, x)
    rows = merge_dims(machine, logits, 0, 1)
    return cross_entropy(machine, rows, merge_dims(machine, batch["labels"], 0, 1)), None


def _layers(machine: Machine, stack: Stack, x: Value) -> Value:
    from memcalc.families._forward import Context, run_layers

    return run_layers(machine, "h", stack, _block, x, Context())


def _block(machine: Machine, layer: NanoBlock, x: Value, context: Any) -> Value:
    return layer.play(machine, x)


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """The logits of the step before, held until the next are there (train.py: logits, loss = model(X, Y))."""
    yield (
        Buffer("logits of the step before", batch.rows * batch.tokens * model.config.vocabulary * ITEMSIZE[low], "activation"),
        1,
    )


IMPLEMENTATION = Implementation(
    name="nanogpt", source="karpathy/nanoGPT model.py, train.py", build=build, play=play, held=held,
    summary="GPT-2 under its train.py", arguments=("bias", "dropout"),
)  # fmt: skip
