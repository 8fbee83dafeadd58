"""A model without gradients: plain evaluation, prefill, and one step of decoding after another, as ``generate`` takes them.

source: transformers 5.23.0 generation/utils.py: _sample, _prefill, prepare_inputs_for_generation
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from memcalc.records import dataclass
from memcalc.runtime.caching import make_cache, tensors_of
from memcalc.runtime.inputs import called


@dataclass
class Asked:
    """What is run.

    Attributes:
        mode: ``evaluate``, ``prefill`` or ``decode``.
        kind: of cache.
        context: tokens in the cache when the steady step begins.
        length: tokens that a static cache holds.
        arguments: options of a quantised cache.
        copy: autocast's dtype; None where it is off.
    """

    mode: str
    kind: str
    context: int
    length: int
    arguments: dict[str, Any]
    copy: torch.dtype | None

    @classmethod
    def of(cls, job: Any, copy: torch.dtype | None) -> Asked:
        """What a job asks for."""
        from memcalc.inference import asked_of

        told = asked_of(job, None)
        return cls(job.mode, told.kind, int(told.context), int(told.capacity), dict(told.arguments), copy)


class Inference:
    """One model at work.

    Attributes:
        module: in eval mode, on its device.
        batch: what it is fed; of a prefill and of decoding without labels.
        cache: of keys and values; None in plain evaluation and before the first step.
    """

    def __init__(self, module: Any, batch: Mapping[str, torch.Tensor], asked: Asked) -> None:
        self.module, self.asked = module.eval(), asked
        self.batch = dict(batch)
        self.cache: Any = None
        self.encoded: Any = None

    def prepare(self) -> None:
        """What stands before the first of two steps: for decoding, a cache of one token less than the steady step finds."""
        if self.asked.mode == "evaluate":
            return
        both = getattr(self.module.config, "is_encoder_decoder", False)
        labels = self.batch.pop("labels", None)
        if both:
            self.batch["decoder_input_ids"] = self.batch.pop("decoder_input_ids", labels)
        if self.asked.mode == "decode":
            self._filled(both)

    def _filled(self, both: bool) -> None:
        name = "decoder_input_ids" if both else "input_ids"
        # the prompt is in the cache, and one token is decoded, so that growth has set in
        ids = self.batch[name]
        rows, device, context = ids.shape[0], ids.device, self.asked.context
        self.cache = make_cache(self.asked.kind, self.module.config, self.asked.length, self.asked.arguments)
        with torch.no_grad(), self._autocast():
            if both:
                self.encoded = self.module.get_encoder()(self.batch.pop("input_ids"), return_dict=True)
            for count in self._parts(context):
                self.batch[name] = torch.zeros(rows, count, dtype=torch.int64, device=device)
                self._forward()
        self.batch[name] = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    def _parts(self, context: int) -> Iterator[int]:
        """Tokens of each forward that fills the cache: all before the first of two steps, the last of them alone."""
        if self.asked.kind in ("quantized-quanto", "quantized-hqq"):
            residual = self.asked.arguments.get("residual_length", 128)
            yield context - (residual - 1)
            for _ in range(residual - 2):
                yield 1
            return
        if context > 2:
            yield context - 2
        if context > 1:
            yield 1

    def step(self) -> None:
        """One forward; what it gives is dropped at its end."""
        with torch.no_grad(), self._autocast():
            if self.asked.mode == "evaluate":
                placed, named = called(self.batch)
                output = self.module(*placed, **named)
            else:
                if self.asked.mode == "prefill":
                    self.cache = None
                    self.cache = make_cache(self.asked.kind, self.module.config, self.asked.length, self.asked.arguments)
                output = self._forward()
            del output

    def cached(self) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) of what the cache holds."""
        return list(tensors_of(self.cache))

    def _forward(self) -> Any:
        more = {} if self.encoded is None else {"encoder_outputs": self.encoded}
        if self._keeps_last:
            more["logits_to_keep"] = 1
        return self.module(**self.batch, past_key_values=self.cache, use_cache=True, **more)

    @property
    def _keeps_last(self) -> bool:
        """Whether the model computes the logits of the positions that are asked for alone."""
        from inspect import signature

        return "logits_to_keep" in signature(self.module.forward).parameters

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        copy = self.asked.copy
        return contextlib.nullcontext() if copy is None else torch.autocast("cuda", copy)
