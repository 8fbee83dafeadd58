"""Configs as people write them: spellings, slips, wrong types, and the plain words that answer them."""

from __future__ import annotations

import pytest

from memcalc.errors import InputError
from memcalc.readers.config import model_from_config, stored_dtype

WHOLE = "give a whole number (the default is 4096)"
FLAG = "give true or false (the default is false)"
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 100}
GPT2 = {"model_type": "gpt2", "n_layer": 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hidden_size": -5}, "model.hidden_size: -5 is below 1; give 1 or more (the default is 4096)"),
        ({"hidden_size": 0}, "model.hidden_size: 0 is below 1; give 1 or more (the default is 4096)"),
        ({"hidden_size": "4096"}, "model.hidden_size: '4096' is text, not a whole number; write 4096 without quotes"),
        ({"hidden_size": "big"}, f"model.hidden_size: 'big' is text, not a whole number; {WHOLE}"),
        ({"hidden_size": True}, f"model.hidden_size: true is not a whole number; {WHOLE}"),
        ({"hidden_size": 4096.0}, "model.hidden_size: 4096.0 is not written as a whole number; write 4096"),
        ({"hidden_size": 4096.5}, f"model.hidden_size: 4096.5 is not a whole number; {WHOLE}"),
        ({"hidden_size": float("nan")}, f"model.hidden_size: nan is not a whole number; {WHOLE}"),
        ({"hidden_size": float("inf")}, f"model.hidden_size: inf is not a whole number; {WHOLE}"),
        ({"hidden_size": 1e400}, f"model.hidden_size: inf is not a whole number; {WHOLE}"),
        ({"hidden_size": None}, "model.hidden_size: null is not a whole number; leave the key out to take its default"),
        ({"hidden_size": [1]}, f"model.hidden_size: [1] is not a whole number; {WHOLE}"),
        ({"hidden_size": 2**60}, "model.hidden_size: 1152921504606846976 is above 1,099,511,627,776, more than any model has; "
                                 "check the number (the default is 4096)"),
        ({"hidden_size": 10**400}, "is above 1,099,511,627,776, more than any model has"),
        ({"attention_bias": 1}, f"model.attention_bias: 1 is not true or false; {FLAG}"),
        ({"attention_bias": "no"}, f"model.attention_bias: 'no' is text, not true or false; {FLAG}"),
        ({"vocab_size": -1, "hidden_size": 0, "mlp_bias": 3},
         "model.vocab_size: -1 is below 1; give 1 or more (the default is 32000); "
         "also look at model.hidden_size, model.mlp_bias"),
        ({"num_attention_heads": 30}, "model.num_attention_heads: 30 does not divide hidden_size = 4096; use 16 or 32"),
        ({"num_key_value_heads": 5}, "model.num_key_value_heads: 5 does not divide num_attention_heads = 32; use 2 or 4"),
        ({"head_dim": 15}, "model.head_dim: 15 is odd, and rotary positions turn dimensions in pairs; change it, or"),
        ({"architectures": ["LlamaForCasualLM"]},
         "model.architectures: LlamaForCasualLM is not one memcalc builds for llama; did you mean LlamaForCausalLM"),
        ({"architectures": [1]}, "model.architectures: [1] is not a list of class names; write [LlamaForCausalLM]"),
        ({"architectures": {"a": 1}}, "is not a list of class names"),
        ({"dtype": "bfloat"}, "model.dtype: bfloat is not a known dtype; did you mean bfloat16"),
        ({"torch_dtype": 5}, "model.torch_dtype: 5 is not the name of a dtype; write bfloat16, float16 or float32"),
        ({"model_type": "lama"}, "model.model_type: lama is not a family memcalc knows; did you mean llama"),
        ({"model_type": "zzz"}, "to choose from; any module can be read with py:package.module:factory"),
        ({"model_type": None}, "model.model_type: is not the name of a family; name one, as model_type: llama"),
        ({"model_type": 5}, "model.model_type: 5 is not the name of a family"),
        ({"model_type": "../llama"}, "is not a family memcalc knows"),
        ({"model_type": "_decoder"}, "is not a family memcalc knows"),
        ({"text_config": {"model_type": "gpt2"}}, "model.text_config: is not a part of llama; check model_type"),
        ({"hidden_size": 2**40, "intermediate_size": 2**40}, "bytes are 2**63 or more; check the sizes of the model"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_answered_in_plain_words(given, said):
    """The error names the key, the value, the rule and the way out, in one line, and exits with 2."""
    with pytest.raises(InputError) as refusal:
        model_from_config({**LLAMA, **given})
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_errors_name_the_key_as_it_was_spelled():
    """Somebody who wrote n_embd is told of n_embd, also where two keys disagree."""
    for given, said in (
        ({"n_embd": -7}, "model.n_embd: -7 is below 1"),
        ({"n_head": 7}, "model.n_head: 7 does not divide hidden_size = 768; use 6 or 8"),
    ):
        with pytest.raises(InputError) as refusal:
            model_from_config({**GPT2, **given})
        assert said in str(refusal.value)


def test_errors_inside_a_nested_config_name_the_whole_path():
    """gemma3's text_config is checked key by key under its own path, ranges and rules alike."""
    for inner, said in (
        ({"hidden_size": -1}, "model.text_config.hidden_size: -1 is below 1"),
        ({"num_key_value_heads": 3}, "model.text_config.num_key_value_heads: 3 does not divide num_attention_heads = 8"),
    ):
        with pytest.raises(InputError) as refusal:
            model_from_config({"model_type": "gemma3", "text_config": inner})
        assert said in str(refusal.value)
    with pytest.raises(InputError, match=r"model\.text_config: .*is text, not a mapping"):
        model_from_config({"model_type": "gemma3", "text_config": "gemma3_text"})


def test_both_spellings_are_one_model():
    """Older and newer keys, and model_type with either dash, give the same tensors."""
    older = model_from_config({**GPT2, "n_embd": 96, "n_head": 6, "n_positions": 50})
    newer = model_from_config(
        {
            "model_type": "GPT2",
            "num_hidden_layers": 2,
            "hidden_size": 96,
            "num_attention_heads": 6,
            "max_position_embeddings": 50,
        }
    )
    assert older.tensors == newer.tensors


def test_of_two_spellings_the_generic_one_holds_as_in_transformers():
    """In a config.json n_embd and hidden_size may disagree; hidden_size wins, as transformers has it."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    both = {"n_embd": 96, "hidden_size": 192}
    assert transformers.GPT2Config(**both).n_embd == 192
    assert model_from_config({**GPT2, **both}).config.hidden_size == 192


def test_the_number_of_labels_is_read_as_transformers_reads_it():
    """num_labels wins over the names of labels, and the names alone give their number."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    names = {str(index): "x" for index in range(3)}
    for given in ({"num_labels": 5}, {"id2label": names}, {"num_labels": 5, "id2label": names}, {}):
        expected = transformers.BertConfig.from_dict(dict(given)).num_labels
        assert model_from_config({"model_type": "bert", **given}).config.num_labels == expected


def test_the_stored_dtype_under_all_its_spellings():
    """torch_dtype, dtype, a torch. prefix, C's names, and nothing; the newer key wins, as in transformers."""
    assert stored_dtype({"torch_dtype": "bfloat16", "dtype": None}) == "bfloat16"
    assert stored_dtype({"torch_dtype": "bfloat16", "dtype": "float16"}) == "float16"
    assert stored_dtype({"dtype": "torch.float32"}) == "float32"
    assert stored_dtype({"dtype": "half"}) == "float16"
    assert stored_dtype({"dtype": "auto"}) is None
    assert stored_dtype({}) is None


def test_a_wrapper_is_not_read_as_the_text_model_inside():
    """A multimodal config of an unknown family is an error that names wrapper, text family and a way to read it whole."""
    with pytest.raises(InputError) as refusal:
        model_from_config({"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}})
    assert str(refusal.value) == (
        "model.model_type: llava wraps a text model in a family memcalc does not know; read the whole of it with "
        "py:package.module:factory, or give its text_config (llama) alone"
    )


def test_what_is_passed_over_is_said():
    """Quantised weights, the repository's own code and an unnamed architecture are named among the assumptions."""
    model = model_from_config({**LLAMA, "quantization_config": {"quant_method": "fp8"}, "auto_map": {"AutoModel": "x.Y"}})
    said = " | ".join(model.assumptions)
    assert "quantization_config (fp8)" in said
    assert "auto_map names code" in said
    assert "architecture LlamaForCausalLM, the usual one of llama" in said
    assert model_from_config({**LLAMA, "architectures": ["LlamaModel"]}).assumptions == ()


def test_unknown_keys_pass_in_a_config_json_and_not_in_ones_own_file():
    """A training script may leave anything in a config.json; in a file written for memcalc it is a slip."""
    assert model_from_config({**LLAMA, "hiden_size": 64}).config.hidden_size == 4096
    with pytest.raises(InputError, match=r"^model\.hiden_size: is not a key of llama; did you mean hidden_size\?$"):
        model_from_config({**LLAMA, "hiden_size": 64}, strict=True)
    with pytest.raises(InputError, match=r"^model\.n_head: is not a key of llama; "):
        model_from_config({**LLAMA, "n_head": 8}, strict=True)
    with pytest.raises(InputError, match=r"^model\.rope_tetha: is not a key of llama; did you mean rope_theta"):
        model_from_config({**LLAMA, "rope_tetha": 1.0}, strict=True)
    with pytest.raises(InputError, match=r"^model\.7: is not a key of llama; its keys are those of a config\.json"):
        model_from_config({**LLAMA, 7: 8}, strict=True)
    with pytest.raises(InputError, match=r"^model\.text_config\.hiden: is not a key of gemma3's text_config; "):
        model_from_config({"model_type": "gemma3", "text_config": {"hiden": 1}}, strict=True)


def test_strict_spellings_must_agree():
    """In one's own file two spellings of a key may both stand only if they say the same."""
    assert model_from_config({**GPT2, "n_embd": 96, "hidden_size": 96, "n_head": 6}, strict=True).config.hidden_size == 96
    with pytest.raises(InputError, match=r"^model\.n_embd: 96 says otherwise than hidden_size = 192, which is the same key"):
        model_from_config({**GPT2, "n_embd": 96, "hidden_size": 192}, strict=True)


def test_a_stated_number_of_parameters_must_match():
    """num_parameters in one's own file is held to the model; it is nothing to a config.json."""
    count = model_from_config(LLAMA).num_parameters
    assert model_from_config({**LLAMA, "num_parameters": count}, strict=True).num_parameters == count
    with pytest.raises(InputError, match=rf"^model\.num_parameters: 5 is not what LlamaForCausalLM has .* which is {count};"):
        model_from_config({**LLAMA, "num_parameters": 5}, strict=True)
    with pytest.raises(InputError, match=r"^model\.num_parameters: 7B is not a whole number"):
        model_from_config({**LLAMA, "num_parameters": "7B"}, strict=True)
    assert model_from_config({**LLAMA, "num_parameters": 5}).num_parameters == count
