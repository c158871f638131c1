"""A stand-in for the hub on loopback: makes repositories and takes commits, and keeps what it was sent in a folder."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class HubStandIn:
    """`with HubStandIn(folder) as hub:` serves at `hub.address`; `hub.made` are the repositories that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 - the name that http.server gives it
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._send(stand_in.answer(self.path, body))

            def log_message(self, *arguments):
                pass

            def _send(self, answer: dict) -> None:
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict:
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return {"url": f"{self.address}/me/model", "name": "me/model"}
        if "/preupload/" in path:  # every file may stand in the commit itself
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.folder / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            return {"commitUrl": f"{self.address}/me/model/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
        return {"errors": [], "warnings": []}  # the card's front matter
