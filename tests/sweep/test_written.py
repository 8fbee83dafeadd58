"""What is written about sweeps, and the sweeps that ship, are what memcalc does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from memcalc.catalog import shipped
from memcalc.sweep import COLUMNS, read_sweep, run
from memcalc.sweep.layout import lay_out
from memcalc.sweep.spec import SweepFile

PAGE = (Path(__file__).parent.parent.parent / "docs" / "sweep.md").read_text()


def test_the_page_lists_every_column_in_order():
    """Each column stands in the page's table with its type and what it holds."""
    said = re.findall(r"^\| `(\w+)` \| (whole number|text) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert said == [(one.name, "whole number" if one.type == "int" else "text", one.about) for one in COLUMNS]


def test_the_page_lists_every_key():
    """Each key of a sweep's file stands in the page's table."""
    keys = [field.alias or name for name, field in SweepFile.model_fields.items()]
    assert re.findall(r"^\| `(\w+)` \| (?!whole|text)", PAGE, flags=re.MULTILINE) == sorted(keys, key=keys.index)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.+?)```", PAGE, flags=re.DOTALL))
def test_the_sweeps_on_the_page_run(block):
    """Each sweep on the page gives rows, and no error among them."""
    rows = list(run(yaml.safe_load(block)))
    assert len(rows) >= 6
    assert [row["error"] for row in rows if row["error"]] == []


def test_the_python_on_the_page_runs(tmp_path, monkeypatch, capsys):
    """The example prints four lines and writes its file."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert (tmp_path / "rows.parquet").exists()


@pytest.mark.parametrize("name", shipped("sweeps"))
def test_shipped_sweeps_have_no_error_in_them(name):
    """Every point of a shipped sweep can be judged, and the sweep carries its file's name."""
    spec = read_sweep(yaml.safe_load(shipped("sweeps")[name].read_text()))
    assert spec.name == name
    assert sum(block.size for block in lay_out(spec)) >= 100
    sweep = run(name)
    assert sum(table.errors for table in sweep.tables()) == 0


def test_a_file_is_read_before_a_shipped_sweep_of_its_name(tmp_path, monkeypatch):
    """A path that exists is what was meant."""
    monkeypatch.chdir(tmp_path)
    assert run("optimizers").spec.name == "optimizers"
    Path("optimizers").write_text("name: mine\nbase: {model: gpt2}\n")
    assert run("optimizers").spec.name == "mine"
