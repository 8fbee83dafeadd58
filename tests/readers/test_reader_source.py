"""Every way to name a model, and what is said where a name means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memcalc.catalog import shipped
from memcalc.errors import InputError, MemcalcError, NotModelledError
from memcalc.readers.source import read_model

TINY = {"model_type": "gpt2", "n_layer": 2, "n_embd": 96, "n_head": 6, "vocab_size": 50, "n_positions": 10}
SIZE = 50 * 96 + 10 * 96 + 2 * (12 * 96 * 96 + 13 * 96) + 2 * 96
"""Tables, two blocks and the last norm, counted by hand."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize("name", sorted(shipped("models")))
def test_every_shipped_config_is_read_strictly(name):
    """Each shipped model is read, has its own name, knows all its keys, and has the parameters it states."""
    model = read_model(name)
    assert model.name == name
    assert model.num_parameters > 0


def test_a_shipped_name_in_capitals_and_by_its_name_on_the_hub():
    """Upper and lower case are alike, and the organisation counts only where it is the one the file names."""
    assert read_model("GPT2") == read_model("gpt2") == read_model("openai-community/gpt2")
    with pytest.raises(
        InputError, match=r"^model: somebody/gpt2 is neither a shipped model nor a path; .* write hf:somebody/gpt2"
    ):
        read_model("somebody/gpt2")


def test_an_unknown_name_says_what_is_near_and_what_else_there_is():
    """A slip is answered with its neighbours, and anything with the other ways to name a model."""
    with pytest.raises(InputError) as refusal:
        read_model("gpt-2-medum")
    assert "did you mean gpt2-medium" in str(refusal.value)
    with pytest.raises(InputError) as refusal:
        read_model("zzzzzz")
    assert str(refusal.value) == (
        "model: zzzzzz is neither a shipped model nor a path; see `memcalc list models`, or give a path, hf:org/name or "
        "py:package.module:factory"
    )


@pytest.mark.parametrize("spelled", ["config.json", ".", "sub/config.json", "sub", "mine.yaml", "./mine.yml", "other.json"])
def test_a_path_to_a_config(folder, spelled):
    """A config.json, a folder holding one, and a YAML file give one model, relative to the current folder or absolute."""
    for file in ("config.json", "sub/config.json", "other.json"):
        write(folder / file, {**TINY, "unknown_to_all": 1})
    for file in ("mine.yaml", "mine.yml"):
        write(folder / file, "\n".join(f"{key}: {value}" for key, value in TINY.items()))
    assert read_model(spelled).num_parameters == SIZE
    assert read_model(folder / spelled).num_parameters == SIZE
    assert read_model(str(folder / spelled)).num_parameters == SIZE


def test_what_a_model_is_called(folder):
    """A file's own name for the model, else the folder of a config.json, else the stem of the file."""
    write(folder / "llama" / "config.json", TINY)
    assert read_model("llama").name == "llama"
    write(folder / "llama" / "config.json", {**TINY, "_name_or_path": "org/said"})
    assert read_model("llama").name == "org/said"
    assert read_model(write(folder / "mine.yaml", "{model_type: gpt2, n_layer: 2}")).name == "mine"
    assert read_model(write(folder / "mine.yaml", "{model_type: gpt2, name: Mine}")).name == "Mine"
    assert read_model(write(folder / "flat.yaml", "{params: 7B}")).name == "flat"
    assert read_model(TINY).name == "gpt2"


def test_a_name_from_a_file_can_be_printed(folder):
    """A hostile config names its model in terminal escapes, halves of characters or a novel; what is shown is tame."""
    write(folder / "config.json", {**TINY, "_name_or_path": "a\x1b[31m\ud800\n" + "x" * 5000})
    name = read_model("config.json").name
    assert name == "a?[31m??" + "x" * 192
    assert read_model({"params": 5, "name": "a\tb"}).name == "a?b"


def test_relative_paths_start_at_the_base_folder(folder):
    """In a job file, a path is relative to that file; a base in a YAML file is relative to the YAML file."""
    write(folder / "jobs" / "model" / "config.json", TINY)
    write(folder / "jobs" / "mine.yaml", "base: model/config.json\nn_layer: 3")
    assert read_model("model", base_dir=folder / "jobs").num_parameters == SIZE
    assert read_model("jobs/mine.yaml").config.num_hidden_layers == 3
    with pytest.raises(InputError, match="model is neither a shipped model nor a path"):
        read_model("model")


def test_a_shipped_name_beside_a_folder_of_that_name(folder):
    """The shipped config is meant, and the answer says how to mean the folder."""
    write(folder / "gpt2" / "config.json", TINY)
    model = read_model("gpt2")
    assert model.num_parameters == 124439808
    assert "gpt2 is the shipped config; the path of that name is ./gpt2" in model.assumptions
    assert read_model("./gpt2").num_parameters == SIZE


def test_weights_by_file_by_folder_and_by_index(folder):
    """A safetensors file, a folder that holds only weights, and an index are read from their headers."""
    numpy = pytest.importorskip("safetensors.numpy", reason="writes the files")
    import numpy as np

    numpy.save_file({"a.weight": np.zeros((3, 4), np.float32)}, write(folder / "w" / "model.safetensors", ""))
    for source in ("w", "w/model.safetensors", {"base": "w"}):
        if isinstance(source, dict):
            with pytest.raises(InputError, match=r"^model\.base: w has no config whose keys could be replaced"):
                read_model(source)
        else:
            assert (read_model(source).num_parameters, read_model(source).family) == (12, "safetensors")
    write(folder / "w" / "model.safetensors.index.json", {"weight_map": {"a.weight": "model.safetensors"}})
    write(folder / "w" / "renamed.json", {"weight_map": {"a.weight": "model.safetensors"}})
    for source in ("w", "w/model.safetensors.index.json", "w/renamed.json"):
        assert read_model(source).num_parameters == 12
    write(folder / "w" / "config.json", TINY)
    assert read_model("w").num_parameters == SIZE, "a config says more than weights do"


def test_folders_that_name_no_model(folder):
    """An empty folder, and one of several files of weights, are errors that say what was looked for."""
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds neither a config\.json nor \.safetensors files"):
        read_model("./empty")
    write(folder / "many" / "a.safetensors", "")
    write(folder / "many" / "b.safetensors", "")
    with pytest.raises(
        InputError, match=r"holds 2 files of weights and neither config\.json nor one index; name one of them, as"
    ):
        read_model("./many")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.json", "[1, 2]", r"holds no mapping of keys"),
        ("a.json", '{"model_type": ', r"a\.json\): is cut short at line 1"),
        ("a.json", "{}", r"^model\.model_type: is not the name of a family"),
        ("a.yaml", "- 1", r"holds no mapping of keys"),
        ("a.yaml", "a: [", r"a\.yaml"),
        ("a.yaml", "model: gpt2", r"^model: says neither model_type nor base nor params, but model; give model_type"),
        (
            "a.yaml",
            "{model_type: gpt2, hiden_size: 3}",
            r"^model\.hiden_size: is not a key of gpt2; did you mean hidden_size\?$",
        ),
        ("a.yaml", "{model_type: gpt2, name: 5}", r"^model\.name: 5 is not text; put it in quotes"),
        ("a.yaml", "{model_type: gpt2, num_parameters: 5}", r"^model\.num_parameters: 5 is not what GPT2LMHeadModel has"),
        ("a.yaml", "{model_type: gpt2, n_embd: .nan}", r"^model\.n_embd: nan is not a whole number"),
        ("a.yaml", "{params: 7B, dtype: float16}", r"^model\.dtype: is not a key beside params"),
        ("a.bin", "x", r"is weights in a format memcalc does not open; give a config\.json"),
        ("a.gguf", "x", r"is weights in a format memcalc does not open"),
        ("a.txt", "x", r"is not a kind of file memcalc reads"),
        ("a.safetensors", "x", r"^model \(a\.safetensors\): is no safetensors file"),
    ],
)
def test_a_file_that_is_no_model(folder, file, content, said):
    """Each file that describes no model is one error with its reason."""
    write(folder / file, content)
    with pytest.raises(InputError, match=said) as refusal:
        read_model(f"./{file}")
    assert "\n" not in str(refusal.value)


def test_what_transformers_wrote_may_hold_any_key(folder):
    """A mapping signed by transformers is read as a config.json is: what is not known is passed over."""
    assert read_model({**TINY, "transformers_version": "5.0.0", "unsloth_fixed": True}).num_parameters == SIZE
    with pytest.raises(InputError, match=r"^model\.unsloth_fixed: is not a key of gpt2"):
        read_model({**TINY, "unsloth_fixed": True})


def test_a_base_with_keys_replaced():
    """Keys laid over a base count under any spelling, the base's own claims about itself fall, the name says what changed."""
    model = read_model({"base": "gpt2", "num_hidden_layers": 24})
    assert (model.name, model.config.num_hidden_layers) == ("gpt2 with num_hidden_layers=24", 24)
    assert read_model({"base": "gpt2", "n_layer": 24}).tensors == model.tensors
    assert read_model({"base": "gpt2"}) == read_model("gpt2")
    assert read_model({"base": "gpt2", "name": "mine"}).name == "mine"
    assert read_model({"base": {"base": TINY, "n_layer": 3}, "n_layer": 4}).config.num_hidden_layers == 4


def test_labels_laid_over_a_base_are_the_ones_meant():
    """New names of labels rule out the base's number of them, and the other way round."""
    base = {**TINY, "architectures": ["GPT2ForSequenceClassification"], "num_labels": 7}
    names = {"0": "a", "1": "b", "2": "c"}
    assert read_model({"base": base, "id2label": names}).config.num_labels == 3
    assert read_model({"base": {**base, "id2label": names}, "num_labels": 5}).config.num_labels == 5
    assert read_model({"base": {**TINY, "dtype": "float16"}, "torch_dtype": "bfloat16"}).dtype == "bfloat16"


def test_nested_keys_laid_over_a_base():
    """Of a nested config only the keys given are replaced."""
    base = {
        "model_type": "gemma3",
        "text_config": {"num_hidden_layers": 2, "vocab_size": 50},
        "vision_config": {"num_hidden_layers": 1},
    }
    model = read_model({"base": base, "text_config": {"num_hidden_layers": 3}})
    assert (model.config.text_config.num_hidden_layers, model.config.text_config.vocab_size) == (3, 50)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"base": "gpt2", "n_lyer": 3}, r"^model\.n_lyer: is not a key of gpt2; did you mean n_layer"),
        ({"base": "gpt2", "n_layer": -3}, r"^model\.n_layer: -3 is below 1"),
        ({"base": "gpt2", "n_head": 7}, r"^model\.n_head: 7 does not divide hidden_size = 768"),
        ({"base": "gpt2", "model_type": "llama"}, r"^model\.model_type: llama is not the base's, which is gpt2"),
        ({"base": "gpt-2"}, r"^model\.base: gpt-2 is neither a shipped model nor a path"),
        ({"base": "params:7B"}, r"^model\.base: params:7B has no config whose keys could be replaced; name a config"),
        ({"base": 5}, r"^model\.base: 5 is not the name of a model"),
        ({"base": {"params": 5}}, r"^model\.base: .* has no config"),
        ({}, r"^model: says neither model_type nor base nor params; give"),
        ({"params": -1}, r"^model\.params: -1 is not a count"),
        ({"params": 0}, r"^model\.params: 0 is not above zero"),
        ({"params": 1e30}, r"^model\.params: 1e\+30 is 2\*\*63 parameters or more"),
        ({"params": True}, r"^model\.params: True is not a count"),
        ("params:", r"^model: '' is not a count"),
        ("params:7X", r"^model: 7X has the unknown unit 'X'; use K, M, B or T"),
        ("", r"^model: is not the name of a model; give a shipped name, a path"),
        (None, r"^model: is not the name of a model"),
        (7, r"^model: 7 is not the name of a model"),
        (["gpt2"], r"^model: \['gpt2'\] is not the name of a model"),
        ("https://example.com/config.json", r"is a web address"),
        ("a\0b", r"is not a path"),
        ("~nobody-of-that-name/x", r"is not a path"),
        ("x" * 5000, r"is neither a shipped model nor a path"),
        ("/dev/null", r"is not a kind of file memcalc reads"),
        ("./none.json", r"^model: \./none\.json does not exist; check the spelling of the path"),
        ("none.safetensors", r"does not exist"),
    ],
)
def test_a_source_that_names_nothing(source, said):
    """Each wrong source is one line that exits with 2."""
    with pytest.raises(MemcalcError, match=said) as refusal:
        read_model(source)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_bases_in_a_circle_end(folder):
    """Two files that stand on one another are an error and no endless walk."""
    write(folder / "a.yaml", "base: ./b.yaml")
    write(folder / "b.yaml", "base: ./a.yaml")
    with pytest.raises(InputError, match="is part of a circle of bases; let one of them stand alone"):
        read_model("a.yaml")


def test_a_bare_size():
    """A number of parameters in any spelling is one flat tensor of the family params, and says what that leaves out."""
    for source in ("params:7e9", {"params": "7B"}, {"params": 7_000_000_000}, {"params": 7e9, "name": "seven"}):
        model = read_model(source)
        assert (model.family, model.num_parameters, len(model.tensors)) == ("params", 7 * 10**9, 1)
        assert "no shapes" in model.assumptions[0]
    assert model.name == "seven"


def test_code_is_not_run_from_a_file_unasked(folder):
    """py: is refused where code is not allowed, and a config's base never runs any."""
    write(folder / "evil.py", "open('ran', 'w')\ndef f(): raise SystemExit")
    with pytest.raises(
        InputError, match=r"^model: py:evil:f runs code, which a file may not ask for by itself; .*--allow-code"
    ):
        read_model("py:evil:f", allow_code=False, app_dir=folder)
    write(folder / "mine.yaml", "base: 'py:evil:f'")
    for allowed in (True, False):
        with pytest.raises(InputError, match=r"^model\.base: py:evil:f has no config whose keys could be replaced"):
            read_model("mine.yaml", app_dir=folder, allow_code=allowed)
    assert not (folder / "ran").exists()


def test_packed_weights_are_not_modelled(folder):
    """What cannot be counted is said to be not modelled, through the front door as well."""
    import struct

    head = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (folder / "p.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0")
    with pytest.raises(NotModelledError, match=r"^model \(p\.safetensors\): F4 is not modelled"):
        read_model("p.safetensors")


def test_reading_configs_imports_nothing_heavy(folder):
    """Sources that are only data are read without torch, transformers, numpy, rich or huggingface_hub."""
    write(folder / "config.json", TINY)
    write(folder / "mine.yaml", "{base: gpt2, n_layer: 3}")
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "m.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    sources = [
        "gpt2",
        "params:7e9",
        "config.json",
        "mine.yaml",
        "m.safetensors",
        TINY,
        {"base": "bert-base-uncased", "num_labels": 3},
    ]
    code = f"""
import sys
from memcalc.readers.source import read_model
for source in {sources!r}:
    read_model(source)
heavy = [name for name in ("torch", "transformers", "numpy", "rich", "huggingface_hub", "safetensors") if name in sys.modules]
assert heavy == [], heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
