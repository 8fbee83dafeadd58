"""``memcalc estimate`` as a person meets it."""

from __future__ import annotations

import json

import pytest

from memcalc.cli.options import job_mapping

from .conftest import process

GPT2 = 124_439_808


def test_the_main_job_needs_no_torch(tmp_path):
    """A shipped name works from any folder, and neither torch, transformers, numpy nor rich is imported for JSON."""
    script = (
        "import sys\nfrom memcalc.__main__ import run\ncode = run(['estimate', 'gpt2', '--format', 'json'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'pandas', 'jsonschema'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\nsys.exit(code)"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    shown = json.loads(done.stdout)
    assert shown["model"]["num_parameters"] == GPT2
    assert shown["components"]["parameters"] == 2 * GPT2
    assert shown["components"]["optimizer_states"] + shown["components"]["master_parameters"] == 12 * GPT2


def test_json_is_one_object_and_keeps_the_contract(memcalc):
    """Every key of the contract is there; bytes are integers or null; nothing else is on stdout."""
    shown = memcalc("estimate", "gpt2", "--format", "json").json
    keys = {
        "schema_version", "model", "job", "engine", "components", "optimizer_states", "bytes_per_parameter", "at_peak", "peak",
        "phases", "host", "unattributed", "ranks", "fits", "assumptions", "warnings",
    }  # fmt: skip
    assert keys <= set(shown)
    assert shown["schema_version"] == 1
    components = (
        "parameters parameter_copies master_parameters buffers cache gradients optimizer_states inputs activations temporaries "
        "communication workspace context"
    )
    assert list(shown["components"]) == components.split()
    assert all(value is None or type(value) is int for value in shown["components"].values())
    assert set(shown["bytes_per_parameter"]) == set(shown["components"])
    assert set(shown["peak"]) == {
        "requested", "rounded", "allocated", "reserved", "device", "low", "high", "phase", "instant", "iteration",
        "device_low", "device_high",
    }  # fmt: skip
    assert set(shown["job"]["behaviour"]) == {"torch", "cuda", "cudnn", "gpu"}
    assert (shown["engine"], shown["fits"], shown["unattributed"]) == ("analytic", None, None)
    assert sum(shown["at_peak"].values()) == shown["peak"]["rounded"]


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_every_format_shows_the_figures(memcalc, form):
    """12P of states can be read in every format."""
    answer = memcalc("estimate", "gpt2", "--format", form, "--bytes")
    assert answer.code == 0
    text = answer.out.replace(",", "")
    assert str(2 * GPT2) in text
    assert str(4 * GPT2) in text
    if form in ("table", "markdown"):
        assert str(12 * GPT2) in text


def test_a_table_through_a_pipe_has_no_colour_and_no_progress():
    """Nothing but text goes through a pipe, and 80 columns are enough for it."""
    answer = process("estimate", "gpt2", COLUMNS="80")
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
    assert "optimizer states and masters" in answer.out


def test_explain_adds_up_to_every_component(memcalc):
    """The buffers listed for a component sum to that component, byte for byte."""
    for words in ((), ("--precision", "amp-bf16"), ("--dp", 4, "--zero-stage", 2), ("--optimizer", "adamw8bit")):
        answer = memcalc("estimate", "gpt2", *words, "--format", "json", "--explain").json
        sums: dict[str, int] = {}
        for held in answer["buffers"]:
            if held["place"] == "device" and held["component"] != "temporaries":
                sums[held["component"]] = sums.get(held["component"], 0) + held["requested"] * held["times"]
        gradients = answer["components"].pop("gradients")
        # ZeRO-2's gradients and a partition's are not alive together; every other component is all there at once
        assert sums.pop("gradients") >= gradients
        answer["components"].pop("temporaries")  # of the peak, where a step is played: not among what is listed here
        assert sums == {name: size for name, size in answer["components"].items() if size}


def test_explain_is_drawn(memcalc):
    """The table of buffers names tensors and what keeps them alive."""
    answer = memcalc("estimate", "gpt2", "--explain")
    line = next(line for line in answer.out.splitlines() if "transformer.h.*.attn.c_attn.weight" in line)
    assert line.split() == ["transformer.h.*.attn.c_attn.weight", "always", "3,538,944", "12", "0.04"]


def test_a_bare_size(memcalc):
    """--params alone gives the textbook card."""
    shown = memcalc("estimate", "--params", "7e9", "--format", "json").json
    assert shown["components"]["master_parameters"] == 28 * 10**9
    assert any("bare size" in word for word in shown["assumptions"])


def test_set_overrides_a_shipped_config(memcalc):
    """--set changes one key of the model's config."""
    shown = memcalc("estimate", "gpt2", "--set", "n_layer=24", "--format", "json").json
    assert shown["model"]["num_parameters"] == GPT2 + 12 * 7_087_872


def test_verdicts_decide_the_exit(memcalc):
    """States over the memory are a no, those within it a yes; a step is judged where it is played, unknown where not."""
    no = memcalc("estimate", "gpt2", "--memory", "1GiB", "--format", "json")
    assert (no.code, no.json["fits"]["verdict"]) == (1, "does_not_fit")
    assert no.json["fits"]["headroom"] < 0
    yes = memcalc("estimate", "gpt2", "--memory", "80GiB", "--scope", "states", "--format", "json")
    assert (yes.code, yes.json["fits"]["verdict"]) == (0, "fits")
    step = memcalc("estimate", "gpt2", "--memory", "80GiB", "--format", "json")
    assert (step.code, step.json["fits"]["verdict"]) == (0, "fits")
    unknown = memcalc("estimate", "gpt2", "--memory", "80GiB", "--dp", 8, "--zero-backend", "deepspeed", "--format", "json")
    assert (unknown.code, unknown.json["fits"]["verdict"]) == (0, "unknown")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["estimate"], "MODEL: is missing"),
        (["estimate", "gpt3-xl"], "gpt3-xl"),
        (["estimate", "gpt2", "--params", "7B"], "--params: 7B is given beside a model"),
        (["estimate", "gpt2", "--optimizer", "admaw"], "training.optimizer: admaw is not a known optimizer; did you mean"),
        (["estimate", "gpt2", "--optimizer-arg", "fused"], "--optimizer-arg: fused is not KEY=VALUE"),
        (["estimate", "gpt2", "--memory", "12 parsecs"], "--memory: 12 parsecs has the unknown unit"),
        (["estimate", "gpt2", "--gpu", "h100-81gb"], "hardware.gpu: h100-81gb"),
        (["estimate", "gpt2", "--image-size", "224"], "training.image_size: 224 does not apply to gpt2"),
        (["estimate", "gpt2", "--zero-stage", "7"], "parallelism.zero_stage: 7 is above 3"),
        (["estimate", "gpt2", "--tp", "2"], "parallelism.tp: 2 asks for tensor parallelism, which is not modelled yet"),
        (["estimate", "gpt2", "--scope", "everything"], "scope: everything is not one of the choices"),
        (["estimate", "/nowhere/config.json"], "/nowhere/config.json"),
        (["estimtae"], "estimtae is not a command; did you mean estimate?"),
        (["list", "gpu"], "list: gpu is not something memcalc lists; did you mean gpus?"),
        (["schema", "jobs"], "schema: jobs is not a schema memcalc has; did you mean job?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(memcalc, words, message):
    """Whatever is wrong with a command, one line on stderr says so, stdout stays empty, and the exit code is 2."""
    answer = memcalc(*words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.startswith("memcalc: ")
    assert len(answer.err.strip().splitlines()) == 1


def test_a_fault_of_ours_is_exit_70(memcalc, monkeypatch):
    """An exception nobody planned is one line that asks for a report, and exit 70."""
    import memcalc.api

    monkeypatch.setattr(memcalc.api, "estimate_read", lambda *_: 1 / 0)
    answer = memcalc.api and process("estimate", "gpt2")
    assert answer.code == 0
    from memcalc.__main__ import run

    assert run(["estimate", "gpt2"]) == 70


def test_a_reader_that_goes_away_is_no_error():
    """Piping into head ends quietly."""
    import subprocess
    import sys

    done = subprocess.run(
        f"{sys.executable} -m memcalc list optimizers | head -2", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2


def test_help_fits_a_screen(memcalc, monkeypatch):
    """The longest help is fifty lines at most, of at most a hundred columns."""
    monkeypatch.setenv("COLUMNS", "90")
    for command in ("estimate", "compare", "check", "sweep", "list", "textbook", "schema", "version"):
        answer = memcalc(command, "--help")
        assert answer.code == 0
        assert len(answer.out.splitlines()) <= 50
        assert max(map(len, answer.out.splitlines())) <= 100


def test_footprints_match_their_schema(memcalc):
    """What estimate prints is what ``memcalc schema footprint`` promises."""
    import jsonschema

    schema = memcalc("schema", "footprint").json
    for words in (
        ["gpt2"],
        ["gpt2", "--gpu", "a100-80gb"],
        ["gpt2", "--dp", "3", "--zero-stage", "1", "--zero-backend", "torch"],
        ["gpt2", "--explain"],
    ):
        jsonschema.validate(memcalc("estimate", *words, "--format", "json").json, schema)


def test_the_job_as_understood_is_a_job(memcalc):
    """The job an estimate prints names every default, and the ranks and engine it resolved."""
    job = memcalc("estimate", "gpt2", "--dp", "4", "--zero-stage", "1", "--format", "json").json["job"]
    assert job["training"]["optimizer"] == "torch:Adam"
    assert (job["parallelism"]["zero_backend"], job["parallelism"]["dp_shard"]) == ("deepspeed", 4)
    assert job["training"]["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("betas", ["0.9,0.95", "[0.9,0.95]", "[0.9, 0.95]"])
def test_an_option_may_be_a_list(memcalc, betas):
    """Numbers with commas between, in brackets or not, and names of modules in brackets, are lists in the job."""
    assert job_mapping("gpt2", optimizer_args=[f"betas={betas}"])["optimizer_args"] == {"betas": [0.9, 0.95]}
    asked = ("estimate", "gpt2", "--scope", "states", "--format", "json", "--optimizer-arg", f"betas={betas}")
    answer = memcalc(*asked, "--lora", "target_modules=[c_attn]")
    assert (answer.code, answer.json["job"]["training"]["lora"]) == (0, {"target_modules": ["c_attn"]})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gpt2", "--set", "training.zero_args=5"), "--set training.zero_args: 5 is not a key of training"),
        (("gpt2", "--set", "training.optimizer_args=fused"), "holds pairs; write --optimizer-arg KEY=VALUE"),
        (("gpt2", "--optimizer", "adamw", "--set", "training.optimizer=sgd"), "is given twice, here and as --optimizer"),
        (("gpt2", "--set", "training.gpu=h100-80gb"), "--set training.gpu: h100-80gb is not a key of training"),
        (("--params", "1e6", "--set", "hidden_size=5"), "is a key of a config, and --params is a bare size"),
        (("resnet-50", "--set", "training.optimizer=lomo", "--precision", "fp32", "--keep-gradients"), "training.set_to_none"),
        (("resnet-50", "--implementation", "megatron", "--micro-batch-size", "1"), "is not modelled for"),
        (
            ("gpt2", "--optimizer", "lomo"),
            "training.optimizer: lomo-optim:Lomo updates parameters inside backward, and precision fp16 keeps masters, which "
            "are updated after it; use precision bf16-pure, fp32 or amp-bf16",
        ),
        (
            ("gpt2", "--optimizer", "adalomo", "--precision", "amp-fp16"),
            "lomo-optim:AdaLomo updates parameters inside backward, and precision amp-fp16 has a GradScaler, which unscales "
            "gradients after it; use precision bf16-pure, fp32 or amp-bf16",
        ),
    ],
)
def test_a_key_that_cannot_be_set_is_one_clear_error(memcalc, words, says):
    """What --set may not say, says twice or would be dropped is refused by its path, and never a fault of memcalc's own."""
    answer = memcalc("estimate", *words)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
