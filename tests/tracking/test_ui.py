"""What `make ui` prints and runs."""

import contextlib
import os
import socket
import sqlite3

from harness.tracking import ui


def test_ui_names_the_store_and_needs_one(tmp_path, capsys, monkeypatch):
    assert ui.main([str(tmp_path)]) == 2
    assert "run a study first" in capsys.readouterr().err
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        base.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        base.execute("CREATE TABLE runs (experiment_id INTEGER, start_time INTEGER)")
        base.execute("INSERT INTO experiments VALUES (0, 'Default'), (3, 'smoke')")
        base.execute("INSERT INTO runs VALUES (3, 5)")
        base.commit()
    called = []
    monkeypatch.setattr(os, "execve", lambda program, line, environment: called.append((line, environment)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ui.main([str(tmp_path), "--port", str(port)])
    said = capsys.readouterr().out
    assert (
        f"port {port} is taken" in said and f"smoke: http://127.0.0.1:{called[0][0][9]}/#/experiments/3/runs?" in said
    )
    ui.main([str(tmp_path), "--port", "5001"])
    line, environment = called[1]
    assert line[2:] == [
        "mlflow",
        "ui",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--host",
        "127.0.0.1",
        "--port",
        "5001",
        "--workers",
        "1",
    ]
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in capsys.readouterr().out
