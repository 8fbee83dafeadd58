"""``memcalc check --against``: growth judged to the byte, baselines written whole, hostile ones refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.__main__ import run
from memcalc.baseline import FIGURES, parse_limit, read_baseline
from memcalc.errors import InputError

ONE = "name: one\nmodel: gpt2\n"
GREW = ONE + "precision: fp32\n"  # +2.12 % of its reserved peak


@pytest.fixture
def job(tmp_path):
    """Write a job file."""

    def write(text: str, name: str = "job.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """What is written as the baseline of the job ONE."""
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "job.yaml").write_text(ONE)
    assert run(["check", str(folder / "job.yaml"), "--write-baseline", str(folder / "baseline.json")]) == 0
    return (folder / "baseline.json").read_bytes()


@pytest.fixture
def baseline(written, tmp_path):
    """A baseline of the job ONE."""
    path = tmp_path / "baseline.json"
    path.write_bytes(written)
    return path


@pytest.mark.parametrize(
    ("limit", "code", "word"),
    [("2.2%", 0, "within"), ("2.1%", 1, "grew"), ("1%", 1, "grew"), (None, 1, "grew"), ("0", 1, "grew"),
     ("512MiB", 0, "within"), ("60817408", 0, "within"), ("60817407", 1, "grew")],
)  # fmt: skip
def test_growth_is_judged_to_the_byte(memcalc, job, baseline, limit, code, word):
    """A share or bytes; one byte more than the limit fails; no limit allows none."""
    words = () if limit is None else ("--max-growth", limit)
    answer = memcalc("check", job(GREW), "--against", baseline, *words)
    assert (answer.code, f"one  {word}: peak.reserved 2.68 GiB" in answer.out) == (code, True)
    assert "job.training.precision fp16 → fp32" in answer.out


def test_a_job_that_did_not_change_passes_without_a_word(memcalc, job, baseline):
    """Nothing grew, nothing differs: a pass, not a warning, and hardware need not be named."""
    answer = memcalc("check", job(ONE), "--against", baseline, "--format", "github")
    assert (answer.code, answer.out.split()[0]) == (0, "::notice")


def test_growth_is_annotated_on_the_jobs_line_and_escaped(memcalc, job, baseline):
    """GitHub shows the failure on the job's model line; percent signs of the message do not break it."""
    answer = memcalc("check", job(f"\n\n{GREW}"), "--against", baseline, "--format", "github")
    assert answer.out.startswith("::error file=")
    assert ",line=4,title=memcalc%3A one::grew: " in answer.out
    assert "(+2.12 %25), more than 0 allows" in answer.out


@pytest.mark.parametrize("form", ["json", "csv", "markdown", "junit", "table"])
def test_every_form_says_what_grew(memcalc, job, baseline, form):
    """The verdict and both figures are in each form."""
    answer = memcalc("check", job(GREW), "--against", baseline, "--format", form)
    assert answer.code == 1
    assert "grew" in answer.out
    assert "2.68 GiB → 2.73 GiB" in answer.out
    if form == "json":
        row = answer.json["jobs"][0]
        assert (row["growth"], row["figure"], row["now"] - row["before"]) == ("grew", "peak.reserved", 60_817_408)
        assert row["differs"]


def test_a_job_fails_if_either_verdict_does(memcalc, job, baseline):
    """What fits and grew fails, and what did not grow and does not fit fails too."""
    assert memcalc("check", job(ONE + "scope: states\nmemory: 80GiB\n"), "--write-baseline", baseline).code == 0
    answer = memcalc("check", job(GREW + "scope: states\nmemory: 80GiB\n"), "--against", baseline)
    assert (answer.code, "grew: the states take at most" in answer.out) == (1, True)
    answer = memcalc("check", job(ONE + "scope: states\nmemory: 1GiB\n"), "--against", baseline)
    assert (answer.code, "does not fit: " in answer.out) == (1, True)


def test_new_and_gone_jobs_are_said_and_pass(memcalc, job, baseline):
    """A job without a baseline and a baseline without its job are warnings, neither failures nor silence."""
    answer = memcalc("check", job("name: two\nmodel: gpt2\n"), "--against", baseline)
    assert answer.code == 0
    assert [line.split()[:3] for line in answer.out.splitlines()] == [["WARN", "two", "new:"], ["WARN", "one", "gone:"]]
    annotated = memcalc("check", job("name: two\nmodel: gpt2\n"), "--against", baseline, "--format", "github").out
    assert [line.split()[0] for line in annotated.splitlines()] == ["::warning", "::warning"]


def test_an_estimate_is_a_baseline_of_its_one_job(memcalc, job, tmp_path):
    """``estimate --format json`` of one job stands for the one job that is checked, and for no more."""
    path = tmp_path / "one.json"
    path.write_text(memcalc("estimate", "gpt2", "--format", "json").out)
    assert memcalc("check", job(ONE), "--against", path).code == 0
    assert memcalc("check", job(GREW), "--against", path).code == 1
    answer = memcalc("check", job(ONE), job(ONE.replace("one", "two"), "b.yaml"), "--against", path)
    assert (answer.code, "is of one job without a name, and 2 are checked" in answer.err) == (2, True)


def test_checks_own_json_is_a_baseline(memcalc, job, tmp_path):
    """What ``check --format json`` printed is matched by name."""
    path = tmp_path / "check.json"
    path.write_text(memcalc("check", job(ONE + "memory: 80GiB\nscope: states\n"), "--format", "json").out)
    answer = memcalc("check", job(ONE + "memory: 80GiB\nscope: states\n"), "--against", path)
    assert (answer.code, "+0 B" in answer.out) == (0, True)


@pytest.mark.parametrize(("key", "value"), [("engine", "trace"), ("scope", "states")])
def test_figures_of_another_engine_or_scope_are_not_compared(memcalc, job, baseline, key, value):
    """Two figures of one name that are not of one thing cannot be judged."""
    document = json.loads(baseline.read_text())
    footprint = document["jobs"][0]["footprint"]
    (footprint if key == "engine" else footprint["job"])[key] = value
    baseline.write_text(json.dumps(document))
    answer = memcalc("check", job(ONE), "--against", baseline)
    assert (answer.code, f"made with {key} {value}" in answer.out) == (2, True)


def test_the_best_figure_both_have_is_compared(memcalc, job, baseline):
    """A baseline that knows no peak is compared by the states, though this estimate knows more."""
    document = json.loads(baseline.read_text())
    document["jobs"][0]["footprint"]["peak"] = dict.fromkeys(document["jobs"][0]["footprint"]["peak"])
    baseline.write_text(json.dumps(document))
    assert read_baseline(baseline)["one"].figures.keys() == {FIGURES[3]}
    assert "states.rounded 2.29 GiB → 2.29 GiB" in memcalc("check", job(ONE), "--against", baseline).out


def edit(document, path, value):
    """The document with one value replaced."""
    *parents, leaf = path.split(".")
    for part in parents:
        document = document[int(part) if part.isdigit() else part]
    document[leaf] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema_version", 2, "schema_version: 2 is not the schema version this memcalc reads, 1"),
        ("schema_version", True, "schema_version"),
        ("jobs", {}, "jobs: holds no job"),
        ("jobs", [], "jobs: holds no job"),
        ("jobs", [3], "jobs.0: has no name"),
        ("jobs.0.name", None, "jobs.0: has no name"),
        ("jobs.0.footprint", [], "footprint: is not a footprint"),
        ("jobs.0.footprint.schema_version", "1", "schema_version"),
        ("jobs.0.footprint.job", None, "footprint: job: is missing"),
        ("jobs.0.footprint.peak", 7, "footprint: peak: is missing"),
        ("jobs.0.footprint.states.rounded", -1, "states.rounded: -1 is no count of bytes"),
        ("jobs.0.footprint.states.rounded", 2**63, "is no count of bytes"),
        ("jobs.0.footprint.states.rounded", 1.5, "states.rounded: 1.5 is no count of bytes"),
        ("jobs.0.footprint.states.rounded", True, "states.rounded: True is no count of bytes"),
        ("jobs.0.footprint.states.rounded", "9", "states.rounded: 9 is no count of bytes"),
        ("jobs.0.footprint.states.rounded", None, "has none of peak.reserved"),
        ("jobs.0.footprint.states.rounded", float("nan"), "holds a number that cannot be read (NaN)"),
        ("jobs.0.footprint.states.rounded", float("inf"), "is no count of bytes"),
    ],
)
def test_a_baseline_that_breaks_a_rule_is_one_line_and_exit_2(memcalc, job, baseline, path, value, said):
    """Wrong types, NaN, absurd sizes and other schema versions are refused with their path."""
    document = json.loads(baseline.read_text())
    if value is None:  # the last figure is taken: no other may stand in
        document["jobs"][0]["footprint"]["peak"] = dict.fromkeys(document["jobs"][0]["footprint"]["peak"] or ())
    edit(document, path, value)
    baseline.write_text(json.dumps(document))
    answer = memcalc("check", job(ONE), "--against", baseline)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema_version": 1, "jobs": [', "[]", "3", "null", "\x00", "[" * 100_000, '{"a":1,"a":1}', "9" * 5000]
)
def test_files_that_are_no_baseline_are_refused(memcalc, job, tmp_path, text):
    """Empty, truncated, deep, repeated and absurd JSON is a person's error, never a crash."""
    path = tmp_path / "bad.json"
    path.write_text(text)
    answer = memcalc("check", job(ONE), "--against", path)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)


def test_a_missing_baseline_and_unknown_keys(memcalc, job, baseline, tmp_path):
    """What is not there is refused; keys of a later memcalc are not."""
    assert memcalc("check", job(ONE), "--against", tmp_path / "none.json").code == 2
    assert memcalc("check", job(ONE), "--against", tmp_path).code == 2
    document = json.loads(baseline.read_text())
    document["later"] = document["jobs"][0]["later"] = document["jobs"][0]["footprint"]["later"] = [1]
    baseline.write_text(json.dumps(document))
    assert memcalc("check", job(ONE), "--against", baseline).code == 0


@pytest.mark.parametrize("text", ["2", "-1%", "nan%", "inf%", "%", "2 percent", "1e9%", "-3MiB", "", "1.5"])
def test_limits_that_are_none(memcalc, job, baseline, text):
    """A limit is a share of zero and more or a size; a bare number above zero is bytes."""
    if text == "2":
        assert parse_limit(text).nbytes == 2
        return
    with pytest.raises(InputError):
        parse_limit(text)


def test_a_limit_needs_a_baseline(memcalc, job):
    """--max-growth alone would judge nothing."""
    answer = memcalc("check", job(ONE), "--max-growth", "2%")
    assert (answer.code, "add --against FILE" in answer.err) == (2, True)


@settings(deadline=None)
@given(before=st.integers(0, 2**63 - 1), now=st.integers(0, 2**63 - 1), tenths=st.integers(0, 2000))
def test_a_share_is_exact(before, now, tenths):
    """No rounding decides: the growth passes exactly where now ≤ before · (1 + share)."""
    assert parse_limit(f"{tenths / 10}%").allows(before, now) == (now * 1000 <= before * (1000 + tenths))


def test_a_baseline_is_written_whole_or_not_at_all(memcalc, job, baseline, monkeypatch):
    """A job without figures, two of one name and a disk that fails leave what was there, and no litter."""
    before = baseline.read_text()
    bad = job("name: two\nmodel: nosuch\n", "bad.yaml")
    answer = memcalc("check", job(ONE), bad, "--write-baseline", baseline)
    assert (answer.code, "two has no figures" in answer.err) == (2, True)
    answer = memcalc("check", job(ONE), job(ONE, "again.yaml"), "--write-baseline", baseline)
    assert (answer.code, "is the name of two jobs" in answer.err) == (2, True)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    answer = memcalc("check", job(GREW), "--write-baseline", baseline)
    assert (answer.code, "No space left on device" in answer.err) == (2, True)
    assert baseline.read_text() == before
    assert [path.name for path in baseline.parent.glob("*.json*")] == ["baseline.json"]


def test_a_baseline_is_updated_through_its_link_after_it_was_judged(memcalc, job, baseline, tmp_path):
    """Both options on one file judge against the old figures and leave the new ones; a link stays a link."""
    link = tmp_path / "link.json"
    link.symlink_to(baseline)
    assert memcalc("check", job(GREW), "--against", link, "--write-baseline", link).code == 1
    assert memcalc("check", job(GREW), "--against", baseline).code == 0
    assert link.is_symlink()


def test_two_jobs_of_one_name_cannot_be_told_apart(memcalc, job, baseline):
    """Which of them the baseline means is not known."""
    answer = memcalc("check", job(ONE), job(GREW, "b.yaml"), "--against", baseline)
    assert (answer.code, "2 jobs are called one" in answer.out) == (2, True)
