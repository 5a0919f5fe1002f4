"""A stand-in for the hub on this machine: it answers what an upload of a model asks, and holds what was committed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub(ThreadingHTTPServer):
    """Requests in their order, and the files of the commits by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.asked.append(("POST", path))
        self.server.tokens.add(self.headers["Authorization"])
        if path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.say({"url": f"{self.server.address}/me/policy"})
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif path.endswith("/commit/main"):
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.say({"errors": [], "warnings": []})  # of the card's YAML

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.say({"id": "me/policy", "sha": "0" * 40, "siblings": [], "tags": []})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.server.commits.append(line["value"])
            else:
                assert line["value"]["encoding"] == "base64"
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        place = f"{self.server.address}/me/policy/commit/{'1' * 40}"
        self.say({"success": True, "commitOid": "1" * 40, "commitUrl": place, "hookOutput": ""})

    def say(self, found: dict[str, Any]) -> None:
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: Any) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
