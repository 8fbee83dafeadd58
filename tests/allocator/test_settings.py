"""The settings' syntax, against PyTorch's own parser where this build has it, and the errors' text."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.caching import CachingAllocator
from memcalc.allocator.settings import UNLIMITED, AllocatorSettings, parse_settings, settings_from_environment, settings_text
from memcalc.errors import InputError, NotModelledError

MIB = 2**20
CONFIG = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig"
FRESH = "large_segment_size_mb:20,expandable_segments:False"
"""What PyTorch's parser does not reset by itself before it reads a text."""


class Fields(ctypes.Structure):
    """The first fields of pytorch c10/core/AllocatorConfig.h:AcceleratorAllocatorConfig, of 2.13."""

    _fields_ = (
        ("large_segment_size", ctypes.c_size_t), ("max_split_size", ctypes.c_size_t),
        ("max_non_split_rounding_size", ctypes.c_size_t), ("divisions", ctypes.c_size_t * 3),
        ("garbage_collection_threshold", ctypes.c_double), ("expandable_segments", ctypes.c_bool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pytorch():
    """(sets the settings of PyTorch's own parser, which raises what it refuses; a size's divisions there; its fields)."""
    torch = pytest.importorskip("torch")
    setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if setter is None or not library.exists() or not torch.__version__.startswith("2.13."):
        pytest.skip("this PyTorch has no AcceleratorAllocatorConfig of a known layout to ask")
    c10 = ctypes.CDLL(str(library))
    divisions, instance = c10[f"{CONFIG}24roundup_power2_divisionsEm"], c10[f"{CONFIG}8instanceEv"]
    divisions.argtypes, divisions.restype, instance.restype = [ctypes.c_size_t], ctypes.c_size_t, ctypes.c_void_p
    yield setter, divisions, Fields.from_address(instance())
    setter(FRESH)


BOUNDARY = st.sampled_from(["1", "2", "64", "256", "512", "1024", "32768", "131072", ">"])
ENTRY = st.tuples(BOUNDARY, st.sampled_from(["0", "1", "2", "4", "16", "3"]))
VALUE = st.one_of(
    st.lists(ENTRY, min_size=1, max_size=4).map(lambda entries: "[" + ",".join(f"{a}:{b}" for a, b in entries) + "]"),
    st.sampled_from(["0", "1", "2", "3", "8", "x"]),
)


@settings(max_examples=60, deadline=None)
@given(value=VALUE)
def test_rounding_is_pytorchs(pytorch, value):
    """Divisions for every size are what libc10 answers after the same text, and what it refuses is refused."""
    setter, divisions, _ = pytorch
    try:
        setter(f"roundup_power2_divisions:{value}")
    except ValueError:
        with pytest.raises(InputError):
            parse_settings(f"roundup_power2_divisions:{value}")
        return
    table = parse_settings(f"roundup_power2_divisions:{value}").roundup_power2_divisions
    assert list(table) == [divisions(MIB << index) for index in range(16)]


TEXTS = """
max_split_size_mb:19; max_split_size_mb:20; max_split_size_mb:20,large_segment_size_mb:21; large_segment_size_mb:10
large_segment_size_mb:11; large_segment_size_mb:30; max_split_size_mb:50,large_segment_size_mb:30; max_non_split_rounding_mb:19
max_non_split_rounding_mb:25; max_non_split_rounding_mb:40,large_segment_size_mb:30; garbage_collection_threshold:1.0
garbage_collection_threshold:0; garbage_collection_threshold:0.5; expandable_segments:true; expandable_segments:False
max_split_size_mb:lots; max_split_size_mb : 64 , expandable_segments : True; pinned_use_background_threads:True
"""


@pytest.mark.parametrize("text", [text for line in TEXTS.strip().splitlines() for text in line.split("; ")])
def test_pytorch_takes_and_refuses_the_same(pytorch, text):
    """A setting is taken exactly where PyTorch's parser takes it, and every field is then the same."""
    setter, _, fields = pytorch
    setter(FRESH)
    try:
        setter(text)
    except (ValueError, RuntimeError):
        with pytest.raises(InputError):
            parse_settings(text)
        return
    ours = parse_settings(text)
    assert ours.max_split_size == min(fields.max_split_size, UNLIMITED)
    for name in ("large_segment_size", "max_non_split_rounding_size", "garbage_collection_threshold", "expandable_segments"):
        assert getattr(ours, name) == getattr(fields, name)


def test_everything_is_read():
    """Each setting lands in its field, in bytes; what changes no device byte is named as passed over."""
    text = (
        "expandable_segments:True,max_split_size_mb:64,max_non_split_rounding_mb:40,large_segment_size_mb:30,"
        "roundup_power2_divisions:[256:1,512:2,>:4],garbage_collection_threshold:0.6,per_process_memory_fraction:0.5,"
        "backend:native,pinned_use_background_threads:True,throw_on_cudamalloc_oom:False"
    )
    assert parse_settings(text) == AllocatorSettings(
        expandable_segments=True, max_split_size=64 * MIB, max_non_split_rounding_size=40 * MIB, large_segment_size=30 * MIB,
        roundup_power2_divisions=(*[1] * 9, 2, *[4] * 6), garbage_collection_threshold=0.6, per_process_memory_fraction=0.5,
        ignored=("pinned_use_background_threads",),
    )  # fmt: skip
    # the rounding of oversize blocks starts from the segment's size (pytorch c10/core/AllocatorConfig.cpp:parseArgs)
    assert parse_settings("large_segment_size_mb:30").max_non_split_rounding_size == 30 * MIB
    assert parse_settings("") == AllocatorSettings()
    # and back to text
    assert parse_settings(settings_text(parse_settings(text))) == parse_settings(text.split(",backend")[0])


def test_the_environment_is_read_in_pytorchs_order():
    """PYTORCH_CUDA_ALLOC_CONF wins over PYTORCH_ALLOC_CONF; without either the defaults hold."""
    both = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "PYTORCH_ALLOC_CONF": "max_split_size_mb:32"}
    assert settings_from_environment(both).max_split_size == 64 * MIB
    assert settings_from_environment({"PYTORCH_ALLOC_CONF": "max_split_size_mb:32"}).max_split_size == 32 * MIB
    assert settings_from_environment({}) == AllocatorSettings()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "max_splt_size_mb:64",
            InputError,
            "max_splt_size_mb is no setting of PyTorch's allocator; did you mean max_split_size_mb?",
        ),
        ("max_split_size_mb", InputError, "max_split_size_mb is not key:value"),
        ("max_split_size_mb:8", InputError, "PYTORCH_CUDA_ALLOC_CONF.max_split_size_mb: 8 is under 20 MiB"),
        ("backend:cudaMallocAsync", NotModelledError, "backend: cudaMallocAsync leaves caching to the driver"),
        ("backend:mine", InputError, "mine is no backend"),
        ("throw_on_cudamalloc_oom:True", NotModelledError, "which is not modelled"),
        ("expandable_segments_reserve:0.5", NotModelledError, "later than 2.13"),
        ("roundup_power2_divisions:[256:1", InputError, "has a bracket without its partner"),
        ("per_process_memory_fraction:1.5", InputError, "lies outside 0 to 1"),
        ("garbage_collection_threshold:nan", InputError, "does not lie between 0 and 1"),
    ],
)
def test_errors_say_what_and_how(text, error, said):
    """What cannot be used is named, with the rule and, where there is one, the way out."""
    with pytest.raises(error) as caught:
        parse_settings(text)
    assert said in str(caught.value)


def test_a_fraction_needs_the_device():
    """A share of an unknown device is refused rather than taken as everything."""
    with pytest.raises(InputError, match="share of a device of unknown size"):
        CachingAllocator(parse_settings("per_process_memory_fraction:0.5"))
