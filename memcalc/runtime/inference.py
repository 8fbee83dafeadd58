"""A model without gradients: plain evaluation, prefill, and one step of decoding after another, as ``generate`` takes them.

source: transformers 5.23.0 generation/utils.py: _sample, _prefill, prepare_inputs_for_generation
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from memcalc.cache_options import GROUPED, cache_options
from memcalc.inference import Asked, asked_of
from memcalc.job import Job
from memcalc.records import dataclass
from memcalc.runtime.caching import make_cache, tensors_of
from memcalc.runtime.inputs import called


@dataclass
class Forwards:
    """What is run.

    Attributes:
        mode: ``evaluate``, ``prefill`` or ``decode``.
        told: the job's words, every default filled in.
        copy: autocast's dtype; None where it is off.
    """

    mode: str
    told: Asked
    copy: torch.dtype | None

    @classmethod
    def of(cls, job: Job, config: Any, copy: torch.dtype | None) -> Forwards:
        """What a job asks for, of a model whose config is given."""
        return cls(job.mode, asked_of(job, config), copy)

    @property
    def cycle(self) -> int:
        """Steps from one quantisation of a grouped cache to the next (cache_utils.py: QuantizedLayer); 0 of any other cache."""
        if self.told.kind not in GROUPED:
            return 0
        return cache_options(self.told.kind, self.told.arguments).cycle


class Running:
    """One model at work.

    Attributes:
        module: in eval mode, on its device.
        batch: what it is fed; of a prefill and of decoding without labels.
        cache: of keys and values; None in plain evaluation and before the first step.
    """

    def __init__(
        self, module: Any, batch: Mapping[str, torch.Tensor], asked: Forwards, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.module, self.asked = module.eval(), asked
        self.batch, self.extra = dict(batch), dict(extra or {})
        self.cache: Any = None
        self.encoded: Any = None

    def prepare(self) -> None:
        """What stands before the first of two steps: for decoding, a cache of one token less than the steady step finds."""
        if self.asked.mode == "evaluate":
            return
        both = getattr(self.module.config, "is_encoder_decoder", False)
        labels = self.batch.pop("labels", None)
        if both:
            given = self.batch.get("decoder_input_ids", labels)
            assert given is not None
            self.batch["decoder_input_ids"] = given
        if self.asked.mode == "decode":
            self._filled(both)

    def _filled(self, both: bool) -> None:
        name = "decoder_input_ids" if both else "input_ids"
        # the prompt is in the cache, and one token is decoded, so that growth has set in
        ids = self.batch[name]
        rows, device, context = ids.shape[0], ids.device, int(self.asked.told.context)
        self.cache = self._empty()
        with torch.no_grad(), self._autocast():
            if both:
                read = self.batch.pop(getattr(self.module, "main_input_name", "input_ids"))
                self.encoded = self.module.get_encoder()(read, return_dict=True)
                del read
            for count in self._parts(context):
                self.batch[name] = torch.zeros(rows, count, dtype=torch.int64, device=device)
                self._forward()
        self.batch[name] = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    def _parts(self, context: int) -> Iterator[int]:
        """Tokens of each forward that fills the cache: all before the first of two steps, the last of them alone."""
        if cycle := self.asked.cycle:  # the second of the two steps quantises anew, where the context is long enough
            prompt = min(context - 1, max(1, context - cycle + 1))
            yield from [prompt] if prompt else []
            yield from [1] * (context - 1 - prompt)
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
                output = self.module(*placed, **named, **self.extra)
            else:
                if self.asked.mode == "prefill":
                    self.cache = None
                    self.cache = self._empty()
                output = self._forward()
            del output

    def _empty(self) -> Any:
        told = self.asked.told
        return make_cache(told.kind, self.module.config, int(told.capacity), told.arguments)

    def cached(self) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) of what the cache holds."""
        return [] if self.cache is None else list(tensors_of(self.cache))

    def inputs(self) -> dict[str, torch.Tensor]:
        """What it is fed, with what an encoder gave before."""
        more = {} if self.encoded is None else {"encoder_outputs": self.encoded.last_hidden_state}
        return {**self.batch, **more}

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
