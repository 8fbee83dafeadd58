"""GPUs and other accelerators: how much memory each one says it has, and how surely that is known.

One YAML file a device, in ``configs/devices``. The capacity printed on the box is not the one the driver reports (an H100
sold with 80 GB reports 79.1 to 79.6 GiB, ECC and firmware taken off), so each number carries its source and its grade.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from memcalc.catalog import shipped
from memcalc.errors import InputError, did_you_mean
from memcalc.readers.complaints import complaint
from memcalc.readers.yaml import load_yaml

Bytes = Annotated[int, Field(strict=True, gt=0, lt=2**63)]
Text = Annotated[str, Field(strict=True, min_length=1)]


class Device(BaseModel):
    """An accelerator as a process sees it.

    The YAML file has these keys and no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    """What ``--gpu`` calls it, and the name of its file."""
    aliases: tuple[Text, ...] = ()
    """Other names, among them what ``torch.cuda.get_device_name`` returns."""
    vendor: Literal["nvidia", "amd", "intel", "huawei"]
    architecture: Text
    compute_capability: str | None = None
    """NVIDIA's, as ``9.0``; None for the other vendors."""
    marketed: Text
    """The capacity on the box, as text: ``80 GB``."""
    total_bytes: Bytes
    """What ``torch.cuda.get_device_properties(0).total_memory`` says, in bytes, if ``grade`` is ``reported``."""
    grade: Literal["reported", "inferred", "marketed"]
    """``reported``: read off this device. ``inferred``: off one of the same chip and memory, or a log that names no board.
    ``marketed``: the capacity on the box, which is a little more than any process gets."""
    usable_bytes: Bytes | None = None
    """What the largest process can hold, its own context and libraries included. None where it is all of ``total_bytes``
    but a few MiB, as on NVIDIA's cards: a log reads "total capacity of 79.19 GiB of which 14.75 MiB is free. Process … has
    79.17 GiB memory in use"."""
    sources: tuple[Text, ...]
    """Where each number was read."""
    note: str = ""
    """What else a reader should know, as a range over firmware versions."""

    @field_validator("compute_capability")
    @classmethod
    def _two_numbers(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(r"\d+\.\d", value) is None:
            raise ValueError("is not a compute capability; write it as '9.0', in quotes")
        return value


def load_device(name: str, path: str = "hardware.gpu") -> Device:
    """The device of that name or alias; spaces, underscores and capitals do not matter.

    Only the file of that name is read; for an alias, only the files that mention it.

    Raises:
        InputError: there is none; the nearest names are in the error.

    >>> load_device("h100-80gb").compute_capability
    '9.0'
    >>> load_device("NVIDIA A100-SXM4-80GB").name
    'a100-80gb'
    """
    known = shipped("devices")
    wanted = spelled(name)
    if wanted in known:
        return read_device(known[wanted])
    for file in known.values():
        if wanted in spelled(file.read_text(encoding="utf-8")):
            device = read_device(file)
            if wanted in map(spelled, device.aliases):
                return device
    raise InputError(path, name, "is not a GPU memcalc knows", _way_out(wanted))


def all_devices() -> list[Device]:
    """Every shipped device, by name."""
    return [read_device(file) for file in shipped("devices").values()]


def read_device(file: Path) -> Device:
    """The device in a YAML file.

    Raises:
        InputError: not YAML, or a key that is missing, unknown or of the wrong kind.
    """
    described = load_yaml(file)
    try:
        return Device.model_validate(described)
    except ValidationError as error:
        raise complaint(error, str(file), Device.model_fields) from None


def spelled(name: str) -> str:
    """A name as names are compared.

    >>> spelled("NVIDIA A100_SXM4 80GB")
    'nvidia-a100-sxm4-80gb'
    """
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def _way_out(wanted: str) -> str:
    devices = all_devices()
    names = {spelled(word): device.name for device in devices for word in (device.name, *device.aliases)}
    # 'a100' is nobody's name on purpose: two sizes are sold, and which one it is must be said
    sizes = [device.name for device in devices if device.name.startswith(f"{wanted}-")]
    if sizes:
        return f"say which one: {', '.join(sizes)}"
    near = did_you_mean(wanted, names)
    if near.startswith("did you mean"):
        return near
    return f"there are {len(devices)} (memcalc list gpus); any other can be given by its memory, as memory: 24GiB"
