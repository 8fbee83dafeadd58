"""How BERT and its descendants run in transformers: embeddings, masks, layers, pooler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.families._forward import Batch, Context, eager_mask, run_layers
from memcalc.layers.base import Module
from memcalc.layers.encoder import SummedEmbeddings
from memcalc.layers.post_norm import bert_layer
from memcalc.play.indexing import gather
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, compare, mul, shifted, to
from memcalc.play.reshape import expand, select
from memcalc.play.values import Value

Embed = Callable[[Machine, SummedEmbeddings, Value], Value]


def bert_embeddings(machine: Machine, layer: SummedEmbeddings, ids: Value) -> Value:
    """Words, token types, positions; the last two of buffers, one row for all samples.

    source: transformers 5.23.0 models/bert/modeling_bert.py:BertEmbeddings.forward
    """
    position_ids = machine.constant((1, ids.shape[1]), "int64")
    return _three_tables(machine, layer, ids, position_ids)


def roberta_embeddings(machine: Machine, layer: SummedEmbeddings, ids: Value) -> Value:
    """The same, with positions counted from the padding index for each sample.

    source: transformers 5.23.0 models/roberta/modeling_roberta.py:RobertaEmbeddings.forward
    """
    return _three_tables(machine, layer, ids, _counted_positions(machine, ids))


def _counted_positions(machine: Machine, ids: Value) -> Value:
    """source: modeling_roberta.py:RobertaEmbeddings.create_position_ids_from_input_ids"""
    mask = to(machine, compare(machine, ids), "int32")
    counted = shifted(machine, to(machine, machine.new(mask.shape, "int64", "cumsum"), "int32"))
    incremental_indices = mul(machine, counted, mask)
    del counted
    return shifted(machine, to(machine, incremental_indices, "int64"))


def _three_tables(machine: Machine, layer: SummedEmbeddings, ids: Value, position_ids: Value) -> Value:
    """The sum of what three tables say; each row stays until the function returns."""
    zeros = machine.constant((position_ids.shape[0], layer.part("position_embeddings").rows), "int64")
    token_type_ids = expand(machine, gather(machine, zeros, position_ids), ids.shape)
    words = _rows(machine, layer, "word_embeddings", ids)
    types = _rows(machine, layer, "token_type_embeddings", token_type_ids)
    embeddings = add(machine, words, types)
    positions = _rows(machine, layer, "position_embeddings", position_ids)
    embeddings = add(machine, embeddings, positions)
    embeddings = machine.call("LayerNorm", layer.part("LayerNorm").play, machine, embeddings)
    return layer.dropped(machine, embeddings)


def _rows(machine: Machine, layer: SummedEmbeddings, table: str, ids: Value) -> Value:
    return machine.call(table, layer.part(table).play, machine, ids)  # type: ignore[no-any-return]


def encoder(
    machine: Machine, root: Module, ids: Value, *, embed: Embed = bert_embeddings, decoder: bool = False, layers: Any = None
) -> tuple[Value, Value | None]:
    """(hidden states of every token, the pooled first one where there is a pooler).

    ``layers`` runs the layers on the embedded tokens where they are no plain list.

    source: transformers 5.23.0 models/bert/modeling_bert.py:BertModel.forward
    """
    embedding_output = machine.call("embeddings", embed, machine, root.part("embeddings"), ids)
    if root.has("embeddings_project"):
        embedding_output = projected(machine, root, embedding_output)
    context = context_of(machine, ids, embedding_output, decoder=decoder)
    hidden = (layers or bert_layers)(machine, root, embedding_output, context)
    return hidden, pooled(machine, root, hidden) if root.has("pooler.dense") else None


def projected(machine: Machine, root: Module, hidden: Value) -> Value:
    """Embeddings widened, where they are narrower than the layers (ElectraModel.forward)."""
    maybe = root.part("embeddings_project")
    if not machine.decide(maybe.condition):
        return hidden
    return machine.call("embeddings_project", maybe.layer.play, machine, hidden)  # type: ignore[no-any-return]


def context_of(machine: Machine, ids: Value, embedded: Value, *, decoder: bool) -> Context:
    """The mask that layers are given: none where every token sees every other, nor for a kernel that knows causality.

    source: transformers 5.23.0 masking_utils.py: create_bidirectional_mask, create_causal_mask
    """
    eager = machine.policy.attention == "eager"
    rows, tokens = ids.shape
    mask = eager_mask(machine, Batch(rows, tokens, {}), embedded.dtype) if eager and decoder else None
    return Context(mask=mask, eager=eager)


def bert_layers(machine: Machine, root: Module, hidden: Value, context: Context) -> Value:
    """A list of BERT's layers."""
    return run_layers(machine, "encoder.layer", root.part("encoder.layer"), bert_layer, hidden, context)


def pooled(machine: Machine, root: Module, hidden: Value) -> Value:
    """The first token through a matrix and its activation (BertPooler.forward)."""
    first_token = select(machine, hidden, 1)
    pooled_output = machine.call("pooler.dense", root.part("pooler.dense").play, machine, first_token)
    return root.part("pooler.activation").play(machine, pooled_output)  # type: ignore[no-any-return]
