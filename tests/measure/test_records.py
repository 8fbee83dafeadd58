"""Records on disk: whole or absent, and read back as they were written."""

from __future__ import annotations

import errno
import json
import os

import jsonschema
import pytest

from memcalc.errors import InputError
from memcalc.measurement import Measurement, component_sums, measurement_from, schema
from memcalc.measurement_files import read_measurement, records_in, write_measurement

RECORD = {
    "case": "example",
    "status": "measured",
    "created": "2026-01-01T00:00:00Z",
    "environment": {"device": {"name": "a CPU", "kind": "cpu"}, "python": "3.11", "platform": "Linux", "memcalc": "0.1.0"},
    "request": {"model": "gpt2"},
    "job": {"model": "gpt2"},
    "ranks": [
        {
            "tensors": [
                {"component": "parameters", "name": "w", "dtype": "float16", "shape": [3, 4], "nbytes": 24, "device": "cpu"},
                {"component": "parameters", "name": "b", "dtype": "float16", "shape": [4], "nbytes": 8, "device": "cpu"},
                {
                    "component": "gradients",
                    "name": "w.grad",
                    "dtype": "float16",
                    "shape": [3, 4],
                    "nbytes": 24,
                    "device": "cpu",
                },
            ]
        }
    ],
}


@pytest.mark.parametrize("name", ["one.json", "one.json.gz"])
def test_what_is_written_is_read_back(tmp_path, name):
    """A record survives the disk, packed or not, and its file obeys the published schema."""
    record = measurement_from(RECORD)
    write_measurement(record, tmp_path / name)
    again = read_measurement(tmp_path / name)
    assert again == record
    assert component_sums(again.ranks[0].tensors) == {"parameters": 32, "gradients": 24}
    assert records_in(tmp_path) == [tmp_path / name]
    jsonschema.validate(record.model_dump(mode="json"), schema())
    assert [file.name for file in tmp_path.iterdir()] == [name], "nothing is left beside it"


def test_equal_records_are_equal_files(tmp_path):
    """A packed file holds no time stamp, so that committing a repeated measurement shows only what changed."""
    record = measurement_from(RECORD)
    for name in ("one.json.gz", "two.json.gz"):
        write_measurement(record, tmp_path / name)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()


def test_a_full_disk_leaves_the_old_record(tmp_path, monkeypatch):
    """When the disk refuses, the record that was there stays whole, nothing half-written remains, and the error is one line."""
    file = tmp_path / "one.json"
    write_measurement(measurement_from(RECORD), file)
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        write_measurement(measurement_from({**RECORD, "case": "other"}), file)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version: 2 is not one of the choices; use 1"),
        ({"status": "fine"}, "status: fine is not one of the choices"),
        ({"case": None}, "case: None is not text"),
        ({"ranks": [{"tensors": [{**RECORD["ranks"][0]["tensors"][0], "nbytes": -1}]}]}, "nbytes: -1 is below 0"),
    ],
)
def test_a_bent_record_is_refused(change, says):
    """A value of another kind names its dotted path and the rule it breaks."""
    with pytest.raises(InputError) as caught:
        measurement_from({**RECORD, **change})
    assert says in str(caught.value)


def test_a_key_of_a_later_version_is_passed_over():
    """Additions are free: an unknown key does not keep an older memcalc from reading a record."""
    assert isinstance(measurement_from({**RECORD, "a_later_key": 1}), Measurement)


def test_a_file_cut_short_is_refused(tmp_path):
    """Half a file, packed or not, is an error and never half a record."""
    for name in ("one.json", "one.json.gz"):
        write_measurement(measurement_from(RECORD), tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match="is cut short"):
            read_measurement(tmp_path / name)


def test_one_tensor_is_one_line(tmp_path):
    """A record is laid out so that a change of one tensor is a change of one line."""
    write_measurement(measurement_from(RECORD), tmp_path / "one.json")
    lines = (tmp_path / "one.json").read_text().splitlines()
    rows = [json.loads(line.rstrip(",")) for line in lines if line.lstrip().startswith('{"component": ')]
    assert [row["name"] for row in rows] == ["w", "b", "w.grad"]
