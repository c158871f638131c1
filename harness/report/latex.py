"""A table of the report for a paper: LaTeX with `booktabs`."""

from __future__ import annotations

import re

_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\rightarrow$", "▲": r"$\blacktriangle$", "†": r"\dag{}",
    "×": r"$\times$", "—": "---", "–": "--", "…": r"\dots{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))


def latex_table(text: str) -> str:
    """A Markdown table, with the paragraph under it as caption, as a `table` of LaTeX that needs the package `booktabs`."""
    lines = text.splitlines()
    rows = [[_cell(cell) for cell in _cells(line)] for line in lines if line.startswith("|")]
    header, body = rows[0], rows[2:]
    kinds = "".join("r" if cell.strip().endswith(":") else "l" for cell in _cells(lines[1]))
    caption = _cell(" ".join(line for line in lines if line and not line.startswith("|")))
    made = [
        "% \\usepackage{booktabs}", "\\begin{table}", "\\centering",
        f"\\begin{{tabular}}{{{kinds}}}", "\\toprule", _row(header),
        "\\midrule", *map(_row, body), "\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}", "",
    ]  # fmt: skip
    return "\n".join(made)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(text: str) -> str:
    """Signs escaped, bold and italics kept."""
    text = _SIGN.sub(lambda found: _SIGNS[found[0]], text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return re.sub(r"\*(.+?)\*", r"\\emph{\1}", text)
