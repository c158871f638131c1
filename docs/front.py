"""The numbers and samples of README, from studies' results: `python docs/front.py` writes them in.

Nothing there is typed by hand: a test compares README with what this makes of `few_step` and `rivals` in `docs/results`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from harness.report.aggregate import EQUIVALENT, aggregate, labelled
from harness.report.table import markdown, measured, number
from harness.store import ResultsTable
from harness.study.rows import first_samples

ROOT = Path(__file__).resolve().parent.parent
RESULTS, OF_RIVALS = (ROOT / "docs" / "results" / name for name in ("few_step", "rivals/docstrings"))
BEGIN, END = "<!-- made by docs/front.py -->", "<!-- end -->"
BEGIN_RIVALS, END_RIVALS = "<!-- rivals, made by docs/front.py -->", "<!-- end of rivals -->"
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
RIVALS = {
    ("data", ""): "Held-out text",
    ("ngram", "counts"): "Best n-gram: counts, no network",
    ("ar", "left_to_right"): "Autoregressive, 64 calls",
    ("mdlm", "ancestral"): "MDLM",
    ("sdtt", "chosen_round"): "MDLM + SDTT",
    ("duo", "uniform"): "Duo",
    ("dcd", "uniform"): "Duo + DCD",
    ("noise_mdlm", "noise"): "MDLM + noise",
    ("mdlm_chain", "chain"): "MDLM + n-grams in its head",
    ("seq_embedded", "embedded"): "SEQ, noisy embeddings (LDDM)",
    ("seq_discrete", "codes"): "SEQ, EM codes (LDDM)",
    ("seq_distilled", "codes"): "SEQ, EM codes + SDTT (LDDM)",
}
#: Budgets, and by how much a row at equal cost may be above so many calls of MDLM: networks that see the time cost 2 % more.
STRICT, EQUAL, WITHIN = (1, 2, 4, 8, 16), (2, 4, 8), 1.025


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


def _by_row(results: Path, names: list[str]) -> dict[tuple[str, str], pd.DataFrame]:
    """The aggregated rows of each method and sampler, by budget."""
    frame = labelled(ResultsTable.read(results / "results.parquet"))
    keys = frame["method"] + "/" + frame["sampler"].fillna("")
    shown = aggregate(frame.assign(label=keys), names)
    return {tuple(str(label).split("/")): own.set_index("nfe") for label, own in shown.groupby("label")}  # type: ignore[misc]


def rivals(results: Path = OF_RIVALS) -> str:
    """Perplexity at strict budgets and at those of equal sampling FLOPs, MAUVE at strict ones; errors are in the report."""
    found = _by_row(results, ["gen_ppl", "mauve", EQUIVALENT.name])
    rows = []
    for key, name in RIVALS.items():
        if key not in found:
            continue
        own = found[key]
        single = len(own) == 1
        cells = [name]
        for column, budgets in (("gen_ppl", STRICT), ("mauve", BUDGETS)):
            shown = own[column] if not single else pd.Series({budgets[0]: own[column].iloc[0]})
            cells += [number(shown[nfe]) if nfe in shown.index else "" for nfe in budgets]
        within = [own[own[EQUIVALENT.name] <= limit * WITHIN] for limit in EQUAL] if not single else []
        equal = [number(w["gen_ppl"].iloc[-1]) if len(w) else "" for w in within] or [""] * len(EQUAL)
        rows.append([*cells[: 1 + len(STRICT)], *equal, *cells[1 + len(STRICT) :]])
    header = ["", *(f"PPL at NFE {n}" if n == STRICT[0] else str(n) for n in STRICT)]
    header += [f"at the cost of {n} calls of MDLM" if n == EQUAL[0] else str(n) for n in EQUAL]
    header += [f"MAUVE at {n}" if n == BUDGETS[0] else str(n) for n in BUDGETS]
    return f"{BEGIN_RIVALS}\n{markdown(header, rows)}\n{END_RIVALS}"


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


def put(text: str, made: str) -> str:
    """`text` with what `made` begins and ends with, and all between, in the place of what it had there."""
    begin, *_, end = made.splitlines()
    return text[: text.index(begin)] + made + text[text.index(end, text.index(begin)) + len(end) :]


def main() -> int:
    """Put both into README.md."""
    path = ROOT / "README.md"
    path.write_text(put(put(path.read_text(encoding="utf-8"), front()), rivals()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
