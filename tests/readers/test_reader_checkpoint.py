"""Sharded checkpoints: what an index promises is held to what the shards hold."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest

from memcalc.errors import InputError
from memcalc.readers.checkpoint import model_from_index, model_from_safetensors

SIZES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4}


def shard(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> int:
    """A shard holding zeros of those dtypes and shapes; its bytes of weights."""
    head, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    return at


def checkpoint(folder: Path, shards: dict[str, dict], **changes) -> Path:
    """An index over those shards, with parts of it replaced; the index's path."""
    total = sum(shard(folder / name, tensors) for name, tensors in shards.items())
    index = {"metadata": {"total_size": total}, "weight_map": {t: name for name, tensors in shards.items() for t in tensors}}
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({**index, **changes}))
    return file


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TWO = {
    A: {"model.embed_tokens.weight": ("BF16", [9, 4]), "model.layers.0.w.weight": ("BF16", [4, 4])},
    B: {"model.layers.1.w.weight": ("BF16", [4, 4]), "model.norm.weight": ("BF16", [4]), "position_ids": ("I64", [1, 5])},
}


def test_shards_are_one_model(tmp_path):
    """Layers that lie in different shards are counted together, and a known buffer is no parameter."""
    model = model_from_index(checkpoint(tmp_path, TWO))
    assert {tensor.name: (tensor.shape, tensor.count, tensor.kind, tensor.role) for tensor in model.tensors} == {
        "model.embed_tokens.weight": ((9, 4), 1, "embedding", "parameter"),
        "model.layers.*.w.weight": ((4, 4), 2, "linear", "parameter"),
        "model.norm.weight": ((4,), 1, "norm", "parameter"),
        "position_ids": ((1, 5), 1, "other", "buffer"),
    }
    assert (model.num_parameters, model.dtype, model.name) == (36 + 32 + 4, "bfloat16", tmp_path.name)
    assert any("position_ids are buffers" in said for said in model.assumptions)


def test_a_list_of_unlike_modules_is_read_name_by_name(tmp_path):
    """In a sequence of convolution, batch norm and linear layers, each bias has the kind of its own weight."""
    shard(tmp_path / "m.safetensors", {
        "0.weight": ("F32", [8, 3, 3, 3]), "0.bias": ("F32", [8]),
        "1.weight": ("F32", [8]), "1.bias": ("F32", [8]), "1.running_mean": ("F32", [8]), "1.running_var": ("F32", [8]),
        "2.weight": ("F32", [8, 8]), "2.bias": ("F32", [8]),
    })  # fmt: skip
    model = model_from_safetensors(tmp_path / "m.safetensors")
    kinds = {name: tensor.kind for tensor in model.parameters for name in tensor.names()}
    assert kinds == {
        "0.weight": "conv", "0.bias": "conv", "1.weight": "batch_norm", "1.bias": "batch_norm", "2.weight": "linear",
        "2.bias": "linear",
    }  # fmt: skip
    assert sum(tensor.elements for tensor in model.buffers) == 16


def test_a_config_beside_the_weights_names_them(tmp_path):
    """The name and the architecture come from config.json; a broken one is passed over and said so."""
    file = checkpoint(tmp_path, TWO)
    (tmp_path / "config.json").write_text('{"_name_or_path": "org/name", "architectures": ["LlamaForCausalLM"]}')
    model = model_from_index(file)
    assert (model.name, model.architecture) == ("org/name", "LlamaForCausalLM")
    (tmp_path / "config.json").write_text('{"_name_or_path": "org/na')
    model = model_from_index(file)
    assert (model.name, model.architecture) == (tmp_path.name, None)
    assert any("passed over: config.json" in said and "cut short" in said for said in model.assumptions)


def test_integer_tensors_do_not_train(tmp_path):
    """A quantised checkpoint's packed weights are parameters without gradients, and the model says so."""
    shard(tmp_path / "q.safetensors", {"a.qweight": ("I32", [4, 4]), "a.scales": ("F32", [4])})
    model = model_from_safetensors(tmp_path / "q.safetensors")
    assert (model.num_parameters, model.num_trainable_parameters) == (20, 4)
    assert "parameters of whole numbers or truth values receive no gradient" in model.assumptions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_map": {"x": "../model.safetensors"}}, r"index.json\) x: \.\./model.safetensors is not the name of a file in"),
        ({"weight_map": {"x": "/etc/model.safetensors"}}, r"is not the name of a file in the index's own folder"),
        ({"weight_map": {"x": "a\\b.safetensors"}}, r"is not the name of a file in"),
        ({"weight_map": {"x": ".."}}, r"is not the name of a file in"),
        ({"weight_map": {"x": ""}}, r"is not the name of a file in"),
        ({"weight_map": {"x": 5}}, r"x: 5 is not the name of a shard"),
        ({"weight_map": {"x": ["a"]}}, r"is not the name of a shard"),
        ({"weight_map": {"x": "pytorch_model-00001.bin"}}, r"is not a safetensors file; convert the checkpoint"),
        ({"weight_map": {"x": "model-3.safetensors"}}, r"model-3.safetensors is a shard that is not in"),
        ({"weight_map": {}}, r"holds no weight_map"),
        ({"weight_map": ["x"]}, r"holds no weight_map"),
        ({"metadata": {"total_size": 7}}, r"metadata.total_size: 7 is not the 184 bytes its shards hold"),
        ({"metadata": {"total_size": "many"}}, r"metadata.total_size: many is not the 184 bytes"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, changes, reason):
    """An index that leads out of its folder, to no shard, to a pickle, or to other sizes is one error."""
    with pytest.raises(InputError, match=reason):
        model_from_index(checkpoint(tmp_path, TWO, **changes))


def test_a_tensor_in_the_wrong_shard_is_named_with_both(tmp_path):
    """Where the index and the shards disagree, the error says where the tensor lies and where it should."""
    index = json.loads(checkpoint(tmp_path, TWO).read_text())
    moved = {**index["weight_map"], "model.norm.weight": A}
    with pytest.raises(InputError, match=rf"model.norm.weight lies in {B}, not in {A} as the index says"):
        model_from_index(checkpoint(tmp_path, TWO, weight_map=moved))
    with pytest.raises(InputError, match=rf"ghost lies in no shard, not in {A} as the index says"):
        model_from_index(checkpoint(tmp_path, TWO, weight_map={**index["weight_map"], "ghost": A}))
    fewer = {name: file for name, file in index["weight_map"].items() if name != "model.norm.weight"}
    with pytest.raises(InputError, match=rf"model.norm.weight lies in {B} and is not in the index"):
        model_from_index(checkpoint(tmp_path, TWO, weight_map=fewer))
    twice = {A: TWO[A], B: {**TWO[B], "model.layers.0.w.weight": ("BF16", [4, 4])}}
    with pytest.raises(InputError, match=rf"model.layers.0.w.weight lies in both {A} and {B}"):
        model_from_index(checkpoint(tmp_path, twice))


def test_a_damaged_shard_is_named(tmp_path):
    """A shard cut short is an error that names that shard."""
    file = checkpoint(tmp_path, TWO)
    (tmp_path / B).write_bytes((tmp_path / B).read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"model \({B}\): is cut short"):
        model_from_index(file)


def test_an_older_index_without_a_total_or_with_a_float_is_read(tmp_path):
    """total_size may be absent, or a float that is equal."""
    whole = json.loads(checkpoint(tmp_path, TWO).read_text())["metadata"]["total_size"]
    for metadata in ({}, None, {"total_size": float(whole)}):
        assert model_from_index(checkpoint(tmp_path, TWO, metadata=metadata)).num_parameters == 72


def test_an_empty_file_of_tensors_is_no_model(tmp_path):
    """A file that holds no tensors is an error, not a model of nothing."""
    shard(tmp_path / "none.safetensors", {})
    with pytest.raises(InputError, match=r"model \(none\.safetensors\): holds no tensors"):
        model_from_safetensors(tmp_path / "none.safetensors")


def test_ninety_thousand_tensors_are_read_in_seconds(tmp_path):
    """A mixture's checkpoint of 89,088 tensors in 16 shards becomes six counted tensors, in a few seconds of processor time."""
    names = [
        (f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight{suffix}", dtype)
        for layer in range(3, 61)
        for expert in range(256)
        for part in ("gate", "up", "down")
        for suffix, dtype in (("", "F8_E4M3"), ("_scale_inv", "F32"))
    ]
    each = -(-len(names) // 16)
    shards = {f"m-{i}.safetensors": {n: (d, [1, 2]) for n, d in names[i * each : (i + 1) * each]} for i in range(16)}
    file = checkpoint(tmp_path, shards)
    start = time.process_time()
    model = model_from_index(file)
    taken = time.process_time() - start
    assert [tensor.count for tensor in model.tensors] == [58 * 256] * 6
    assert sum(tensor.count for tensor in model.tensors) == len(names) == 89_088
    assert taken < 6, f"{taken:.1f} s"  # well under a second on an idle machine; a busy one may take several
