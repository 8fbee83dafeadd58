"""Configs that say how wide and deep a model is, and not how many heads it has."""

from __future__ import annotations

import pytest

from memcalc.errors import InputError
from memcalc.readers.config import model_from_config


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # keras-team/keras-hub@71453d0 gpt2_presets.py gpt2_medium_en; BERT-Large with its pooler, 335,141,888
        ({"model_type": "gpt2", "n_layer": 24, "n_embd": 1024}, 354_823_168),
        ({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 24, "hidden_size": 1024,
          "intermediate_size": 4096}, 335_141_888),
    ],
)  # fmt: skip
def test_a_model_can_be_counted_without_its_heads(config, count):
    """Heads move no byte of a parameter there; the number assumed is said."""
    model = model_from_config(config)
    assert model.num_parameters == count
    assert any("16 attention heads of 64" in word for word in model.assumptions)


def test_heads_that_shape_tensors_are_not_assumed():
    """Where key-value heads are given the heads decide shapes, and a default that does not divide the width is an error."""
    with pytest.raises(InputError, match="num_attention_heads"):
        model_from_config({"model_type": "llama", "hidden_size": 1000, "num_key_value_heads": 8})


def test_heads_that_are_given_are_kept():
    """A number that does not divide the width is refused, not replaced."""
    with pytest.raises(InputError, match=r"n_head: 12 does not divide hidden_size = 1024"):
        model_from_config({"model_type": "gpt2", "n_embd": 1024, "n_head": 12})
