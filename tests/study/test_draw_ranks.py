"""Several processes that draw one cell's samples, and read them as its judge: what one process does, and what a kill leaves."""

import json

import pytest
from safetensors.torch import load_file

from harness.config.load import load
from harness.jobs.launch import launch
from harness.store import read_json
from harness.study import drawing, ranks, reading, steps
from harness.study.cells import make_cells
from harness.study.fit import fit
from harness.study.session import Session
from harness.training.checkpoint import load_tensors
from harness.training.distributed import Group
from tests.kit import rank_kit
from tests.kit.study_kit import command, write_corpus
from tests.kit.toys import one_thread  # noqa: F401


def test_two_processes_draw_the_samples_of_one(tmp_path):
    """Three chunks and two; calls of an adaptive sampler by its threshold, which each process finds for itself."""
    (tmp_path / "spec.json").write_text(json.dumps({"do": "draw", "folder": str(tmp_path)}))
    launch("tests.kit.rank_kit", str(tmp_path / "spec.json"), 2, print, tmp_path / "log")
    both = [json.loads((tmp_path / f"drawn{rank}.json").read_text()) for rank in (0, 1)]
    alone = json.loads(json.dumps(rank_kit.draw(Group())))
    assert both[0] == both[1] == alone
    assert alone["EntropyBounded"][2]["nfe_mean"] > 1 and alone["Ancestral"][2] == {}
    assert alone["Ancestral"][-1] == [19, 19]


def test_a_cell_is_drawn_by_its_processes_and_again_after_a_kill_with_the_same_bits(tmp_path):
    corpus = write_corpus(tmp_path / "words.txt")
    more = ("only=[mdlm]", "train.accumulate=2", "scale.steps=4")
    more += ("compute.processes=2", "compute.sample_batch=8", "train.validations=1")
    session = Session(load(command(corpus, tmp_path / "runs", tmp_path / "cache", *more)).tree)
    cell = make_cells(session)[0]
    fit(session, cell.weights, session.build("mdlm"), lambda *_: None)
    files = [cell.samples(session, part) for part in cell.parts]

    class Killed(Exception):
        pass

    def kill(text: str, done: int, total: int) -> None:
        if files[0].exists():
            raise Killed

    with pytest.raises(Killed):
        steps.draw_cell(session, cell, kill)
    first, shown = files[0].stat().st_mtime_ns, []
    assert not files[1].exists()
    steps.draw_cell(session, cell, lambda *said: shown.append(said))
    assert files[0].stat().st_mtime_ns == first, "what is there is not drawn again"
    assert shown and shown[-1] == ("sample NFE 4", 24, 24)
    assert not (cell.folder / "ranks.json").exists() and not (cell.folder / "ranks.log").exists()
    texts = drawing.samples_file(session, cell, cell.parts[0]).read_text()
    kept, meta = [load_file(file)["x_NL"] for file in files], [load_tensors(file)[1] for file in files]
    for file in files:
        file.unlink()
    drawing.draw_parts(session, cell, lambda *_: None, Group())
    for file, x_NL, cost in zip(files, kept, meta, strict=True):
        assert x_NL.equal(load_file(file)["x_NL"])
        assert cost["flops_per_seq"] == load_tensors(file)[1]["flops_per_seq"] and cost["seconds_per_seq"] > 0
    assert texts == drawing.samples_file(session, cell, cell.parts[0]).read_text()


def test_two_processes_read_a_cells_samples_and_its_scores_are_those_of_one(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "words.txt")
    more = ("only=[bigram,mdlm]", "scale.steps=4", "compute.processes=2", "train.accumulate=2")
    more += ("compute.eval_tokens=64",)  # several batches, so that there is something to share
    session = Session(load(command(corpus, tmp_path / "runs", tmp_path / "cache", *more)).tree)
    _, cell = make_cells(session)
    fit(session, cell.weights, session.build("mdlm"), lambda *_: None)
    drawing.draw_parts(session, cell, lambda *_: None, Group())
    texts = [reading.samples_of(session, cell, part)[0].texts for part in cell.parts]
    protocol = steps.prepare_judge(session, lambda *_: None)
    reader, calls = session.judge.reader, []
    plain, kept = reader._read, set(reader._kept)
    monkeypatch.setattr(reader, "_read", lambda texts, group: calls.append(texts) or plain(texts, group))

    def scored() -> list[dict]:
        steps.score_cell(session, cell, lambda *_: None)
        files = [cell.scores(session, part, protocol) for part in cell.parts]
        found = [read_json(file) for file in files]
        for file in files:
            file.unlink()
        reader._kept.clear()
        return found

    ranks.read_in_ranks(session, cell, protocol, 2, lambda *_: None)
    assert reading.unread(session, cell, protocol) == [] and len(list(cell.folder.glob("read-*"))) == len(cell.parts)
    reading.take_over(session, cell, cell.parts[0], protocol, texts[1])
    assert set(reader._kept) == kept, "what was read of other texts is not taken over"
    by_two = scored()
    assert not any(t in calls for t in texts) and not list(cell.folder.glob("read-*"))
    monkeypatch.setattr(ranks, "read_in_ranks", lambda *_: None)
    alone = scored()
    assert all(t in calls for t in texts)
    for one, two in zip(alone, by_two, strict=True):
        assert one["values"] == two["values"] and one["per_sequence"] == two["per_sequence"]
