"""What the tests of whole studies share: a corpus, a command line of a tiny study, and looking at what it left behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from harness import run

_WORDS = "the of and a to in is was he for it with as his on be at by had not are but from or have an they which one you were"
METHODS = ("unigram", "bigram", "ngram", "ar", "mdlm", "fuji", "seq", "seq_discrete")
#: (method, sampler) of each row of the study.
ROWS = (
    ("unigram", "counts"), ("bigram", "counts"), ("ngram", "counts"), ("ar", "left_to_right"), ("mdlm", "ancestral"),
    ("fuji", "path"), ("seq", "diffusion"), ("seq_discrete", "codes"), ("seq_discrete", "encoder"),
)  # fmt: skip
BUDGETS = (2, 4)


def write_corpus(path: Path, lines: int = 1200) -> Path:
    """Lines of twelve words, the same at each call; about 60 kB."""
    rng = np.random.default_rng(0)
    words = _WORDS.split()
    rows = rng.integers(len(words), size=(lines, 12))
    path.write_text("\n".join(" ".join(words[i] for i in row) + "." for row in rows) + "\n", encoding="utf-8")
    return path


def command(corpus: Path, runs: Path, cache: Path, *more: str) -> list[str]:
    """Arguments of a smoke study on `corpus`: seconds on one core, in float32, so that it is the same anywhere."""
    return [
        "study=smoke",
        "data=text",
        f"data.path={corpus}",
        f"runs_dir={runs}",
        f"cache_dir={cache}",
        "tokenizer=characters",
        "study.samples=24",
        "study.bound_sequences=24",
        "scale.steps=60",
        "train.checkpoint_seconds=0.2",
        "train.checkpoint_share=1",
        "train.validations=3",
        "judge.steps=60",
        "judge.vocab=300",
        "judge.context=32",
        "judge.checkpoint_every=10",
        "judge.precision=float32",
        "compute.device=cpu",
        "compute.precision=float32",
        "compute.workers=1",
        "tracking.system_metrics=false",
        *([] if any(word.startswith("tracking.enabled") for word in more) else ["tracking.enabled=false"]),
        *more,
    ]


@dataclass(frozen=True)
class Said:
    """Exit code and text of a command that ran in this process; `err` is without the workers' own output."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on standard error."""
        return (self.err.strip().splitlines() or [""])[-1]


def invoke(arguments: list[str]) -> Said:
    """Run the command line in this process; an exception that escapes it is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(arguments)
    return Said(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, str]:
    """Hash of each file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class _ThreadWorker:
    """A thread in the place of a worker process."""

    exitcode = 1

    def __init__(self, target, args, daemon, ours) -> None:
        def life() -> None:
            try:
                target(*args)
            except Exception:  # what would be on a worker's standard error
                traceback.print_exc()
            finally:
                args[0].close()

        self._ours = ours
        self._thread = threading.Thread(target=life, daemon=daemon)
        self.start, self.join, self.is_alive = self._thread.start, self._thread.join, self._thread.is_alive

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(None)


class _ThreadContext:
    def Pipe(self):  # noqa: N802 - the name that multiprocessing gives it
        self._ours, theirs = multiprocessing.Pipe()
        return self._ours, _Kept(theirs)

    def Process(self, target, args, daemon):  # noqa: N802
        theirs, *rest = args
        return _ThreadWorker(target, (theirs.pipe, *rest), daemon, self._ours)


@dataclass
class _Kept:
    """The worker's end of a pipe: the pool closes its copy, which a thread shares."""

    pipe: object

    def close(self) -> None:
        pass


def use_threads(monkeypatch) -> None:
    """Run the workers' own code in threads: the same jobs and messages, without seconds of imports for each test."""
    # PDF and SVG take as long as the PNG; `test_figures.py` looks at them.
    monkeypatch.setattr("harness.report.canvas.VECTORS", ())
    monkeypatch.setattr("harness.jobs.pool.die_with_parent", lambda parent: None)
    monkeypatch.setattr("harness.jobs.pool._quieten", lambda log: None)
    monkeypatch.setattr("harness.jobs.pool.multiprocessing", SimpleNamespace(get_context=lambda _: _ThreadContext()))
