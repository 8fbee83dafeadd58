"""``memcalc check``: verdicts, exit codes, annotations."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

FITS = "model: gpt2\nscope: states\nhardware:\n  memory: 80GiB\n"
TOO_BIG = "model: gpt2\nscope: states\nmemory: 1GiB\n"
UNKNOWN = "model: gpt2\nmemory: 80GiB\nparallelism: {dp: 8, zero_backend: deepspeed}\n"  # the step of its stage 0 is not played
BROKEN = "model: gpt2\ntraining:\n  optimizer: admaw\nmemory: 80GiB\n"


@pytest.fixture
def job(tmp_path):
    """Write a job file."""

    def write(text: str, name: str = "job.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ([FITS], 0), ([TOO_BIG], 1), ([UNKNOWN], 2), ([BROKEN], 2), ([FITS, FITS], 0), ([FITS, UNKNOWN], 2),
        ([UNKNOWN, TOO_BIG], 1), ([BROKEN, TOO_BIG, FITS], 1),
    ],
)  # fmt: skip
def test_any_failure_wins_then_any_unknown(memcalc, job, texts, code):
    """0 if all fit, 1 if any does not, else 2 if any could not be judged."""
    files = [job(text, f"job{at}.yaml") for at, text in enumerate(texts)]
    answer = memcalc("check", *files)
    assert answer.code == code
    assert len(answer.out.splitlines()) == len(texts)


def test_a_step_job_that_cannot_fit_is_a_certain_no(memcalc, job):
    """States that already exceed the memory make the whole step impossible."""
    answer = memcalc("check", job("model: gpt2\nmemory: 1GiB\n"))
    assert (answer.code, "does not fit" in answer.out) == (1, True)


def test_headroom_turns_a_yes_into_a_no(memcalc, job):
    """A share of the memory is left free; the command line's word goes before the file's."""
    path = job("model: gpt2\nscope: states\nmemory: 2.7GiB\n")
    assert memcalc("check", path).code == 0
    assert memcalc("check", path, "--headroom", "20%").code == 1
    assert memcalc("check", path, "--memory", "1GiB").code == 1


def test_github_annotations_stand_on_the_right_line(memcalc, job):
    """An unknown optimizer is annotated on its own line, a job that does not fit on its memory's."""
    broken = memcalc("check", job(BROKEN), "--format", "github").out
    assert broken.startswith("::warning file=")
    assert ",line=3," in broken
    failed = memcalc("check", job(TOO_BIG), "--format", "github").out
    assert failed.startswith("::error file=")
    assert ",line=3," in failed


def test_annotations_are_escaped(memcalc, job):
    """A name with colons, commas and percent signs cannot break out of its annotation."""
    out = memcalc("check", job(f'name: "a,b:c%d"\n{TOO_BIG}'), "--format", "github").out
    assert "title=memcalc%3A a%2Cb%3Ac%25d::" in out


def test_junit_counts_and_parses(memcalc, job):
    """JUnit XML holds a case a job, a failure where one does not fit and an error where one cannot be judged."""
    files = [job(text, f"job{at}.yaml") for at, text in enumerate((FITS, TOO_BIG, UNKNOWN))]
    root = ElementTree.fromstring(memcalc("check", *files, "--format", "junit").out)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    assert [child.tag for case in root.iter("testcase") for child in case] == ["failure", "error"]


def test_json_holds_each_footprint(memcalc, job):
    """The machine's form has the exit code and every figure."""
    answer = memcalc("check", job(FITS), "--format", "json").json
    assert answer["exit_code"] == 0
    assert answer["jobs"][0]["footprint"]["components"]["parameters"] == 248_879_616


def test_one_file_may_hold_many_jobs(memcalc, job):
    """A list of jobs, bare or under ``jobs``, is judged job by job, and one bad job does not silence the others."""
    path = job(
        "jobs:\n- {name: one, model: gpt2, scope: states, memory: 80GiB}\n- {name: two, model: nosuch}\n"
        "- {name: three, model: gpt2, memory: 1GiB}\n"
    )
    answer = memcalc("check", path)
    assert answer.code == 1
    assert [line.split()[1] for line in answer.out.splitlines()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "- 3", "model: [", "a: !!python/object/apply:os.system ['true']", "model: gpt2\nmodel: gpt2\n", "\x00", "nope"],
)
def test_files_that_are_no_jobs_cannot_be_judged(memcalc, job, text):
    """Empty, hostile, truncated or misshapen files are findings with exit 2, never a crash."""
    answer = memcalc("check", job(text))
    assert answer.code == 2
    assert "error" in answer.out
    assert answer.err == ""


def test_a_missing_file_cannot_be_judged(memcalc, job):
    """A path that leads nowhere is reported beside the others' verdicts."""
    answer = memcalc("check", "/nowhere/job.yaml", job(FITS))
    assert (answer.code, len(answer.out.splitlines())) == (2, 2)


def test_code_in_a_job_file_does_not_run_unasked(memcalc, job, tmp_path):
    """A py: model in a job file needs --allow-code, and nothing of it is run without."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nmake = None\n")
    answer = memcalc("check", job("model: 'py:evil:make'\nmemory: 1GiB\n"), "--app-dir", tmp_path)
    assert answer.code == 2
    assert "--allow-code" in answer.out
    assert not (tmp_path / "ran").exists()


def test_a_job_without_hardware_says_what_to_add(memcalc, job):
    """Nothing to fit into is not a yes."""
    answer = memcalc("check", job("model: gpt2\n"))
    assert (answer.code, "--gpu or --memory" in answer.out) == (2, True)


def test_job_files_validate_against_their_schema(memcalc):
    """The schema that editors use takes the files people write, grouped and flat, and refuses what memcalc refuses."""
    import jsonschema
    import yaml

    schema = memcalc("schema", "job").json
    for text in (FITS, TOO_BIG, UNKNOWN, BROKEN, "model: {params: 7e9}\ndp: 8\nzero_stage: 1\noptimizer_args: {fused: true}\n"):
        jsonschema.validate(yaml.safe_load(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": "gpt2", "optimiser": "adam"}, schema)
    assert schema["properties"]["training"] or schema["$defs"]["Training"]["properties"]["optimizer"]["description"]
