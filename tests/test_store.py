"""Files of a study: what is read back after a crash, a full disk or a second process."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness import store
from harness.data import files
from harness.errors import UserError
from harness.jobs.locks import folder_lock
from harness.parts import sweep
from harness.store import SCHEMA, ResultsTable


def test_json_and_text_round_trip(tmp_path):
    path = tmp_path / "deep" / "a.json"
    store.write_json(path, {"a": np.float64(1.5), "b": np.arange(3), "c": "é", "d": tmp_path})
    assert store.read_json(path) == {"a": 1.5, "b": [0, 1, 2], "c": "é", "d": str(tmp_path)}
    store.write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"], "temporary files stay behind"


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    store.write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left.*a\.txt.*nothing that was finished is lost") as caught:
        store.write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_the_place_of_a_folder_is_named_for_results_and_cache_alike(tmp_path):
    (tmp_path / "file").write_text("")
    for write, folder in ((store.write_bytes, "a folder"), (_to_cache, "a cache folder")):
        with pytest.raises(UserError, match=rf"cannot write .*file/a: .*; choose {folder} that you may write to"):
            write(tmp_path / "file" / "a", b"x")
    assert (tmp_path / "file").read_text() == ""


def _to_cache(path, content):
    files.write_atomically(path, lambda handle: handle.write(content))


def test_a_cache_file_that_cannot_be_filled_leaves_nothing(tmp_path):
    _to_cache(tmp_path / "a", b"old")

    def fill(handle):
        handle.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="no space left"):
        files.write_atomically(tmp_path / "a", fill)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_other_errors_are_not_dressed_up(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        store.write_text(tmp_path / "a", "x")


def test_unreadable_json_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="damaged .it is not JSON"):
        store.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="does not exist"):
        store.read_json(tmp_path / "b.json")


def test_jsonl_survives_a_torn_last_line(tmp_path):
    path = tmp_path / "curve.jsonl"
    assert store.read_jsonl(path) == []
    for step in range(3):
        store.append_jsonl(path, {"step": step, "value": float("nan") if step == 1 else step})
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert [r["step"] for r in store.read_jsonl(path)] == [0, 1]
        store.append_jsonl(path, {"step": 7})
        records = store.read_jsonl(path)
        assert [r["step"] for r in records] == [0, 1, 7]
        assert math.isnan(records[1]["value"])


def test_jsonl_torn_line_longer_than_a_block(tmp_path):
    path = tmp_path / "a.jsonl"
    store.append_jsonl(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b": "' + b"x" * 200_000)
    store.append_jsonl(path, {"a": 2})
    assert store.read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_jsonl_damage_elsewhere_is_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    for value in range(3):
        store.append_jsonl(path, {"a": value})
    whole = path.read_text()
    for damaged in ("nonsense", "null", "{}", "[]", whole.splitlines()[1].replace("1", "5", 1)):
        path.write_text("\n".join([whole.splitlines()[0], damaged, *whole.splitlines()[2:]]) + "\n")
        with pytest.raises(store.Damaged, match="line 2"):
            store.read_jsonl(path)


METRICS = ["none", "none_se", "mauve", "gen_ppl"]


def _row(**more):
    return {"study": "s", "data": "d", "method": "m", "sampler": "a", "cell": "c", "protocol": "p"} | more


def test_results_round_trip_with_stable_dtypes_and_order(tmp_path):
    rows = [
        _row(seed=1, nfe=8, gen_ppl=30.5, mauve=None, zebra=2, words="x"),
        _row(seed=0, nfe=16, gen_ppl=np.float32(2.0), params=np.int64(2**40)),
        _row(seed=0, nfe=8, gen_ppl=3, nfe_latent=4.0, abc=True),
        _row(method="a", seed=None, nfe=None),
    ]
    path = tmp_path / "results.parquet"
    ResultsTable(rows, METRICS).write(path)
    frame = ResultsTable.read(path)
    assert list(frame.columns) == [*SCHEMA, *METRICS, "abc", "words", "zebra"]
    assert {name: str(frame[name].dtype) for name in SCHEMA} == SCHEMA
    assert [str(frame[name].dtype) for name in ("abc", "words", "zebra")] == ["float64", "string", "float64"]
    assert {str(frame[name].dtype) for name in METRICS} == {"float64"} and frame["none_se"].isna().all()
    assert list(frame["method"]) == ["a", "m", "m", "m"]
    assert list(zip(frame["seed"][1:], frame["nfe"][1:], strict=True)) == [(0, 8), (0, 16), (1, 8)]
    assert math.isnan(frame["mauve"][3]) and pd.isna(frame["nfe"][0]) and pd.isna(frame["judge"][0])
    assert frame["params"][2] == 2**40, "integers do not pass through floats"
    pd.testing.assert_frame_equal(frame, ResultsTable(rows[::-1] + rows[:1], METRICS).frame())


def test_results_of_no_rows(tmp_path):
    ResultsTable([]).write(tmp_path / "r.parquet")
    frame = ResultsTable.read(tmp_path / "r.parquet")
    assert len(frame) == 0 and {name: str(frame[name].dtype) for name in SCHEMA} == SCHEMA


@pytest.mark.parametrize("bad", [{"nfe": 2.5}, {"gen_ppl": "12"}, {"judge": 3}, {"seed": float("inf")}])
def test_results_refuse_what_a_column_cannot_hold(bad):
    with pytest.raises((TypeError, OverflowError)):
        ResultsTable([_row(**bad)], METRICS).frame()


def test_reading_no_or_broken_results(tmp_path):
    with pytest.raises(UserError, match="run the study first"):
        ResultsTable.read(tmp_path / "r.parquet")
    (tmp_path / "r.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="not a parquet file"):
        ResultsTable.read(tmp_path / "r.parquet")


_HOLD = """
import sys
from pathlib import Path
from harness.jobs.locks import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_names_the_process_that_holds_it_and_dies_with_it(tmp_path):
    folder = tmp_path / "study"
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"study is in use by process {other.pid}") as caught, folder_lock(folder):
            pass
        assert "\n" not in str(caught.value)
        other.kill()
        other.wait(timeout=10)
        with folder_lock(folder):
            assert (folder / ".lock.pid").read_text() == f"{os.getpid()}\n"
        with folder_lock(folder):
            pass
    finally:
        other.kill()
        other.communicate()


def test_json_written_is_json(tmp_path):
    store.write_json(tmp_path / "a.json", {"x": [1, None]})
    written = json.loads((tmp_path / "a.json").read_text())
    assert written.pop("seal") and written == {"x": [1, None]}


def test_altered_json_is_damaged_whatever_was_altered(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"value": 1.5, "names": ["a", "é"], "nan": math.nan, 7: {"deep": None}})
    read, whole = store.read_json(path), path.read_bytes()
    assert read["7"] == {"deep": None} and math.isnan(read["nan"])
    silent = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            silent.append(store.read_json(path))
        except store.Damaged as error:
            assert error.path == path and "\n" not in str(error)
    # A flipped space between two words of JSON changes no value.
    assert all({**known, "nan": 0} == {**read, "nan": 0} for known in silent)
    for text in ("null", "{}", "[]", "", '{"value": 1.5}'):
        path.write_text(text)
        with pytest.raises(store.Damaged):
            store.read_json(path)


# ---- what a kill leaves -----------------------------------------------------------------------------------------------
_KILLED = """
import os, signal, sys
from pathlib import Path
from harness import store
store.write_atomically(Path(sys.argv[1]), lambda handle: (handle.write(b"half"), os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "a.json")], check=False)
    (left,) = tmp_path.iterdir()
    host = left.name.split(".")[3].split("-")[0]
    others = {
        "of a live process": f".b.json.{host}-{os.getpid()}-0123ab.part",
        "of another machine": ".b.json.0f0f0f-1-0123ab.part",
        "somebody else's": ".b.json.part",
        "not hidden": f"b.json.{host}-1-0123ab.part",
    }
    for name in others.values():
        (tmp_path / name).write_text(name)
    old = tmp_path / ".c.json.0f0f0f-1-0123ab.part"
    old.touch()
    os.utime(old, (1e9, 1e9))
    (tmp_path / "a.json").write_text("whole")
    sweep(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *others.values()}
