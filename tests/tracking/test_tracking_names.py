"""Which store a URI names, how it is printed, and names and values that fit into MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig
from harness.errors import UserError
from harness.tracking import names, uri
from harness.tracking.mlflow_tracker import MlflowTracker


@pytest.mark.parametrize("bad", ["file:///tmp/mlruns", "./mlruns", "mlruns", "/tmp/mlruns", "file:mlruns"])
def test_folders_are_refused_with_the_way_out(bad, tmp_path):
    with pytest.raises(UserError, match=r"is a folder.*sqlite:////.*mlruns/mlflow\.db") as caught:
        MlflowTracker(TrackingConfig(uri=bad), tmp_path)
    assert "\n" not in str(caught.value)


def test_which_store_a_uri_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = uri.resolve_store(None, Path("runs"))
    assert default.uri == f"sqlite:///{tmp_path}/runs/mlflow.db" and default.uri.startswith("sqlite:////")
    assert default.artifacts == f"file://{tmp_path}/runs/mlartifacts"
    assert uri.resolve_store("sqlite:///a/b.db", tmp_path).uri == f"sqlite:///{tmp_path}/a/b.db"
    assert uri.resolve_store("http://h:5000", tmp_path) == uri.Store("http://h:5000", None)
    assert uri.resolve_store("postgresql+psycopg2://h/x", tmp_path).artifacts == f"file://{tmp_path}/mlartifacts"
    for bad, why in [
        ("sqlite:///:memory:", "nothing would be kept"),
        ("htp://h", "did you mean 'http'"),
        ("sqlite://", "no file"),
    ]:
        with pytest.raises(UserError, match=why):
            uri.resolve_store(bad, tmp_path)
    with pytest.raises(UserError, match="choose another folder"):
        uri.resolve_store(None, tmp_path / "a?b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h:1/x", "http://h:1/x"),
        ("http://ann:p/w@h:1", "http://***@h:1"),
        ("mysql://a:b@c@h/x?ssl=1&password=q", "mysql://***@h/x?ssl=1&password=***"),
        ("http://h?access_token=abc&x=1", "http://h?access_token=***&x=1"),
    ],
)
def test_redaction(text, shown):
    assert uri.redact(text) == shown


def test_scrub_takes_the_login_out_of_any_text():
    text = uri.scrub("login 'ann' failed\n with s3cret! and s3cret%21", "postgresql://ann:s3cret!@h/x")
    assert text == "login '***' failed with *** and ***"


def test_names_fit_and_do_not_clash():
    assert names.name("loss/total (nats)") == "loss/total _nats_"
    assert names.name("../up//x") == "up/x"
    assert len(names.name("a" * 400)) == 250 and names.name("a" * 400) != names.name("a" * 401)
    clean = names.names(["a+b", "a*b", "c"])
    assert len(set(clean.values())) == 3 and clean["c"] == "c"
    long = names.params({"k": "y" * 9000})["k"]
    assert (
        len(long) == 6000 and "9000 characters, sha256" in long and long != names.params({"k": "y" * 8999 + "z"})["k"]
    )
    assert names.params({"a": None, "b": [1, 2], "c": True, "d": "x"}) == {
        "a": "null",
        "b": "[1, 2]",
        "c": "true",
        "d": "x",
    }
