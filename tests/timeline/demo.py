"""A step of a GPT-like transformer as a trace would record it: a demonstration, and a tape of any size.

    python -m tests.timeline.demo OUT.html [--layers 24] [--iterations 2] [--embedding 1024]

Sizes are those of mixed precision with Adam: fp16 parameters and gradients, fp32 masters and moments born in iteration 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np

from memcalc.arrays import rounded
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark

WIDTHS = {"float16": 2, "float32": 4, "int64": 8, "uint8": 1}


@dataclass
class Step:
    """Events as they come; what is saved for backward is held by module."""

    layers: int = 24
    width: int = 1024
    batch: int = 8
    length: int = 512
    vocabulary: int = 50257
    events: list[Event] = field(default_factory=list)
    saved: list[tuple[str, list[Buffer]]] = field(default_factory=list)

    def make(self, site, shape, role, dtype="float16", module="", operator=""):
        one = Buffer(site, prod(shape) * WIDTHS[dtype], role, module=module, operator=operator, dtype=dtype, shape=tuple(shape))
        self.events.append(Alloc(one))
        return one

    def free(self, *buffers):
        self.events.extend(Free(one) for one in buffers)

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        w = self.width
        yield "transformer.wte.weight", (self.vocabulary, w)
        yield "transformer.wpe.weight", (1024, w)
        for at in range(self.layers):
            block = f"transformer.h.{at}"
            yield f"{block}.ln_1.weight", (w,)
            yield f"{block}.attn.c_attn.weight", (w, 3 * w)
            yield f"{block}.attn.c_proj.weight", (w, w)
            yield f"{block}.ln_2.weight", (w,)
            yield f"{block}.mlp.c_fc.weight", (w, 4 * w)
            yield f"{block}.mlp.c_proj.weight", (4 * w, w)
        yield "transformer.ln_f.weight", (w,)

    def init(self):
        self.parameters = [
            self.make(name, shape, "parameter", module=name.rpartition(".")[0]) for name, shape in self.weights()
        ]
        self.masters = [
            self.make(f"master of {one.site}", one.shape, "master_parameter", "float32", module=one.module)
            for one in self.parameters
        ]

    def op(self, module, operator, shape, dtype="float16", keep=True, scratch=()):
        """One operator: its scratch comes and goes, its result stays where it is saved for backward."""
        held = [self.make("scratch", shape_, "temporary", "float32", module, operator) for shape_ in scratch]
        out = self.make(
            f"{operator.split('.')[1]} output", shape, "activation" if keep else "temporary", dtype, module, operator
        )
        self.free(*held)
        if keep:
            self.saved.append((module, [out]))
        return out

    def block(self, at):
        b, s, w = self.batch, self.length, self.width
        name = f"transformer.h.{at}"
        self.op(f"{name}.ln_1", "aten.native_layer_norm.default", (b, s, w))
        self.op(f"{name}.ln_1", "aten.native_layer_norm.default", (b, s, 2), "float32")
        self.op(f"{name}.attn.c_attn", "aten.addmm.default", (b * s, 3 * w))
        self.op(f"{name}.attn", "aten._scaled_dot_product_flash_attention.default", (b, 16, s, w // 16), scratch=[(b, 16, s)])
        self.op(f"{name}.attn", "aten._scaled_dot_product_flash_attention.default", (b, 16, s), "float32")
        out = self.op(f"{name}.attn.c_proj", "aten.addmm.default", (b * s, w), keep=False)
        self.op(f"{name}.resid_dropout", "aten.native_dropout.default", (b, s, w), "uint8")
        self.free(out)
        self.op(name, "aten.add.Tensor", (b, s, w))
        self.op(f"{name}.ln_2", "aten.native_layer_norm.default", (b, s, w))
        self.op(f"{name}.mlp.c_fc", "aten.addmm.default", (b * s, 4 * w))
        for _ in range(3):
            self.free(self.op(f"{name}.mlp.act", "aten.mul.Tensor", (b, s, 4 * w), keep=False))
        self.op(f"{name}.mlp.act", "aten.tanh.default", (b, s, 4 * w))
        self.op(f"{name}.mlp.act", "aten.mul.Tensor", (b, s, 4 * w))
        self.free(self.op(f"{name}.mlp.c_proj", "aten.addmm.default", (b * s, w), keep=False))
        self.op(name, "aten.add.Tensor", (b, s, w))

    def forward(self, number):
        self.events.append(Mark("forward", number))
        self.ids = self.make("input_ids", (self.batch, self.length), "input", "int64")
        self.op("transformer.wte", "aten.embedding.default", (self.batch, self.length, self.width))
        for at in range(self.layers):
            self.block(at)
        self.op("transformer.ln_f", "aten.native_layer_norm.default", (self.batch, self.length, self.width))
        self.op("lm_head", "aten.mm.default", (self.batch * self.length, self.vocabulary))

    def loss(self, number):
        self.events.append(Mark("loss", number))
        rows = (self.batch * self.length, self.vocabulary)
        self.op("", "aten._log_softmax.default", rows, "float32", scratch=[rows])
        self.free(self.op("", "aten.nll_loss_forward.default", (1,), "float32", keep=False))

    def backward(self, number):
        self.events.append(Mark("backward", number))
        self.gradients, waiting = [], {}
        for one in self.parameters:
            waiting.setdefault(one.module, []).append(one)
        flow = self.make(
            "grad", (self.batch * self.length, self.vocabulary), "temporary", "float32", "", "aten.nll_loss_backward"
        )
        while self.saved:
            module, held = self.saved.pop()
            operator = "aten.mm.default"
            onward = self.make("grad", held[0].shape, "temporary", "float16", module, operator)
            for one in waiting.pop(module, []):
                self.gradients.append(self.make(f"{one.site}.grad", one.shape, "gradient", module=module, operator=operator))
            self.free(flow, *held)
            flow = onward
        for rest in waiting.values():
            self.gradients += [self.make(f"{one.site}.grad", one.shape, "gradient", module=one.module) for one in rest]
        self.free(flow, self.ids)

    def optimizer(self, number, chunk=8):
        self.events.append(Mark("clip", number))
        norms = [self.make("norm", (1,), "temporary", "float32", "", "aten._foreach_norm.Scalar") for _ in self.gradients]
        self.free(*norms)
        self.events.append(Mark("optimizer_step", number))
        for first in range(0, len(self.masters), chunk):
            some = self.masters[first : first + chunk]
            if number == 1:
                for one in some:
                    for state in ("exp_avg", "exp_avg_sq"):
                        operator = "aten.zeros_like.default"
                        self.make(f"{state} of {one.site[10:]}", one.shape, "optimizer_state", "float32", one.module, operator)
            for operator in ("aten._foreach_sqrt.default", "aten._foreach_copy_.default"):
                self.free(*[self.make("denominator", one.shape, "temporary", "float32", one.module, operator) for one in some])
        self.events.append(Mark("zero_grad", number))
        self.free(*self.gradients)


def tape(iterations=2, **sizes) -> list[Event]:
    """The events of some iterations."""
    step = Step(**sizes)
    step.init()
    for number in range(1, iterations + 1):
        step.forward(number)
        step.loss(number)
        step.backward(number)
        step.optimizer(number)
    return step.events


def series(events) -> tuple[np.ndarray, np.ndarray]:
    """A stand-in for an allocator's replay: rounded bytes and an unsplit remainder now and then, in segments of 20 MiB."""
    total, allocated = 0, []
    for at, event in enumerate(one for one in events if not isinstance(one, Mark)):
        total += rounded(event.buffer.requested) * (1 if isinstance(event, Alloc) else -1)
        allocated.append(total + 512 * 1024 * (at // 40 % 7))
    segments = -(-np.maximum.accumulate(allocated) // (20 * 2**20)) * 20 * 2**20
    return np.array(allocated), segments


def main():
    from memcalc.api import estimate
    from memcalc.formats.timeline import write
    from memcalc.timeline.timeline import Timeline

    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="+")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--model", default="gpt2-medium")
    asked = parser.parse_args()
    events = tape(asked.iterations, layers=asked.layers)
    allocated, reserved = series(events)
    timeline = Timeline.of(events, allocated=allocated, reserved=reserved)
    for out in asked.out:
        write(timeline, out, estimate(asked.model, gpu="h100-80gb"))
        print(out, len(timeline), "instants")


if __name__ == "__main__":
    main()
