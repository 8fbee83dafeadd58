"""py: targets written to a folder of the test: built on the meta device, errors told with the person's own file and line."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

from memcalc.errors import InputError, MissingPackageError
from memcalc.readers.source import read_model

torch = pytest.importorskip("torch", reason="live modules are torch's")
from memcalc.runtime.target import load_target  # noqa: E402, needs torch

HEAD = "import torch\nfrom torch import nn\n"


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A folder for the code; what it imports and puts on the path is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def put(app: Path, name: str, body: str) -> None:
    file = app / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HEAD + body)


@pytest.mark.parametrize(
    "target",
    ["py:net:function", "py:net:Net", "py:net:instance", "py:net:Holder.build", "py:pkg.inner:function", "py:net:partial"],
)
def test_functions_classes_instances_and_packages(app, target):
    """A function, a class, a module itself, a static method, a partial and a submodule's function all name a model."""
    body = """
import functools
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(width, 3)
def function():
    return Net()
class Holder:
    @staticmethod
    def build():
        return Net()
instance = Net()
partial = functools.partial(Net, width=4)
"""
    put(app, "net.py", body)
    put(app, "pkg/inner.py", "from net import function")
    model = read_model(target, app_dir=app)
    assert (model.name, model.family, model.architecture, model.num_parameters) == (target, "module", "Net", 15)


def test_the_factory_runs_without_memory(app):
    """A model of four terabytes is built on the meta device at once, and nothing had to be assumed."""
    put(app, "huge.py", "def f(): return nn.Linear(2**20, 2**20, bias=False)")
    loaded = load_target("py:huge:f", app)
    assert loaded.module.weight.device.type == "meta"
    assert (read_model("py:huge:f", app_dir=app).num_parameters, loaded.assumptions) == (2**40, ())


def test_what_cannot_run_on_meta_is_built_for_real_and_said(app):
    """A factory that reads a value off a tensor is built on the CPU, and the answer says so, with its line."""
    put(app, "reads.py", "def f():\n    width = int(torch.tensor(7))\n    return nn.Linear(width, 2)")
    loaded = load_target("py:reads:f", app)
    assert (loaded.module.weight.device.type, tuple(loaded.module.weight.shape)) == ("cpu", (2, 7))
    assert loaded.assumptions[0].startswith(
        "built on the CPU, weights and all: on the meta device the factory fails at reads.py:4 ("
    )
    assert read_model("py:reads:f", app_dir=app).assumptions[0] == loaded.assumptions[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def f():\n    return 1 / 0", r"fails at mine\.py:4 \(ZeroDivisionError: division by zero\); mend it there"),
        ("def f():\n    raise SystemExit(3)", r"fails at mine\.py:4 \(SystemExit: 3\)"),
        ("def f():\n    raise ValueError('one\\ntwo')", r"fails at mine\.py:4 \(ValueError: one\)"),
        ("def g(n):\n    return g(n + 1)\ndef f():\n    return g(0)", r"fails at mine\.py:\d \(RecursionError"),
        ("def f():\n    return nn.Linear('a', 2)", r"fails at mine\.py:4 \(TypeError"),
        ("def f(:", r"fails on import at mine\.py:3 \(SyntaxError"),
        ("x = 1 / 0", r"fails on import at mine\.py:3 \(ZeroDivisionError"),
        ("import sys\nsys.exit(0)", r"fails on import at mine\.py:4 \(SystemExit: 0\)"),
        (
            "import no_such_package_at_all",
            r"fails on import at mine\.py:3 \(ModuleNotFoundError.*; install it where memcalc runs",
        ),
        ("from torch import no_such_name", r"fails on import at mine\.py:3 \(ImportError"),
        ("def f(a, b=1, *c, d, **e): ...", r"needs arguments \(a, d\); name a function that takes none"),
        ("class f(nn.Module):\n    def __init__(self, width): ...", r"needs arguments \(width\)"),
        ("f = 7", r"is an int, not a factory; name a function or a class"),
        ("def f(): return {'a': 1}", r"gives a dict, not a torch\.nn\.Module; return the module itself"),
        ("def f(): return nn.Linear", r"gives a type, not a torch\.nn\.Module"),
        ("def fn(): ...", r"is not there: mine has no f; did you mean fn"),
    ],
)
def test_an_error_in_the_code_is_one_line_with_its_place(app, body, said):
    """Whatever goes wrong in a person's code is one error that names their file and line, and exits with 2."""
    put(app, "mine.py", body)
    with pytest.raises(InputError, match=rf"^model: py:mine:f {said}") as refusal:
        read_model("py:mine:f", app_dir=app)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_an_error_deep_in_a_library_names_the_persons_line(app):
    """Where torch raises, the line told is the last one of the person's own code that led there."""
    put(app, "helper.py", "def build():\n    return nn.MultiheadAttention(7, 2)")
    put(app, "deep.py", "from helper import build\ndef f():\n    return build()")
    with pytest.raises(InputError, match=r"fails at helper\.py:4 \(AssertionError: embed_dim must be divisible"):
        read_model("py:deep:f", app_dir=app)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("py:", "does not name a factory; write it as py:package.module:factory"),
        ("py:mine", "does not name a factory"),
        ("py:mine:", "does not name a factory"),
        ("py:mine.py:f", r"names the module mine\.py, which is not there"),
        ("py:../mine:f", "does not name a factory"),
        ("py:mine:f()", "does not name a factory"),
        ("py:mien:f", r"names the module mien, which is not there; did you mean mine\? \(--app-dir is "),
        ("py:pkg.none:f", r"names the module pkg\.none, which is not there"),
    ],
)
def test_a_target_that_names_nothing(app, target, said):
    """A malformed target and a module that is not there are errors that say where memcalc looked."""
    put(app, "mine.py", "def f(): return nn.Linear(2, 2)")
    put(app, "pkg/__init__.py", "")
    with pytest.raises(InputError, match=said):
        read_model(target, app_dir=app)


def test_prints_go_to_stderr(app, capfd):
    """What code prints on import and in the factory never reaches stdout, which is for the answer."""
    put(app, "loud.py", "print('importing')\ndef f():\n    print('building')\n    return nn.Linear(2, 2)")
    read_model("py:loud:f", app_dir=app)
    out, err = capfd.readouterr()
    assert (out, "importing" in err, "building" in err) == ("", True, True)


def test_the_default_dtype_is_put_back(app):
    """A factory that sets the default dtype has it for its model, and leaves none behind."""
    put(app, "half.py", "def f():\n    torch.set_default_dtype(torch.bfloat16)\n    return nn.Linear(2, 2)")
    assert read_model("py:half:f", app_dir=app).dtype == "bfloat16"
    assert torch.get_default_dtype() == torch.float32


def test_the_current_folder_is_the_default(app, monkeypatch):
    """Without --app-dir the code is looked for where the command runs."""
    put(app, "here.py", "def f(): return nn.Linear(2, 2)")
    monkeypatch.chdir(app)
    assert read_model("py:here:f").num_parameters == 6


def test_two_folders_with_one_name_are_not_mixed_up(app):
    """A second folder whose module bears a name already imported is an error, not the first folder's model."""
    put(app / "one", "net.py", "def f(): return nn.Linear(2, 2)")
    put(app / "two", "net.py", "def f(): return nn.Linear(9, 9)")
    assert read_model("py:net:f", app_dir=app / "one").num_parameters == 6
    with pytest.raises(
        InputError, match=r"means .*two/net\.py, but .*one/net\.py is already imported as net; rename one, or ask"
    ):
        read_model("py:net:f", app_dir=app / "two")


def test_an_app_folder_that_is_none(app):
    """A folder that does not exist is an error of its own."""
    with pytest.raises(InputError, match=r"^app_dir: .*none is not a folder"):
        read_model("py:net:f", app_dir=app / "none")


def test_without_torch_the_error_names_the_extra(app, monkeypatch):
    """Where torch is not installed, a live module cannot be read, and the way out is the extra."""
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError) as missing:
        read_model("py:net:f", app_dir=app)
    assert str(missing.value) == "model: torch is not installed; pip install 'memcalc[torch]'"
