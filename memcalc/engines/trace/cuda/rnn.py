"""LSTM, GRU and plain recurrent layers as one cuDNN operator (RNN.cpp: lstm_cudnn_stub; cudnn/RNN.cpp:_cudnn_impl)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memcalc.engines.trace.cuda.overrides import operator
from memcalc.engines.trace.cuda.results import INSTEAD
from memcalc.engines.trace.cuda.scratch import Arguments, Scratch, contiguous_copy, nbytes, scratch
from memcalc.kernels.behaviour import Behaviour

MODES = {"rnn_relu.input": 0, "rnn_tanh.input": 1, "lstm.input": 2, "gru.input": 3}  # cudnn.h:cudnnRNNMode_t
GATES = {0: 1, 1: 1, 2: 4, 3: 3}
"""Gates by mode: the weights of a layer are that many times the hidden size high."""
ACCEPTABLE = (torch.float64, torch.float32, torch.float16)  # cudnn/… ATen/native/Cudnn.cpp:cudnn_is_acceptable


def recurrent(name: str) -> Callable[..., Any]:
    """The kernel of ``lstm.input`` and its like, with the operator's own signature."""
    composite, mode = operator(name), MODES[name]

    def run(
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        flags = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
        if input.dtype not in ACCEPTABLE or not torch.backends.cudnn.enabled or not input.numel():
            return composite.decompose(input, hx, params, *flags)
        hidden, cell = hx if mode == 2 else (hx, None)
        hidden_size = hidden.shape[2] if cell is None else cell.shape[2]
        projection = hidden.shape[2] if hidden.shape[2] != hidden_size else 0
        stride = (4 if has_biases else 2) + (1 if projection else 0)
        # try_get_weight_buf: nn.RNNBase.flatten_parameters has made the parameters views of one buffer, so none is made here
        buffer = params[0].new_empty(0)
        out = torch.ops.aten._cudnn_rnn(
            *(input, list(params), stride, buffer, hidden, cell, mode, hidden_size, projection, num_layers, batch_first),
            *(dropout if train else 0.0, train, bidirectional, [], None),
        )
        return out[:3] if mode == 2 else out[:2]

    return run


KERNELS: dict[str, Callable[..., Any]] = {name: recurrent(name) for name in MODES}


def reserve_size(args: Arguments) -> int:
    """Bytes of the reserve that training keeps for the backward: an estimate, for only cudnnGetRNNTempSpaceSizes knows.

    Each layer, direction and step keeps its gates, its cell and its output, and the layer its input after dropout.
    """
    source, mode = args["input"], args["mode"]
    steps = source.shape[0] * source.shape[1]
    directions = 2 if args["bidirectional"] else 1
    kept = GATES[mode] + (2 if mode == 2 else 1)
    dropped = args["hidden_size"] * directions if args["dropout"] > 0 else 0
    a_layer = directions * args["hidden_size"] * kept + dropped
    return int(args["num_layers"] * steps * a_layer * source.element_size()) if args["train"] else 0


def _forward(args: Arguments, _: Behaviour) -> Any:
    source, hidden, cell = args["input"], args["hx"], args["cx"]
    width = (args["proj_size"] or args["hidden_size"]) * (2 if args["bidirectional"] else 1)
    return (
        source.new_empty(*source.shape[:2], width),
        hidden.new_empty(hidden.shape),
        hidden.new_empty(0) if cell is None else cell.new_empty(cell.shape),
        source.new_empty(reserve_size(args), dtype=torch.uint8),
        args["weight_buf"],
    )


def _backward(args: Arguments, _: Behaviour) -> Any:
    # cudnn/RNN.cpp:_cudnn_rnn_backward_weight: the flat gradient is copied into a tensor for each weight
    wanted = args["output_mask"]
    grads = [
        args[name].new_empty(args[name].shape) if keep and args[name] is not None else None
        for name, keep in (("input", wanted[0]), ("hx", wanted[1]), ("cx", wanted[2]))
    ]
    return (*grads, [w.new_empty(w.shape) for w in args["weight"]] if wanted[3] else [])


INSTEAD["_cudnn_rnn"] = _forward
INSTEAD["_cudnn_rnn_backward"] = _backward


@scratch("_cudnn_rnn", source="native/cudnn/RNN.cpp:_cudnn_rnn: input.contiguous() by steps, and cuDNN's workspace")
def _forward_scratch(args: Arguments, _: Any, __: Behaviour) -> list[Scratch]:
    source = args["input"].transpose(0, 1) if args["batch_first"] else args["input"]
    gates = GATES[args["mode"]] * args["hidden_size"] * (2 if args["bidirectional"] else 1)
    workspace = source.shape[0] * source.shape[1] * gates * source.element_size()
    return [*contiguous_copy("input", source), Scratch("cuDNN workspace", workspace, bound=True)]


@scratch("_cudnn_rnn_backward", source="native/cudnn/RNN.cpp:_cudnn_rnn_backward_input, _weight: dw as one flat buffer")
def _backward_scratch(args: Arguments, out: Any, behaviour: Behaviour) -> list[Scratch]:
    weights = sum(nbytes(w) for w in args["weight"])
    return [*_forward_scratch(args, out, behaviour), Scratch("dw", weights)]
