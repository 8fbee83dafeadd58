"""The reader of plain configs against the reader of all YAML: the same data, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.catalog import shipped
from memcalc.errors import InputError
from memcalc.readers.plain import plain_mapping, plain_text
from memcalc.readers.yaml import load_yaml

PARTS = (
    *"ab:\n-[],'10.e~&*!# +", ": ", "- ", ", ", "''", "12", "-3", "1e-5", "0x1", "1_0", "true", "null", "yes", "No", "<<",
    "x/y", "1:30", "2024-01-01", ".inf",
)  # fmt: skip


def spelled(value):
    """A value with its types, so that 1, 1.0 and true differ."""
    return repr(value)


def test_shipped_configs_are_read_as_yaml():
    """Nearly every shipped model is plain, and each that is says what YAML says."""
    read = {name: (plain_mapping(file), file) for name, file in shipped("models").items()}
    plain = [name for name, (found, _) in read.items() if found is not None]
    assert len(plain) > 0.8 * len(read)
    for name in plain:
        found, file = read[name]
        assert spelled(found) == spelled(load_yaml(file)), name


@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.sampled_from(["", "a: 1\n", "k:\n- "]))
def test_any_text_is_read_as_yaml_or_left_to_it(text, before):
    """Of texts made of YAML's marks, whatever is taken as plain is what YAML reads."""
    for written in (before + text, f"{before}k2: {text}"):
        found = plain_text(written)
        if found is not None:
            assert spelled(found) == spelled(load_yaml(written))


@pytest.mark.parametrize(
    "text", ["", "a:\n", "a: 010", "a: 1\na: 2", "a: yes", "a: [1, [2]]", "a: b: c", "a: 'it''s'", "a: \ttab", "- 1"]
)
def test_what_is_not_plain_is_left(text):
    """Empty values, octal numbers, keys given twice, words readers disagree on, nesting and escapes are YAML's to judge."""
    assert plain_text(text) is None


def test_errors_are_still_yamls(tmp_path):
    """A file that breaks a rule is refused in the words it always was."""
    file = tmp_path / "twice.yaml"
    file.write_text("model_type: gpt2\nmodel_type: gpt2\n")
    assert plain_mapping(file) is None
    assert plain_mapping(tmp_path / "none.yaml") is None
    with pytest.raises(InputError, match="already given on line 1"):
        load_yaml(file)
