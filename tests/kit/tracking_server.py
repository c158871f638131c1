"""A tracking server that asks for a login, speaks as much of MLflow's protocol as a study uses, and keeps what it is sent."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TrackingServer(ThreadingHTTPServer):
    """`received` is all that came with the right login, as text; `turned_away` counts the requests without it."""

    def __init__(self, user: str, password: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.login = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.received: list[str] = []
        self.turned_away = 0
        self.runs: dict[str, dict[str, Any]] = {}

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: TrackingServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("utf-8", "replace")
        if self.headers.get("Authorization") != self.server.login:
            self.server.turned_away += 1
            self._send(401, {"error_code": "UNAUTHENTICATED", "message": "who are you?"})
            return
        self.server.received.append(f"{self.path} {body}")
        self._send(200, self._content(self.path.split("?")[0].rsplit("/", 1)[-1], self.path, body))

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def _content(self, call: str, path: str, body: str) -> dict[str, Any]:
        if call == "get-by-name":
            place = {"artifact_location": "mlflow-artifacts:/0", "lifecycle_stage": "active"}
            return {"experiment": {"experiment_id": "0", "name": "toy"} | place}
        if call == "create" and "/runs/" in path:
            given = json.loads(body)
            run_id = uuid.uuid4().hex  # MLflow's client remembers where the artifacts of a run go
            info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "0", "status": "RUNNING"}
            info |= {"artifact_uri": f"mlflow-artifacts:/0/{run_id}", "lifecycle_stage": "active"}
            self.server.runs[run_id] = {"info": info, "data": {"tags": given.get("tags", [])}}
            return {"run": self.server.runs[run_id]}
        if call == "get" and "/runs/" in path:
            return {"run": self.server.runs[path.split("run_id=")[1].split("&")[0]]}
        return {"run_info": {"run_id": "0"}} if call == "update" else {}

    def _send(self, code: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextlib.contextmanager
def tracking_server(user: str, password: str) -> Iterator[TrackingServer]:
    """The server while the block lasts."""
    server = TrackingServer(user, password)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
