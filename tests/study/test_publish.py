"""Publishing by made-up files: what is read and written how often, rows as files appear, and one place for each sampler."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from dataclasses import replace

import pytest

from harness.store import ResultsTable, read_json, write_json
from harness.study import publish
from harness.study.publish import Publisher
from harness.study.tasks import JUDGE
from tests.kit.publish_kit import PROTOCOL, cells_of, made_up_session, write_scores, write_training


@pytest.fixture
def session(tmp_path):
    return made_up_session(tmp_path, 4)


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each file was opened for reading from here on, by name below the last folder."""
    counts: Counter[str] = Counter()
    real = io.open

    def counted(path, mode="r", *args, **more):
        if "r" in mode and not isinstance(path, int):
            counts["/".join(str(path).split("/")[-2:])] += 1
        return real(path, mode, *args, **more)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", counted)
    return counts


def frame_of(session):
    return ResultsTable.read(session.folder / "results.parquet")


def test_each_file_is_read_once_and_not_once_a_refresh(session, reads):
    cells, data = cells_of(session)
    for cell in (*cells, data):
        write_training(cell)
        write_scores(session, cell)
    reads.clear()
    with Publisher(session, cells, data, "test") as publisher:
        for cell in (*cells, data):
            publisher.job_done(("train", cell.name), cell)
            publisher.job_done(("score", cell.name), cell)
            publisher.refresh()
        publisher.finish({})
    once = {
        name: count
        for name, count in reads.items()
        if name.split("/")[-1].startswith(("facts", "cost", "scores", "curves"))
    }
    assert len(once) == 2 * 5 + 4 * 2 + 1 + 5 and set(once.values()) == {1}
    assert reads["smoke/protocol.json"] <= 4, "and not for every row"
    samples = [count for name, count in reads.items() if name.startswith("samples/")]
    assert len(samples) == 9 and max(samples) <= 2, "for tracking, and those of one seed for the report"


def test_the_table_is_written_every_few_seconds_and_at_the_end(session, monkeypatch):
    cells, data = cells_of(session)
    written = []
    monkeypatch.setattr(publish, "write_parquet", lambda path, frame: written.append(len(frame)))
    now = [0.0]
    monkeypatch.setattr(publish.time, "monotonic", lambda: now[0])
    with Publisher(session, cells, data, "test") as publisher:
        for cell in cells:
            write_scores(session, cell)
            publisher.job_done(("score", cell.name), cell)
            publisher.tick()
            now[0] += 2.0
        assert written == [2, 8], "at once, and when five seconds have passed"
        publisher.tick()
        assert written == [2, 8], "nothing is new"
        publisher.finish({})
    assert written == [2, 8, 8]


def test_rows_come_as_their_files_do_and_leave_with_their_protocol(session):
    cells, data = cells_of(session)
    write_scores(session, cells[0])
    late = cells[0].scores(session, cells[0].parts[1], PROTOCOL)
    kept = read_json(late)
    late.unlink()
    facts = cells[0].facts(session)
    bound = read_json(facts)
    facts.unlink()
    with Publisher(session, cells, data, "test") as publisher:
        first = publisher.refresh()
        assert list(first["nfe"]) == [2] and first["nelbo_nats_per_token"].isna().all()
        write_json(facts, bound)
        assert list(publisher.refresh()["nelbo_nats_per_token"]) == [2.5]
        write_json(late, kept)
        assert list(publisher.refresh()["nfe"]) == [2, 4]
        write_json(session.folder / "protocol.json", {"id": "another", "judge": "somebody", "held_out_ppl": 1.0})
        publisher.job_done(JUDGE, None)
        assert publisher.protocol() == "another" and publisher.refresh().empty
    assert list(frame_of(session)["nfe"]) == [2, 4], "a table without rows does not take the place of one"


def test_metrics_are_columns_in_the_order_of_the_study(session):
    cells, data = cells_of(session)
    write_scores(session, cells[0])
    with Publisher(session, cells, data, "test") as publisher:
        publisher.refresh()
    names = [part for column in session.columns for part in (column.name, f"{column.name}_se")]
    columns = list(frame_of(session).columns)
    assert columns[columns.index(names[0]) :][: len(names)] == names and frame_of(session)[names].notna().all(axis=None)


def test_two_samplers_of_one_model_have_places_of_their_own_and_one_curve(session):
    cells, data = cells_of(session)
    for cell in cells:
        write_training(cell)
    first = [replace(cell, sampler="first") for cell in cells]
    second = [replace(c, sampler="second", folder=c.folder / "second") for c in cells]
    for cell in (*first, *second):
        write_scores(session, cell)
    with Publisher(session, [*first, *second], data, "test") as publisher:
        for cell in (*first, *second):
            publisher.job_done(("train", cell.name), cell)
        context = publisher._context(publisher.refresh(), {})
        frame = publisher.refresh()
    assert dict(frame["sampler"].value_counts()) == {"first": 8, "second": 8}
    (curves,) = context["curves"].values()
    title = first[0].title
    assert list(curves["series"]) == [f"{title} (mdlm, first)"] and len(curves["series"][f"{title} (mdlm, first)"]) == 4
    assert {row["title"] for row in context["samples"]} == {f"{title} (mdlm, {name})" for name in ("first", "second")}
