"""Models named on the hub: found in a cache, downloaded from a hub of our own, pinned to a commit."""

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import hub_models
import huggingface_hub
import pytest
from huggingface_hub import constants

from compal.errors import CompalError, InputError
from compal.pipeline import hub_files
from compal.pipeline.encoder import load_encoder, resolve

pytest.importorskip("transformers")
OLD, NEW = "a" * 40, "b" * 40
CAPTIONS = ["a red cube", "two dogs"]


@pytest.fixture(scope="module")
def commits(tmp_path_factory):
    """The files of two commits of one model."""
    root = tmp_path_factory.mktemp("commits")
    for seed, commit in enumerate((OLD, NEW)):
        hub_models.save("clip", root / commit, seed)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return folder


def put(cache, commits, commit, branch="main"):
    """A commit into the cache as huggingface_hub lays it out: refs, snapshots of links, blobs."""
    model = cache / "models--org--name"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir(exist_ok=True)
    for file in (commits / commit).iterdir():
        blob = model / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if branch:
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / branch).write_text(commit)
    return snapshot


@pytest.fixture
def offline(cache, monkeypatch):
    """Whoever asks for a network fails the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def fail(*_, **__):
        raise AssertionError("asked for a network")

    monkeypatch.setattr("socket.create_connection", fail)


@pytest.mark.usefixtures("offline")
def test_the_commit_is_pinned_in_name_and_spec(cache, commits):
    put(cache, commits, OLD)
    spec = resolve("hf:org/name")
    assert spec.backbone == f"hf:org/name@{OLD}"
    assert spec.extra["revision"] == OLD
    assert spec == resolve("hf:org/name@main") == resolve(f"hf:org/name@{OLD}") == resolve(spec.backbone)
    assert spec.weights == resolve(f"hf:{commits / OLD}").weights


@pytest.mark.usefixtures("offline")
def test_a_spec_is_loaded_again_after_the_branch_moved_on(cache, commits):
    put(cache, commits, OLD)
    spec = resolve("hf:org/name")
    before = load_encoder(spec).encode_texts(CAPTIONS).pooled
    put(cache, commits, NEW)
    moved = resolve("hf:org/name")
    assert moved.extra["revision"] == NEW
    assert moved.fingerprint != spec.fingerprint
    assert before.equal(load_encoder(spec).encode_texts(CAPTIONS).pooled)
    assert not before.equal(load_encoder(moved).encode_texts(CAPTIONS).pooled)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["org/name@dev", f"org/name@{NEW}", "org/other"])
def test_what_the_cache_lacks_says_so_offline(cache, commits, name):
    put(cache, commits, OLD)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set") as found:
        resolve(f"hf:{name}")
    assert "\n" not in str(found.value)
    assert "HF_HOME" in found.value.cure
    assert name in found.value.what


@pytest.mark.usefixtures("offline")
def test_a_cache_that_is_not_whole_is_not_taken(cache, commits):
    snapshot = put(cache, commits, OLD)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not on this machine"):
        resolve("hf:org/name")
    assert hub_files.locate("org/name", weights=False).revision == OLD


def test_no_network_is_one_line(cache, monkeypatch):
    monkeypatch.setattr(hub_files, "reachable", lambda host, port=443: False)
    with pytest.raises(InputError, match="cannot be reached") as found:
        resolve("hf:org/name")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:", "is no folder and no org/name"),
        ("hf:name", "is no folder and no org/name"),
        ("hf:org/name/more", "is no folder and no org/name"),
        ("hf:org/name@", "is no folder and no org/name"),
        ("hf:org/../name", "is no folder and no org/name"),
        ("hf:org/name@../main", "is no folder and no org/name"),
        ("hf:/no/where", "model folder /no/where is not there"),
        ("hf:./no-where", "is not there"),
    ],
)
def test_wrong_names_are_one_line(cache, name, says):
    with pytest.raises(CompalError, match=says) as found:
        resolve(name)
    assert "\n" not in str(found.value)
    assert found.value.cure


@pytest.fixture
def hub(commits, monkeypatch):
    """A hub on localhost that has the model at NEW; `hub.asked` are the paths."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body=True):
            path = unquote(self.path.partition("?")[0])
            server.asked.append(f"{self.command} {path}")
            files = [*(file.name for file in (commits / NEW).iterdir()), "pytorch_model.bin", "notes.md"]
            if path.startswith("/api/models/org/name/revision/"):
                siblings = [{"rfilename": name} for name in files]
                return self.reply(json.dumps({"id": "org/name", "sha": NEW, "siblings": siblings}).encode(), {}, body)
            if path.startswith("/api/models/org/name/tree/"):
                tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in files]
                return self.reply(json.dumps(tree).encode(), {}, body)
            name = path.rpartition("/")[2]
            if path == f"/org/name/resolve/{NEW}/{name}" and (commits / NEW / name).is_file():
                headers = {"X-Repo-Commit": NEW, "ETag": f'"{name}"'}
                return self.reply((commits / NEW / name).read_bytes(), headers, body)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()

        def reply(self, data, headers, body):
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self):
            self.answer()

        def do_HEAD(self):
            self.answer(body=False)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("ENDPOINT", "_HF_DEFAULT_ENDPOINT"):
        monkeypatch.setattr(constants, name, url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_a_model_is_downloaded_once(cache, commits, hub, monkeypatch):
    spec = resolve("hf:org/name")
    assert spec.backbone == f"hf:org/name@{NEW}"
    assert spec.weights == resolve(f"hf:{commits / NEW}").weights
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /org")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "notes.md"}
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("hf:org/name") == spec
    load_encoder(spec)
    assert hub.asked == []


def test_what_the_hub_does_not_have_is_one_line(cache, hub):
    with pytest.raises(InputError, match="org/other cannot be downloaded") as found:
        resolve("hf:org/other")
    assert "\n" not in str(found.value)
