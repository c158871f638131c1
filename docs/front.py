"""The numbers and samples of README's first screen, from a study's results: `python docs/front.py` writes them in.

Nothing there is typed by hand: a test compares README with what this makes of `docs/results/few_step`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.report.aggregate import aggregate, labelled
from harness.report.table import markdown, measured
from harness.store import ResultsTable
from harness.study.rows import first_samples

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "few_step"
BEGIN, END = "<!-- made by docs/front.py -->", "<!-- end -->"
#: Method and sampler of the rows that are shown, and what the table calls them; those that a study has.
ROWS = {
    ("data", ""): "Held-out text",
    ("ngram", "counts"): "Best n-gram: counts, no network",
    ("ngram5", "counts"): "5-gram: counts, no network",
    ("mdlm", "ancestral"): "MDLM",
    ("seq_embedded", "embedded"): "SEQ, noisy embeddings (LDDM)",
    ("seq_discrete", "codes"): "SEQ, EM codes (LDDM)",
    ("fuji", "path"): "FUJI (LDDM)",
}
BUDGETS, EXCERPT, AT = (2, 4, 8), 60, 4


def table(results: Path) -> str:
    """Perplexity and MAUVE of the chosen rows at NFE 2, 4 and 8; what has no budget stands in the first column of each."""
    frame = labelled(ResultsTable.read(results / "results.parquet"))
    shown = aggregate(frame.assign(label=frame["method"] + "/" + frame["sampler"].fillna("")), ["gen_ppl", "mauve"])
    rows = []
    for (method, sampler), name in ROWS.items():
        own = shown[shown["label"] == f"{method}/{sampler}"].set_index("nfe")
        if own.empty:
            continue
        cells = [name]
        for column in ("gen_ppl", "mauve"):
            for nfe in BUDGETS:
                row = own.loc[nfe] if nfe in own.index else own.iloc[0] if nfe == BUDGETS[0] else None
                cells.append("" if row is None else measured(row[column], row[f"{column}_error"]))
        rows.append(cells)
    header = ["", *(f"gen. PPL ↓ at NFE {nfe}" if nfe == 2 else str(nfe) for nfe in BUDGETS)]
    header += [f"MAUVE ↑ at {nfe}" if nfe == 2 else str(nfe) for nfe in BUDGETS]
    return markdown(header, rows)


def samples(results: Path) -> str:
    """The first two samples of the rows at 4 calls, not chosen."""
    lines = []
    for (method, sampler), name in ROWS.items():
        stem = f"{method}-{sampler}-seed0" if sampler else method
        found = sorted((results / "samples").glob(f"{stem}-nfe*-T1.jsonl"))
        here = [path for path in found if f"-nfe{AT:04d}-" in path.name] or found
        lines += [[name, f"`{line['text'][:EXCERPT]}`"] for line in (first_samples(here[0], 2) if here else ())]
    return markdown([f"at {AT} calls", "the first samples, not chosen"], lines)


def front(results: Path = RESULTS) -> str:
    """What stands between the marks in README."""
    return f"{BEGIN}\n{samples(results)}\n\n{table(results)}\n{END}"


def main() -> int:
    """Put it into README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    path.write_text(before + front() + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
