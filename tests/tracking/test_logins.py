"""A login in `tracking.uri` goes to the server alone: it is in no file, on no terminal, and in nothing that is logged."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from harness.config.load import load
from harness.errors import UserError
from harness.tracking.uri import redact, resolve_store, scrub, without_logins
from tests.kit.study_kit import invoke
from tests.kit.study_plugins import write_configs
from tests.kit.tracking_server import tracking_server

USER, PASSWORD = "alice", "S3cret/P@ss"
#: The password as it may be written: as it is, in a URI, and in both halves.
FORMS = (PASSWORD, quote(PASSWORD, safe=""), "S3cret", "ss@127")


def _files(folder: Path) -> list[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def _clean(text: str) -> bool:
    return not any(form in text for form in FORMS)


@pytest.mark.usefixtures("threads")
def test_a_login_reaches_the_server_and_nothing_else(tmp_path):
    toy = [*write_configs(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    with tracking_server(USER, PASSWORD) as server:
        uri = f"http://{USER}:{quote(PASSWORD, safe='')}@{server.address}"
        tracked = [*toy, "tracking.enabled=true", "tracking.system_metrics=false", f"tracking.uri='{uri}'"]
        said = invoke(tracked)
        shown = invoke([*tracked, "--cfg", "job"])
    assert said.code == 0, said.err
    assert shown.code == 0 and f"uri: http://***@{server.address}" in shown.out and _clean(shown.out)
    sent = "\n".join(server.received)
    assert "tracking.uri" in sent and "log-batch" in sent and "report.md" in sent and "config.yaml" in sent
    assert _clean(sent), "parameters, tags and artifacts"
    assert f"MLflow   http://***@{server.address}" in said.out and _clean(said.out + said.err)
    written = _files(tmp_path / "runs") + _files(tmp_path / "cache")
    assert len(written) > 10
    assert [path for path, content in written if not _clean(content.decode("utf-8", "replace"))] == []
    assert f"http://***@{server.address}" in (tmp_path / "runs" / "toy" / "config.yaml").read_text()


@pytest.mark.usefixtures("threads")
def test_a_wrong_login_is_refused_in_one_line_without_it(tmp_path):
    toy = [*write_configs(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    with tracking_server(USER, "another") as server:
        uri = f"http://{USER}:{quote(PASSWORD, safe='')}@{server.address}"
        said = invoke([*toy, "tracking.enabled=true", f"tracking.uri={uri}"])
    assert said.code == 2 and said.error.startswith("error: tracking at http://***@127.0.0.1") and _clean(said.err)
    assert server.turned_away and not server.received
    for path, content in _files(tmp_path / "runs"):
        assert _clean(content.decode("utf-8", "replace")), path


@pytest.mark.parametrize(
    "wrong",
    ["tracking.enabled=URI", "scale.width=URI", "study.name='URI'", "tracking.url=URI", "URI"],
)
def test_what_quotes_an_argument_leaves_out_its_login(wrong):
    uri = f"postgresql://{USER}:{PASSWORD}@127.0.0.1/db"
    said = invoke(["study=smoke", wrong.replace("URI", uri)])
    assert said.code == 2 and said.err.count("\n") == 1 and _clean(said.err), said.err


@pytest.mark.parametrize(
    "uri",
    [
        f"http://{USER}:{PASSWORD}@127.0.0.1",
        f"http://{USER}:S3cret wi@th sp#aces@127.0.0.1:5000/x",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DS3cret&x=1",
        "http://h/?access_token=S3cret&x=1",
        f"postgresql+psycopg2://{USER}:S3cret@h:5432/db?sslpassword=S3cret",
    ],
)
def test_a_uri_is_shown_without_login(uri):
    assert "S3cret" not in redact(uri) and "aces" not in redact(uri) and "S3cret" not in redact(f"tracking.uri='{uri}'")


def test_of_a_text_only_the_logins_are_left_out():
    said = "no host for http://me:S3cret@h/api (retry), see method@methods.x and a@b.c"
    assert without_logins(said) == "no host for http://***@h/api (retry), see method@methods.x and a@b.c"
    assert scrub("user me with S3cr@t, S3cr%40t", "http://me:S3cr%40t@h") == "user *** with ***, ***"


@pytest.mark.parametrize("uri", ["http://me:S3c/ret@h:1/x", "postgresql://me:S3c#ret@h/db", "http://me:[S3cret@h"])
def test_an_address_that_a_password_ends_early_is_refused(uri, tmp_path):
    with pytest.raises(UserError, match="is no address; write / .* as %2F") as caught:
        resolve_store(uri, tmp_path)
    assert "S3c" not in str(caught.value) and "ret" not in str(caught.value)


# ---- MLflow's own variable --------------------------------------------------------------------------------------------
def test_the_variable_of_mlflow_is_honoured_where_the_configuration_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:S3cret@tracking:5000")
    assert resolve_store(None, tmp_path).uri == "http://me:S3cret@tracking:5000"
    assert resolve_store("http://other", tmp_path).uri == "http://other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "  ")
    assert resolve_store(None, tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI=./mlruns is a folder.*use tracking.uri=sqlite:///"):
        resolve_store(None, tmp_path)


@pytest.mark.usefixtures("threads")
def test_a_study_logs_to_the_server_that_the_variable_names(tmp_path, monkeypatch):
    toy = [*write_configs(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    with tracking_server(USER, "pw") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{USER}:pw@{server.address}")
        said = invoke([*toy, "tracking.enabled=true", "tracking.system_metrics=false"])
    assert said.code == 0 and f"MLflow   http://***@{server.address}" in said.out
    assert server.received and not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_home_folder_is_one_in_the_address_of_a_store_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_store("sqlite:///~/mine.db", Path("runs")).uri == f"sqlite:///{tmp_path}/mine.db"
    tree = load(["study=smoke", "tracking.uri=http://me:pw@h"]).tree
    assert tree["tracking"]["uri"] == "http://***@h" and "pw" not in os.environ.get("MLFLOW_TRACKING_URI", "")
