"""Live modules, counted tensor by tensor: shared storage once, odd tensors exactly or not at all."""

from __future__ import annotations

import pytest

from memcalc.errors import InputError, NotModelledError
from memcalc.families.base import known_families, load_family
from memcalc.readers.config import model_from_config

torch = pytest.importorskip("torch", reason="live modules are torch's")
from torch import nn  # noqa: E402, needs torch
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

from memcalc.runtime.module import model_from_module  # noqa: E402
from tests.families.kept import cases_of  # noqa: E402
from tests.meta import unfilled  # noqa: E402, F401, for every test here

DEVICES = ("meta", "cpu")


def described(model) -> dict:
    """Name -> (shape, dtype, kind, role, trainable), each name once."""
    rows = [
        (name, (tuple(tensor.shape), tensor.dtype, tensor.kind, tensor.role, tensor.trainable))
        for tensor in model.tensors
        for name in tensor.names()
    ]
    assert len(rows) == len({name for name, _ in rows}) == sum(tensor.count for tensor in model.tensors)
    return dict(rows)


def bytes_of(model) -> int:
    return sum(tensor.nbytes * tensor.count for tensor in model.tensors)


def storages(module: nn.Module) -> int:
    """Bytes of every distinct storage a module registers, as torch itself has them."""
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())}
    return sum(found.values())


@pytest.mark.parametrize("stem", [stem for stem in known_families() if load_family(stem).source.startswith("transformers")])
def test_a_live_module_equals_its_family(stem):
    """A module of transformers and the family composed from layers are one model: tensors, kinds, ties and trainability."""
    transformers = pytest.importorskip("transformers", reason="builds the modules")
    for case in cases_of(stem)[:4]:
        config = transformers.CONFIG_MAPPING[load_family(stem).model_type](**case["config"])
        with torch.device("meta"):
            module = getattr(transformers, case["architecture"])(config)
        config.architectures = [case["architecture"]]
        expected, found = model_from_config(config.to_dict()), model_from_module(module)
        assert described(found) == described(expected)
        assert dict(found.tied) == dict(expected.tied)
        assert (found.num_parameters, found.assumptions) == (expected.num_parameters, ())


class Everything(nn.Module):
    """One of each kind of module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.conv = nn.Conv2d(3, 8, 3, groups=1)
        self.transposed = nn.ConvTranspose1d(2, 2, 3)
        self.table = nn.Embedding(7, 4)
        self.bag = nn.EmbeddingBag(7, 4)
        self.batch = nn.BatchNorm2d(8)
        self.layer = nn.LayerNorm(4)
        self.group = nn.GroupNorm(2, 4)
        self.rms = nn.RMSNorm(4)
        self.instance = nn.InstanceNorm1d(4, affine=True)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.bare = nn.Parameter(torch.zeros(2, 2))


def test_kinds_come_from_the_owners_class():
    """Each module's parameters have the kind of the operator that reads them."""
    with torch.device("meta"):
        found = described(model_from_module(Everything()))
    kinds = {}
    for name, (_, _, kind, role, _) in found.items():
        if role == "parameter":
            kinds.setdefault(name.partition(".")[0], set()).add(kind)
    assert kinds == {
        "linear": {"linear"}, "conv": {"conv"}, "transposed": {"conv"}, "table": {"embedding"}, "bag": {"embedding"},
        "batch": {"batch_norm"}, "layer": {"norm"}, "group": {"norm"}, "rms": {"norm"}, "instance": {"norm"},
        "lstm": {"recurrent"}, "attention": {"linear"}, "bare": {"other"},
    }  # fmt: skip
    assert found["batch.num_batches_tracked"] == ((), "int64", "other", "buffer", True)


@pytest.mark.parametrize("device", DEVICES)
def test_tied_weights_are_counted_once(device):
    """One Parameter under two names is one tensor; the second name says whose it is; a table stays a table."""
    with torch.device(device):
        net = nn.ModuleDict({"head": nn.Linear(4, 7, bias=False), "table": nn.Embedding(7, 4), "copy": nn.Embedding(7, 4)})
        net["table"].weight = net["head"].weight
        shared = nn.Linear(4, 4)
        net["first"], net["second"] = shared, shared
    model = model_from_module(net)
    assert dict(model.tied) == {
        "table.weight": "head.weight", "second.weight": "first.weight", "second.bias": "first.bias",
    }  # fmt: skip
    assert described(model)["head.weight"][2] == "embedding"
    assert (model.num_parameters, bytes_of(model)) == (28 + 28 + 20, storages(net))
    assert model.assumptions == ()


@pytest.mark.parametrize("device", DEVICES)
def test_two_parameters_on_one_storage_are_counted_once_and_said(device):
    """A weight tied by its data is one storage; the answer says that an optimizer will see two parameters."""
    with torch.device(device):
        net = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
        net["head"].weight.data = net["table"].weight.data
    model = model_from_module(net)
    assert dict(model.tied) == {"head.weight": "table.weight"}
    assert bytes_of(model) == storages(net) == 7 * 4 * 4
    assert "two Parameters on one storage" in model.assumptions[0]


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_one_storage_that_do_not_overlap(device):
    """Parameters that divide one flat storage between them are each their own, and together the storage."""
    with torch.device(device):
        flat = torch.zeros(20)
        net = nn.Module()
        net.a, net.b = nn.Parameter(flat[:12].view(3, 4)), nn.Parameter(flat[12:])
        net.register_buffer("whole", flat)
        net.register_buffer("part", flat[3:9])
    model = model_from_module(net)
    assert dict(model.tied) == {"whole": "a", "part": "a"}
    assert bytes_of(model) == storages(net) == 80


@pytest.mark.parametrize("device", DEVICES)
def test_views_that_overlap_in_part_are_not_modelled(device):
    """Two parameters of which one holds a part of the other are refused with both names."""
    with torch.device(device):
        flat = torch.zeros(20)
        net = nn.Module()
        net.a, net.b = nn.Parameter(flat[:12]), nn.Parameter(flat[8:])
    with pytest.raises(
        NotModelledError, match=r"^model\.b: shares part of its storage with a; register the whole and slice it"
    ):
        model_from_module(net)
    columns = nn.Module()
    wide = torch.zeros(4, 6, device=device)
    columns.q, columns.k = nn.Parameter(wide[:, :3]), nn.Parameter(wide[:, 3:])
    with pytest.raises(NotModelledError, match=r"^model\.k: shares part of its storage with q"):
        model_from_module(columns)


def test_a_view_that_keeps_a_larger_storage_alive_is_said():
    """A parameter sliced from something larger counts its own bytes, and the answer names the rest."""
    net = nn.Module()
    net.a = nn.Parameter(torch.zeros(100)[:10])
    model = model_from_module(net)
    assert bytes_of(model) == 40
    assert "a is a view: the other 360 bytes" in model.assumptions[0]


@pytest.mark.parametrize("device", DEVICES)
def test_an_expanded_buffer_is_what_it_stores(device):
    """A buffer expanded a thousandfold stores one element; a trainable parameter like that is refused."""
    with torch.device(device):
        net = nn.Module()
        net.register_buffer("ids", torch.zeros(1, 1).expand(1000, 1))
        bad = nn.Module()
        bad.w = nn.Parameter(torch.zeros(1).expand(5))
    model = model_from_module(net)
    assert bytes_of(model) == storages(net) == 4
    assert "ids is expanded from [1, 1]" in model.assumptions[0]
    with pytest.raises(InputError, match=r"^model\.w: is expanded from \[1\] to \[5\], so that no optimizer can write it"):
        model_from_module(bad)


def test_frozen_parameters_and_mixed_dtypes():
    """What is frozen is a parameter without a gradient; each tensor keeps its own dtype; the model's is the weightiest."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 4).to(torch.bfloat16), nn.Linear(4, 4), nn.LayerNorm(4)).requires_grad_(True)
        net[1].weight.requires_grad_(False)
        net[0].extra = nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    model = model_from_module(net)
    found = described(model)
    assert found["1.weight"][4] is False
    assert (found["0.weight"][1], found["1.bias"][1], model.dtype) == ("bfloat16", "float32", "bfloat16")
    assert (model.num_parameters, model.num_trainable_parameters) == (100 + 20 + 20 + 8, 100 + 20 + 4 + 8)


def test_a_tie_trains_if_either_name_does():
    """A frozen view and a trainable parameter on one storage are one trainable tensor."""
    net = nn.Module()
    net.a = nn.Parameter(torch.zeros(4), requires_grad=False)
    net.b = nn.Parameter(net.a.data)
    assert model_from_module(net).num_trainable_parameters == 4


class Doubled(nn.Module):
    """A parametrisation without tensors of its own."""

    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), {"original0": (3, 1), "original1": (3, 4)}),
        (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), {"original": (3, 4), "_u": (3,), "_v": (4,)}),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 3)), {"weight_g": (3, 1), "weight_v": (3, 4)}),
    ],
)
def test_parametrisations(make, expected):
    """A parametrised weight is the tensors it is computed from, under their own names, and the bias beside it."""
    with torch.device("meta"):
        net = make()
    found = described(model_from_module(net))
    assert {name.rpartition(".")[2]: row[0] for name, row in found.items()} == {"bias": (3,), **expected}
    assert {row[2] for name, row in found.items() if row[3] == "parameter" and name != "bias"} == {"other"}
    assert found["bias"][2] == "linear"


def test_a_parametrisation_of_ones_own_and_a_tie_through_it():
    """register_parametrization keeps one original, which a second module may share."""
    net = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    net[1].weight = net[0].weight
    parametrize.register_parametrization(net[0], "weight", Doubled())
    model = model_from_module(net)
    assert bytes_of(model) == storages(net) == 64


def test_buffers_persistent_or_not():
    """Buffers count whether or not a checkpoint would hold them, and ones tied to a parameter take nothing more."""
    net = nn.Linear(2, 2, bias=False)
    net.register_buffer("kept", torch.zeros(3))
    net.register_buffer("passing", torch.zeros(5, dtype=torch.int64), persistent=False)
    net.register_buffer("alias", net.weight.data)
    net.register_buffer("none", None)
    model = model_from_module(net)
    assert {name: row[3] for name, row in described(model).items()} == {
        "weight": "parameter",
        "kept": "buffer",
        "passing": "buffer",
    }
    assert dict(model.tied) == {"alias": "weight"}
    assert bytes_of(model) == storages(net) == 16 + 12 + 40


def test_lazy_modules_are_an_error_with_a_way_out():
    """A parameter without a shape cannot be counted; the error says how to give it one."""
    with pytest.raises(InputError, match=r"^model\.0\.weight: is a lazy parameter that has no shape yet; run a batch through"):
        model_from_module(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(InputError, match=r"^model\.\w+: is a lazy parameter"):
        model_from_module(nn.LazyBatchNorm1d())


@pytest.mark.parametrize(
    "dtype", ["complex64", "complex128", "float64", "float16", "bfloat16", "float8_e4m3fn", "uint8", "bool", "uint16"]
)
def test_dtypes_have_torchs_own_sizes(dtype):
    """Complex, eight-bit and integer tensors have the bytes torch gives them, trainable where torch lets them be."""
    kind = getattr(torch, dtype)
    net = nn.Module()
    net.w = nn.Parameter(
        torch.zeros(3, 5, dtype=torch.float32).to(kind), requires_grad=kind.is_floating_point or kind.is_complex
    )
    model = model_from_module(net)
    assert bytes_of(model) == storages(net)
    assert described(model)["w"][1::3] == (dtype, kind.is_floating_point or kind.is_complex)


def test_tensors_without_elements():
    """Tensors of no elements are kept under their names and take no bytes, however many share nothing."""
    net = nn.Module()
    net.a, net.b, net.c = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.zeros(0)), nn.Parameter(torch.tensor(1.0))
    model = model_from_module(net)
    assert {name: row[0] for name, row in described(model).items()} == {"a": (0, 4), "b": (0,), "c": ()}
    assert (model.num_parameters, bytes_of(model)) == (1, 4)
    assert model_from_module(nn.Identity()).tensors == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo is a layout whose bytes depend on its values"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr is a layout"),
        (lambda: torch.zeros(3).to_mkldnn(), "_mkldnn is a layout"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested is a layout"),
        (lambda: torch.zeros(2, dtype=torch.complex32), "complex32 is a dtype memcalc does not count"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_layouts_and_dtypes_that_are_not_modelled(make, said):
    """Sparse and nested tensors, and dtypes without a known size, are refused by name and never guessed."""
    net = nn.Module()
    net.register_buffer("odd", make())
    with pytest.raises(NotModelledError, match=rf"^model\.odd: {said}"):
        model_from_module(net)


def test_a_quantised_tensor_subclass_is_what_it_stores():
    """A frozen weight wrapped by torchao counts its packed integers, and its scales as buffers, to the byte."""
    quantization = pytest.importorskip("torchao.quantization", reason="makes the tensor subclass")
    net = nn.Sequential(nn.Linear(64, 64))
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    weight = net[0].weight
    inner = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    model = model_from_module(net)
    assert bytes_of(model) == sum(part.nbytes for part in inner) + 64 * 4
    assert model.num_parameters == 64 * 64 + 64
    assert "0.weight is a frozen Int8Tensor of 4,096 elements, counted as what it stores" in model.assumptions


class Wrapper(torch.Tensor):
    """The least a traceable wrapper is."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return cls(args[0].inner) if func is torch.ops.aten.detach.default else NotImplemented


def test_a_trainable_tensor_subclass_is_not_modelled():
    """What a trainable wrapper's gradient and states are is its own affair: refused by name."""
    net = nn.Module()
    net.w = nn.Parameter(Wrapper(torch.zeros(3)))
    with pytest.raises(
        NotModelledError, match=r"^model\.w: Wrapper is a wrapper whose gradient and optimizer states depend on it"
    ):
        model_from_module(net)


def test_repeated_layers_are_counted_and_shared_tables_are_not_lost_in_them():
    """Equal layers are one tensor with a count; one that others are tied to keeps a line of its own."""
    with torch.device("meta"):
        net = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        net[11].weight = net[3].weight
    model = model_from_module(net)
    assert [(tensor.name, tensor.count) for tensor in model.tensors] == [("3.weight", 1), ("*.weight", 10), ("*.bias", 12)]
    assert dict(model.tied) == {"11.weight": "3.weight"}


def test_a_compiled_module_is_the_module_it_wraps():
    """torch.compile's wrapper adds no name and no tensor."""
    net = nn.Linear(2, 2)
    assert model_from_module(torch.compile(net)) == model_from_module(net)


def test_a_large_mixture_is_read_in_seconds():
    """Ten thousand parameters on the meta device become a handful of counted tensors."""
    with torch.device("meta"):
        net = nn.ModuleList(nn.ModuleList(nn.Linear(4, 4) for _ in range(50)) for _ in range(100))
    model = model_from_module(net)
    assert [(tensor.name, tensor.count) for tensor in model.tensors] == [("*.*.weight", 5_000), ("*.*.bias", 5_000)]
