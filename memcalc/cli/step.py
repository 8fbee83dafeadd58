"""The options of a real step, which ``measure`` and ``verify`` share, and the settings they spell."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from memcalc.cli import options as o

STEP = "The step"


class DeviceChoice(StrEnum):
    """What the step runs on."""

    cpu = "cpu"
    cuda = "cuda"


def _of(*names: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=STEP, metavar=metavar, show_default=False)


Device = Annotated[DeviceChoice, _of("--device", text="cpu (the default) or cuda.", metavar="DEVICE")]
Iterations = Annotated[int | None, _of("--iterations", text="Optimizer steps (default 3).", metavar="N")]
Inputs = Annotated[list[str] | None, _of("--input", text="An input: x=float32[8,3,224,224].", metavar="NAME=DTYPE[SHAPE]")]
Loss = Annotated[str | None, _of("--loss", text="mean, sum, mse, cross_entropy, py:….", metavar="NAME")]
Schedule = Annotated[str | None, _of("--schedule", text="none, warmup, cosine.", metavar="NAME")]
Lora = Annotated[list[str] | None, _of("--lora", text="An option of peft's LoRA: r=8.", metavar="KEY=VALUE")]
Seed = Annotated[int | None, _of("--seed", text="Of weights and inputs.", metavar="N")]
KeepGradients = Annotated[bool, _of("--keep-gradients", text="Zero gradients instead of dropping them.")]
History = Annotated[bool, _of("--history", text="Record the CUDA allocator's events.")]
Alone = Annotated[bool, _of("--alone", text="Nothing else runs on the device.")]
Timeout = Annotated[float | None, _of("--timeout", text="Seconds until it is ended (default 3600).", metavar="S")]


def settings_of(lora: list[str] | None, **told: Any) -> dict[str, Any]:
    """The flags that were given, as the settings of a measurement.

    Raises:
        InputError: an option of LoRA that is not KEY=VALUE.
    """
    told["lora"] = o.lora_options(lora)
    return {key: value for key, value in told.items() if value is not None}
