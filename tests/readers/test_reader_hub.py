"""hf:org/name against a server of our own on this machine and against caches laid out by hand; nothing goes further."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memcalc.errors import InputError, MissingPackageError
from memcalc.readers.source import read_model

constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub does the fetching")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"model_type": "gpt2", "n_layer": 2, "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float16", "whatever": [1]}


class Hub(BaseHTTPRequestHandler):
    """A Hub with one repository, one that is gated and one without a config."""

    asked: list[str] = []  # noqa: RUF012, shared by the handlers on purpose

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repo == "org/gated":
            return self.refuse(403, "GatedRepo")
        if repo not in ("org/tiny", "org/bare"):
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", "v2", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if file != "config.json" or repo == "org/bare":
            return self.refuse(404, "EntryNotFound")
        content = json.dumps(CONFIG if revision != "v2" else {**CONFIG, "n_layer": 3}).encode()
        self.send_response(200)
        for name, value in (("ETag", f'"{revision}-etag"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


def point_at(monkeypatch, endpoint: str) -> None:
    """Let huggingface_hub ask there and nowhere else."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, no token, a Hub that nothing listens at, and no waiting between tries."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    point_at(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.fixture
def server(cache, monkeypatch):
    """The Hub above, on a free port of this machine; what it was asked for."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.asked.clear()
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    point_at(monkeypatch, f"http://127.0.0.1:{listening.server_port}")
    yield Hub.asked
    listening.shutdown()
    listening.server_close()


def lay_out(cache: Path, repo: str = "org/tiny", config: str | None = None) -> None:
    """A cache as a finished download leaves it."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(CONFIG) if config is None else config)


def test_only_the_config_is_fetched(server, cache):
    """The model is read from config.json, nothing else of the repository was asked for, and the second time nothing at all."""
    for _ in range(2):
        model = read_model("hf:org/tiny")
    assert (model.name, model.family, model.dtype, model.config.num_hidden_layers) == ("org/tiny", "gpt2", "float16", 2)
    asked = [path for path in server if path.startswith("/org/")]  # huggingface_hub asks after itself besides
    # a head to see whether the Hub is there, then its head and its content; once for two readings
    assert asked == ["/org/tiny/resolve/main/config.json"] * 3


def test_a_revision_is_followed(server):
    """What follows the @ is a branch, a tag or a commit."""
    assert read_model("hf:org/tiny@v2").config.num_hidden_layers == 3
    assert read_model({"base": "hf:org/tiny@v2", "n_embd": 96, "n_head": 6}).config.hidden_size == 96


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:org/none", "model: hf:org/none is not a repository of the Hub, or is private; check its name, or give"),
        ("hf:org/gated", "model: hf:org/gated is gated and this token has no access; ask for access and log in"),
        ("hf:org/tiny@v9", "model: hf:org/tiny@v9 names a revision the repository does not have; check what follows the @"),
        ("hf:org/bare", "model: hf:org/bare has no config.json; give the path of a config.json"),
    ],
)
def test_what_the_hub_refuses_is_one_line(server, source, said):
    """An unknown repository, a gated one, an unknown revision and a missing config each say so and exit with 2."""
    with pytest.raises(InputError) as refusal:
        read_model(source)
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_the_cache_is_read_without_a_network(cache):
    """With nothing listening, a config fetched before is read from the cache, and for one that was not the error says why."""
    lay_out(cache)
    assert read_model("hf:org/tiny").config.num_hidden_layers == 2
    with pytest.raises(InputError, match=r"^model: hf:org/other is not in the cache, and the Hub cannot be reached; go online"):
        read_model("hf:org/other")


def test_offline_mode_is_respected(server, cache, monkeypatch):
    """Under HF_HUB_OFFLINE the cache answers and the server is not asked, whether or not the config is there."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lay_out(cache)
    assert read_model("hf:org/tiny").config.num_hidden_layers == 2
    with pytest.raises(InputError, match=r"hf:org/other is not in the cache, and HF_HUB_OFFLINE is set"):
        read_model("hf:org/other")
    assert server == []


def test_the_environment_decides_in_a_process_of_its_own(tmp_path):
    """HF_HOME and HF_HUB_OFFLINE work as they do for huggingface_hub itself."""
    lay_out(tmp_path / "hub")
    code = "from memcalc.readers.source import read_model; print(read_model('hf:org/tiny').num_parameters)"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(read_model({"model_type": "gpt2", "n_layer": 2}).num_parameters), done.stderr


def test_a_broken_config_in_the_cache_is_one_line(cache):
    """A config.json cut short, or one that is a list, is an error that names where it lies."""
    lay_out(cache, config='{"model_type": "gp')
    with pytest.raises(InputError, match=r"config\.json\): is cut short at line 1"):
        read_model("hf:org/tiny")
    lay_out(cache, "org/list", "[1]")
    with pytest.raises(InputError, match=r"hf:org/list has a config\.json that holds no mapping of keys"):
        read_model("hf:org/list")


@pytest.mark.parametrize("name", ["", "/", "a/b/c", "../x", "org/..", "a@", "org/na me", "-x", "org/name@../../etc", "a--b/c"])
def test_what_is_no_repository_asks_nobody(server, name):
    """A malformed name is refused before anything is fetched."""
    with pytest.raises(InputError, match=r"^model: hf:"):
        read_model(f"hf:{name}")
    assert server == []


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    """Where huggingface_hub is not installed, the way out is the extra that brings it."""
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.partition(".")[0] == "huggingface_hub":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError) as missing:
        read_model("hf:org/tiny")
    assert str(missing.value) == "model: huggingface_hub is not installed; pip install 'memcalc[hub]'"
