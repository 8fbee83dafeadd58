"""The shipped devices: every file valid and sourced, found by any of its names."""

from __future__ import annotations

import re

import pytest

from memcalc import devices
from memcalc.catalog import shipped
from memcalc.devices import all_devices, load_device, read_device, spelled
from memcalc.errors import InputError
from memcalc.units import GIB

DEVICES = all_devices()
EACH = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)


def test_there_are_devices_of_every_vendor():
    """The list covers what people train on."""
    assert len(DEVICES) >= 40
    assert {device.vendor for device in DEVICES} == {"nvidia", "amd", "intel", "huawei"}


@EACH
def test_name_is_the_file_and_the_numbers_have_sources(device):
    """A file is found under the name it gives itself, and says where it was read."""
    assert shipped("devices")[device.name].stem == device.name
    assert device.sources
    assert (device.compute_capability is not None) == (device.vendor == "nvidia")


@EACH
def test_total_is_below_the_box_and_near_it(device):
    """What the driver reports is at most the marketed GiB of what one process sees, and at least 90 % of it."""
    sizes = [int(size) for size in re.findall(r"(\d+) GB", device.marketed)]
    box = min(sizes) * GIB
    assert 0.9 * box <= device.total_bytes <= box


@EACH
def test_usable_is_within_total(device):
    """No process can hold more than the device has."""
    assert device.usable_bytes is None or 0.9 * device.total_bytes < device.usable_bytes < device.total_bytes


@EACH
def test_total_is_a_number_its_sources_state(device):
    """The bytes follow from one of the sources beside them: in bytes, in MiB or in rounded GiB."""
    text = " ".join(device.sources)
    stated = {int(number) for number in re.findall(r"\d{9,}", text)}
    stated |= {int(number) * 2**20 for number in re.findall(r"(\d{4,6}) ?(?:MB|MiB)", text)}
    stated |= {int(float(number) * GIB) for number in re.findall(r"(\d+\.\d+) GiB", text)}
    assert device.total_bytes in stated


def test_no_name_or_alias_stands_for_two_devices():
    """Every spelling means one device."""
    words = [spelled(word) for device in DEVICES for word in {spelled(w) for w in (device.name, *device.aliases)}]
    assert len(words) == len(set(words))


@EACH
def test_found_by_every_name(device):
    """The name, each alias, and any case or separator lead to the same device."""
    for word in (device.name, *device.aliases):
        for written in (word, word.upper(), word.replace("-", "_"), word.replace("-", " ")):
            assert load_device(written) == device


def test_only_the_one_file_is_read(monkeypatch):
    """A device asked for by name costs one file, and by alias only the files that mention it."""
    read = []
    monkeypatch.setattr(devices, "load_yaml", lambda file: read.append(file.stem) or {**LEAST, "name": file.stem})
    load_device("h100-80gb")
    assert read == ["h100-80gb"]
    monkeypatch.undo()
    read.clear()
    real = devices.read_device
    monkeypatch.setattr(devices, "read_device", lambda file: read.append(file.stem) or real(file))
    load_device("NVIDIA A100-PCIE-40GB")
    assert read == ["a100-40gb"]


def test_a_family_of_cards_asks_which_one():
    """``a100`` is sold in two sizes: the error names both and guesses neither."""
    with pytest.raises(InputError, match=r"hardware.gpu: a100 is not a GPU memcalc knows; say which one: a100-40gb, a100-80gb"):
        load_device("a100")


def test_unknown_device_names_its_neighbours():
    """A slip of the pen is answered with a name; what is like nothing, with the way to give a memory size."""
    with pytest.raises(InputError, match=r"did you mean .*rtx-4090"):
        load_device("rtx-4091")
    with pytest.raises(InputError, match="memory: 24GiB"):
        load_device("abacus")


LEAST = {
    "name": "x", "vendor": "nvidia", "architecture": "a", "marketed": "1 GB", "total_bytes": 5, "grade": "marketed",
    "sources": ["s"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"total_bytes": 0}, r"total_bytes: 0 is below 1"),
        ({"total_bytes": 2**63}, r"total_bytes: 9223372036854775808 is above"),
        ({"total_bytes": "80GB"}, r"total_bytes: '80GB' is text, not a whole number"),
        ({"total_bytes": True}, r"total_bytes: true is not a whole number"),
        ({"total_bytes": float("nan")}, r"total_bytes: nan is not a whole number"),
        ({"vendor": "acme"}, r"vendor: acme is not one of the choices"),
        ({"memory": 5}, r"memory"),
        ({"compute_capability": "nine"}, r"compute_capability: nine is not a compute capability; write it as '9.0', in quotes"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, change, told):
    """A wrong type, a wrong range and an unknown key are each told with the file and the key."""
    import yaml

    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({**LEAST, **change}))
    with pytest.raises(InputError, match=told) as caught:
        read_device(file)
    assert str(file) in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    """A device without its total is refused by the name of the key."""
    file = tmp_path / "x.yaml"
    file.write_text("name: x\n")
    with pytest.raises(InputError, match="is missing"):
        read_device(file)
