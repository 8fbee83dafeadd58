"""Counted tensors stand for exactly the names that were counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.errors import InputError
from memcalc.readers.grouping import MAX_AXES, boxes, group_tensors, split_name
from memcalc.tensors import Tensor

WORD = st.sampled_from(["layers", "experts", "w", "0", "1", "2", "10", "007", "x1", "٣", "", "1e3", "-1"])
NAMES = st.lists(st.lists(WORD, min_size=1, max_size=5).map(".".join), unique=True, max_size=60)


@given(NAMES, st.data())
def test_no_name_is_lost_and_none_is_made_up(names, data):
    """For any names, with any shapes and dtypes, the groups' names are those names, each as it was described."""
    described = {
        name: (
            data.draw(st.sampled_from([(), (2,), (2, 3)])),
            data.draw(st.sampled_from(["float32", "float16"])),
            data.draw(st.booleans()),
        )
        for name in names
    }
    tensors = [Tensor(name, shape, dtype, trainable=grad) for name, (shape, dtype, grad) in described.items()]
    groups = group_tensors(tensors)
    listed = [(name, (group.shape, group.dtype, group.trainable)) for group in groups for name in group.names()]
    assert len(listed) == len(names)
    assert dict(listed) == described
    assert sum(group.count for group in groups) == len(names)


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))))
def test_boxes_are_a_partition(indices):
    """A set of indices is split into boxes that cover each index once and nothing else."""
    found = [(i, j, k) for a, b, c in boxes(sorted(indices), 3) for i in a for j in b for k in c] if indices else []
    assert sorted(found) == sorted(indices)


def test_a_full_product_is_one_tensor():
    """Thirty-two layers of eight experts are one tensor with two spans that name no indices."""
    (group,) = group_tensors(Tensor(f"layers.{i}.experts.{j}.w", (4, 4)) for i in range(32) for j in range(8))
    assert (group.name, group.count) == ("layers.*.experts.*.w", 256)
    assert [(span.count, span.indices) for span in group.spans] == [(32, None), (8, None)]


def test_what_is_no_full_product_is_split_along_the_outer_axis():
    """Layers with fewer experts stand apart, and a lone layer keeps its number."""
    tensors = [Tensor(f"layers.{i}.experts.{j}.w", (4,)) for i in range(4) for j in range(3 if i else 2)]
    assert [(group.name, group.count) for group in group_tensors(tensors)] == [
        ("layers.0.experts.*.w", 2),
        ("layers.*.experts.*.w", 9),
    ]


def test_shape_dtype_and_role_keep_tensors_apart():
    """The same name at other indices is another tensor where anything about it differs."""
    tensors = [
        Tensor("a.0", (2,)), Tensor("a.1", (2,)), Tensor("a.2", (3,)), Tensor("a.3", (2,), "float16"),
        Tensor("a.4", (2,), role="buffer"), Tensor("a.5", (2,), trainable=False), Tensor("a.6", (2,), kind="norm"),
    ]  # fmt: skip
    assert [group.count for group in group_tensors(tensors)] == [2, 1, 1, 1, 1, 1]


def test_a_star_in_a_name_is_refused():
    """A name that would be taken for a pattern is an error and not a wrong name."""
    with pytest.raises(InputError, match=r"model: a\.\*\.b is a tensor's name with \* in it"):
        group_tensors([Tensor("a.*.b", (2,))])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\ud800"])
def test_a_name_that_cannot_be_printed_is_refused(name):
    """Control characters and halves of characters in a name are an error whose text can be printed."""
    with pytest.raises(InputError, match="is a tensor's name with characters in it that cannot be printed") as refusal:
        group_tensors([Tensor(name, (2,))])
    assert str(refusal.value).isascii()
    assert str(refusal.value).isprintable()


def test_numbers_with_leading_zeros_and_other_scripts_are_text():
    """Only numbers that print back as they were written become indices."""
    assert split_name("a.01.b") == ("a.01.b", ())
    assert split_name("a.٣.b") == ("a.٣.b", ())
    assert split_name("a.0.b.12345678901") == ("a.*.b.12345678901", (0,))


def test_a_name_of_a_thousand_numbers_is_read_in_bounded_depth():
    """A hostile name has at most MAX_AXES indices and nests no deeper."""
    name = ".".join(["1"] * 5000)
    assert len(split_name(name)[1]) == MAX_AXES
    (group,) = group_tensors([Tensor(name, (2,))])
    assert list(group.names()) == [name]
