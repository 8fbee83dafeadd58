"""The page of errors: generated from the committed records, level with them, and silent on what nobody measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from memcalc.measurement_files import write_measurement

ROOT = Path(__file__).parents[2]


def generator():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "docs" / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(committed):
    """docs/accuracy.md is exactly what the committed records give today."""
    module = generator()
    module.judged = lambda folder: committed
    assert (ROOT / "docs" / "accuracy.md").read_text() == module.page(), "run python docs/accuracy.py"


def test_the_readme_s_table_is_what_the_records_say(committed):
    """The README's table of errors is the committed records' own, with an empty line for every machine nobody measured on."""
    module, text = generator(), (ROOT / "README.md").read_text()
    assert text == module.with_table(text, committed), "run python docs/accuracy.py"
    lines = {cells[1].strip(): cells[2:-1] for line in module.table([]).splitlines() if (cells := line.split("|"))}
    assert [cell.strip() for cell in lines["one GPU"]] == ["0", *"------"]


def test_no_number_is_shown_for_a_gpu_nobody_ran(tmp_path, altered, document):
    """Without a GPU's record its section says so; with one it has its own table, apart from the CPU's."""
    page = generator().page
    assert page(tmp_path).count("No record of a") == 2
    write_measurement(altered(), tmp_path / "cpu.json")
    cpu_alone = page(tmp_path)
    assert f"## On a GPU\n\n{generator().NO_GPU}\n" in cpu_alone
    assert "1 records: 1 agree" in cpu_alone
    environment = {**document["environment"], "device": {"name": "a GPU", "kind": "cuda"}}
    write_measurement(altered({"lm_head": 0}, environment=environment), tmp_path / "gpu.json")
    both = page(tmp_path)
    assert "Devices: a GPU." in both.split("## On a GPU")[1]
    assert "a GPU" not in both.split("## On a GPU")[0]
