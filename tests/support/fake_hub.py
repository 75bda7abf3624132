"""A small Hugging Face hub on this machine: repositories, branches, uploads, single commits, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """Answers as the hub does. `repositories[kind, name][branch]` is a list of commits, each the files of then.

    token    who else asks is refused
    refuse   how many uploads are refused still, as where a line breaks
    asked    (method, path) of every request; `sent` the bytes of every upload by their hash
    """

    def __init__(self, token: str = "hf_right") -> None:
        self.token, self.refuse = token, 0
        self.repositories: dict[tuple[str, str], dict[str, list[dict[str, bytes]]]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self)

            do_POST = do_PUT = do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, kind: str, name: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds now."""
        return self.repositories[kind, name][branch][-1]

    def answer(self, request: Any) -> None:
        path = request.path.partition("?")[0]
        self.asked.append((request.command, path))
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        if request.command != "PUT" and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.say(request, 401, {"error": "Invalid credentials"})
        for pattern, work in (
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", lambda *_: (200, {"errors": [], "warnings": []})),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/branch/([^/]+)", self.branch),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/preupload/([^/]+)", self.preupload),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/commit/([^/]+)", self.commit),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/([^/]+)", self.revision),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/upload/(\w+)", self.upload),
            (r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                return self.say(request, *work(body, *match.groups()))
        return self.say(request, 404, {"error": f"no {path}"})

    def say(self, request: Any, status: int, told: Any, headers: dict[str, str] | None = None) -> None:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    # --- endpoints --------------------------------------------------------------------------------------

    def create(self, body: bytes) -> tuple[int, Any]:
        told = json.loads(body)
        name = f"{told['organization']}/{told['name']}" if told.get("organization") else f"me/{told['name']}"
        key = told.get("type", "model"), name
        if key in self.repositories:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{name}"}
        self.repositories[key] = {"main": [{}]}
        self.private[key] = bool(told.get("private")) or told.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{'datasets/' if key[0] == 'dataset' else ''}{name}", "name": name}

    def branch(self, _: bytes, kind: str, name: str, branch: str) -> tuple[int, Any]:
        branches = self.repositories[kind, name]
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = list(branches["main"])
        return 201, {}

    def preupload(self, body: bytes, *_: str) -> tuple[int, Any]:
        large = (".safetensors", ".arrow", ".parquet", "c.0.0.0", "c.0.0")
        told = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
             "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        return 200, {"files": told}

    def batch(self, body: bytes, *_: str) -> tuple[int, Any]:
        told = []
        for one in json.loads(body)["objects"]:
            there = one["oid"] in self.objects
            told.append(one | ({} if there else {"actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}}))
        return 200, {"transfer": "basic", "objects": told}

    def upload(self, body: bytes, oid: str) -> tuple[int, Any]:
        if self.refuse:
            self.refuse -= 1
            return 400, {"error": "the line broke"}
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        return 200, {}

    def commit(self, body: bytes, kind: str, name: str, branch: str) -> tuple[int, Any]:
        branches = self.repositories[kind, name]
        files = dict(branches[branch][-1])
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        branches[branch].append(files)
        where = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return 200, {"success": True, "commitOid": self.oid(files), "commitUrl": f"{where}/commit/{self.oid(files)}"}

    def revision(self, _: bytes, kind: str, name: str, revision: str) -> tuple[int, Any]:
        files = self.at(kind, name, revision)
        if files is None:
            return 404, {"error": "Repository not found"}
        told = {"id": name, "sha": self.oid(files), "siblings": [{"rfilename": path} for path in files]}
        return 200, told | {"private": False, "tags": [], "downloads": 0}

    def tree(self, _: bytes, kind: str, name: str, revision: str) -> tuple[int, Any]:
        files = self.at(kind, name, revision) or {}
        told = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()]  # fmt: skip
        return 200, told

    def resolve(self, _: bytes, dataset: str | None, name: str, revision: str, path: str) -> Any:
        files = self.at("dataset" if dataset else "model", name, revision)
        if files is None or path not in files:
            code = "EntryNotFound" if files is not None else "RepoNotFound"
            return 404, {"error": code}, {"X-Error-Code": code}
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        return 200, files[path], {"X-Repo-Commit": self.oid(files), "ETag": etag}

    def at(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.repositories.get((kind, name), {})
        if revision in branches:
            return branches[revision][-1]
        return next((one for all_ in branches.values() for one in all_ if self.oid(one) == revision), None)

    def oid(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1()
        for path in sorted(files):
            digest.update(path.encode() + hashlib.sha256(files[path]).digest())
        return digest.hexdigest()
