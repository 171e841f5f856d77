"""A small hub on loopback that serves models as the public one does: listings, branches, files whole or in part.

Large files (safetensors) are known by their sha256 and, where `redirect` is set, lie on another host; small ones
by git's sha1. The knobs break what networks break: `cut` ends answers after so many bytes, `hold` stops in
mid-file until it is let go, `damage` flips a byte, `ranges` forgets how to go on, `refuse` gives an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

FIRST, SECOND = "a" * 40, "b" * 40


class FakeHub:
    """`models` is {name: {commit: {file: bytes}}}, `refs` is {name: {branch: commit}}."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.token = ""  #: without it in a request, files are refused
        self.gated = False
        self.refuse: dict[str, tuple[int, str]] = {}  #: {a part of the path: (status, the hub's error code)}
        self.times: dict[str, int] = {}  #: how often each of them still is refused; always where it isn't here
        self.cut: int | None = None
        self.hold: int | None = None
        self.held, self.go_on = threading.Event(), threading.Event()
        self.ranges, self.redirect = True, False
        self.damage: set[str] = set()
        self.endless, self.hung_up = False, threading.Event()  #: more than there is, until the reader hangs up
        self.requests: list[tuple[str, str, dict[str, str]]] = []  #: (method, host and path, headers)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        self.url, self.other = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Mapping[str, bytes], commit: str = FIRST, **refs: str) -> None:
        """A model's commit, at `main` or where `refs` says."""
        self.models.setdefault(name, {})[commit] = dict(files)
        self.refs.setdefault(name, {}).update(refs or {"main": commit})

    def asked(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        """The headers of the requests whose path has `part` in it."""
        return [headers for made, path, headers in list(self.requests) if made == method and part in path]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                path = unquote(self.path)
                hub.requests.append((self.command, f"{self.headers['Host']}{path}", dict(self.headers)))
                hub._answer(self, path)

            do_GET = do_HEAD = _serve

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _answer(self, to: BaseHTTPRequestHandler, path: str) -> None:
        # A data set is served as a model is, at addresses of its own.
        path = path.replace("/api/datasets/", "/api/models/", 1).removeprefix("/datasets")
        for part, (status, code) in self.refuse.items():
            if part in path and self.times.get(part, 1) > 0:
                if part in self.times:
                    self.times[part] -= 1
                return _send(to, status, b"{}", {"X-Error-Code": code} if code else {})
        if found := re.match(r"/api/models/([^/]+/[^/?]+)/refs", path):
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in self.refs.get(found[1], {}).items()
            ]
            return _json(to, {"branches": branches, "tags": [], "converts": []})
        if found := re.match(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?$", path):
            return self._listing(to, found[1], found[2] or "main")
        if found := re.match(r"/([^/]+/[^/]+)/resolve/([^?]+)$", path):
            return self._file(to, found[1], found[2])
        if found := re.match(r"/bytes/([0-9a-f]{64})$", path):
            every = (
                file for model in self.models.values() for commit in model.values() for file in commit.items()
            )
            name, content = next(one for one in every if hashlib.sha256(one[1]).hexdigest() == found[1])
            return self._send_file(to, name, content, {})
        return _send(to, 404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _commit(self, name: str, revision: str) -> str | None:
        commit = self.refs.get(name, {}).get(revision, revision)
        return commit if commit in self.models.get(name, {}) else None

    def _missing(self, to: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.models:  # the public hub says 401 to who has no token
            known = "Authorization" in to.headers
            return _send(to, 404 if known else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        return _send(to, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def _listing(self, to: BaseHTTPRequestHandler, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return self._missing(to, name)
        siblings: list[dict[str, Any]] = []
        for file, content in self.models[name][commit].items():
            entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git_sha(content)}
            if is_large(file):
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return _json(to, {"id": name, "sha": commit, "private": False, "siblings": siblings})

    def _file(self, to: BaseHTTPRequestHandler, name: str, rest: str) -> None:
        revision, _, file = rest.partition("/")
        commit = self._commit(name, revision)
        if commit is None:
            return self._missing(to, name)
        if self.token and to.headers["Authorization"] != f"Bearer {self.token}":
            code = {"X-Error-Code": "GatedRepo"} if self.gated else {"X-Error-Code": "RepoNotFound"}
            return _send(to, 403 if "Authorization" in to.headers else 401, b"{}", code)
        content = self.models[name][commit].get(file)
        if content is None:
            return _send(to, 404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        sha = hashlib.sha256(content).hexdigest()
        told = {"X-Repo-Commit": commit, "ETag": f'"{sha if is_large(file) else git_sha(content)}"'}
        if self.redirect and is_large(file):
            told |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
            return _send(to, 302, b"", {**told, "Location": f"{self.other}/bytes/{sha}"})
        return self._send_file(to, file, content, told)

    def _send_file(self, to: BaseHTTPRequestHandler, file: str, content: bytes, told: dict[str, str]) -> None:
        begin, status = 0, 200
        if self.ranges and (asked := re.match(r"bytes=(\d+)-", to.headers.get("Range", ""))):
            begin, status = int(asked[1]), 206
            told |= {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        if file in self.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        rest = content[begin:]
        to.send_response(status)
        endless = self.endless and is_large(file) and to.command == "GET"
        length = {} if endless else {"Content-Length": str(len(rest))}
        for key, value in {**told, **length, "Accept-Ranges": "bytes"}.items():
            to.send_header(key, value)
        to.end_headers()
        if to.command == "HEAD":
            return
        try:
            if is_large(file) and self.hold is not None:
                to.wfile.write(rest[: self.hold])
                to.wfile.flush()
                rest = rest[self.hold :]
                self.held.set()
                self.go_on.wait()
            whole = not is_large(file) or self.cut is None or len(rest) <= self.cut
            to.wfile.write(rest if whole else rest[: self.cut])
            for _ in range(64 if endless else 0):
                to.wfile.write(bytes(1 << 20))
        except OSError:
            self.hung_up.set()  # whoever asked has gone
        to.close_connection = True


def is_large(file: str) -> bool:
    return file.endswith((".safetensors", ".bin"))


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _json(to: BaseHTTPRequestHandler, found: Any) -> None:
    _send(to, 200, json.dumps(found).encode(), {"Content-Type": "application/json"})


def _send(to: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    to.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        to.send_header(key, value)
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)
