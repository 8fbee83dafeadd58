"""``memcalc sweep``: its forms, its exit codes, and what it says where."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys

import pytest

from memcalc.sweep import NAMES, run

TEXT = """
name: trial
base: {params: 1000000, memory: 1GiB}
grid:
  optimizer: [adam, admw]
  dp: [1, 2]
"""


@pytest.fixture
def sheet(tmp_path):
    """Write a sweep's file."""

    def write(text: str = TEXT):
        file = tmp_path / "sweep.yaml"
        file.write_text(text)
        return file

    return write


def test_a_table_shows_what_differs_and_says_below_what_was_wrong(memcalc, sheet):
    """The table has the axes that vary and the figures; an error is said once, with the numbers of its rows."""
    answer = memcalc("sweep", sheet())
    assert (answer.code, answer.err) == (0, "")
    assert "torch:Adam" in answer.out
    assert answer.out.splitlines()[:2] == ["trial", "params:1000000 · torch:Adam · fp16 · ZeRO 0"]
    assert "precision" not in answer.out
    assert "· 2-3: training.optimizer: admw is not a known optimizer; did you mean adamw" in answer.out


def test_csv_and_json_hold_every_row_and_nothing_else(memcalc, sheet):
    """Both are the library's rows: integers, nulls and errors, on stdout alone."""
    file = sheet()
    rows = list(run(file))
    answer = memcalc("sweep", file, "--format", "json")
    assert (answer.json, answer.err) == ({"schema_version": 1, "name": "trial", "rows": rows}, "")
    found = list(csv.DictReader(io.StringIO(memcalc("sweep", file, "--format", "csv", "--chunk", "1").out)))
    assert found == [{name: "" if row[name] is None else str(row[name]) for name in NAMES} for row in rows]


READS = """
base: {optimizer: sgd, scope: states}
list:
  - {model: t5-small, source_length: 40}
  - {model: t5-small, source_length: 50}
  - {model: resnet-50, image_size: 64}
"""


@pytest.mark.parametrize("form", ["csv", "json", "table", "markdown", "parquet"])
def test_sizes_of_sources_and_images_stand_in_every_form(memcalc, sheet, form, tmp_path):
    """Beside the tokens, wherever rows are: what was asked of a point can be read from its row alone."""
    if form == "parquet":
        table = pytest.importorskip("pyarrow.parquet")
        assert memcalc("sweep", sheet(READS), "--output", tmp_path / "rows.parquet").code == 0
        rows = table.read_table(tmp_path / "rows.parquet").to_pylist()
    else:
        answer = memcalc("sweep", sheet(READS), "--format", form)
        if form in ("table", "markdown"):
            words = answer.out.replace("|", " ").splitlines()
            at = next(place for place, line in enumerate(words) if "source" in line)
            assert words[at].split()[:3] == ["model", "source", "image"]
            assert [line.split()[2] for line in words[at + 2 : at + 5]] == ["40", "50", "64"]
            return
        rows = answer.json["rows"] if form == "json" else list(csv.DictReader(io.StringIO(answer.out)))
    found = [(row["source_length"] or None, row["image_size"] or None) for row in rows]
    assert [tuple(size and int(size) for size in one) for one in found] == [(40, None), (50, None), (None, 64)]


def test_markdown_is_a_table_and_a_list(memcalc, sheet):
    """A page shows the rows and, below them, the unit and the errors."""
    lines = memcalc("sweep", sheet(), "--format", "markdown").out.splitlines()
    assert (lines[0], lines[2][:6], lines[5][:4]) == ("### trial", "params", "| --")
    assert [line[:4] for line in lines[-2:]] == ["- si", "- 2-"]


def test_more_rows_than_a_table_takes_are_counted_not_hidden(memcalc, sheet):
    """A table ends after its thousandth row and says on stderr how to get them all."""
    answer = memcalc("sweep", sheet("grid: {params: {from: 1000000, to: 1001999}}\n"), "--format", "markdown")
    assert answer.out.count("\n| ") == 1002
    assert answer.err == "the first 1000 rows of 2,000 points; write them all with --output rows.csv\n"


def test_a_file_is_written_and_its_rows_counted_on_stderr(memcalc, sheet):
    """With --output nothing is on stdout, and stderr has one line; --quiet takes that too."""
    file = sheet()
    output = file.with_name("rows.csv")
    answer = memcalc("sweep", file, "--output", output)
    assert (answer.code, answer.out, answer.err) == (0, "", f"{output}: 4 rows, 2 of them errors\n")
    assert len(output.read_text().splitlines()) == 5
    assert memcalc("sweep", file, "--output", output, "--quiet").err == ""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("base: {model: nope}\n", 2),
        ("base: {params: 1000000, memory: 1GiB}\ngrid: {optimizer: [adam, admw]}\n", 0),
        ("base: {params: 1000000000, memory: 1GiB}\n", 0),
        ("base: {params: 1}\ngrid: {dp: [1]}\nexclude: [{dp: 1}]\n", 0),
        ("gird: {}\n", 2),
        ("{", 2),
    ],
)
def test_exit_codes(memcalc, sheet, text, code):
    """2 where no point could be judged or the file cannot be read; 0 else, whether or not anything fits."""
    for words in ((), ("--format", "csv"), ("--output", sheet(text).with_name("rows.jsonl"))):
        assert memcalc("sweep", sheet(text), *words).code == code


def test_a_file_that_is_not_there_is_one_line(memcalc, tmp_path):
    """The path and what is wrong with it."""
    answer = memcalc("sweep", tmp_path / "none.yaml")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "none.yaml" in answer.err


def test_code_in_a_sweep_runs_only_when_it_is_allowed(memcalc, sheet, tmp_path):
    """A py: model is an error's row without --allow-code, its module untouched, and a model with it."""
    pytest.importorskip("torch")
    touched = tmp_path / "ran"
    lines = (
        "import pathlib, torch",
        f"pathlib.Path({str(touched)!r}).touch()",
        "def make():",
        "    return torch.nn.Linear(3, 2)",
    )
    (tmp_path / "evil.py").write_text("\n".join(lines))
    file = sheet("grid: {model: ['py:evil:make', gpt2]}\n")
    rows = memcalc("sweep", file, "--format", "json", "--app-dir", tmp_path).json["rows"]
    assert [row["error"] and row["error"].partition("; ")[2] for row in rows] == ["trust it with --allow-code", None]
    assert not touched.exists()
    rows = memcalc("sweep", file, "--format", "json", "--app-dir", tmp_path, "--allow-code").json["rows"]
    assert (rows[0]["error"], rows[0]["num_parameters"]) == (None, 8)


def test_torch_is_never_imported(sheet):
    """A sweep over configs needs neither torch nor transformers, nor rich where no table is drawn."""
    code = (
        "import sys; from memcalc.__main__ import run; run(sys.argv[1:]); "
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'distributed') if name in sys.modules], file=sys.stderr)"
    )
    file = sheet("grid: {model: [gpt2, resnet-50], optimizer: [adam, adamw8bit]}\n")
    words = [sys.executable, "-c", code, "sweep", str(file), "--format", "csv", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (5, "[]\n")


def test_the_bar_is_for_a_terminal_alone(sheet):
    """Progress is drawn on stderr where that is a terminal, unless --quiet."""
    file = sheet("grid: {params: {from: 1, to: 600}}\n")
    said = {}
    for words in ((), ("--quiet",)):
        leader, follower = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "memcalc",
            "sweep",
            file,
            "--output",
            file.with_name("rows.csv"),
            "--chunk",
            "100",
            *words,
        ]
        process = subprocess.Popen(command, stderr=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
        os.close(follower)
        said[words] = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal whose last writer has gone with an error
            while piece := os.read(leader, 65536):
                said[words] += piece
        os.close(leader)
        assert process.wait() == 0
    assert b"600" in said[()]
    assert said[("--quiet",)] == b""


def test_json_of_no_rows_is_still_one_object(memcalc, sheet):
    """Where everything is excluded there is an empty list."""
    text = "base: {params: 1}\ngrid: {dp: [1]}\nexclude: [{dp: 1}]\n"
    assert json.loads(memcalc("sweep", sheet(text), "--format", "json").out)["rows"] == []
