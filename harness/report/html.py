"""A report as one HTML file that needs nothing beside it: figures are inside."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

from harness.store import write_text

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; white-space: nowrap; }}
img {{ max-width: 100%; }}
pre {{ background: #f6f6f6; padding: .6rem; white-space: pre-wrap; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_html(report: Path) -> Path:
    """Write `report.html` beside a `report.md`, with the PNG files that it shows; returns its path."""
    text = report.read_text(encoding="utf-8")
    # Raw HTML stays text: a sample may hold anything.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<img src="([^":]+)"', lambda found: f'<img src="{_inside(report.parent / found[1])}"', body)
    title = text.partition("\n")[0].lstrip("# ")
    path = report.with_suffix(".html")
    write_text(path, _PAGE.format(title=_plain(title), body=body))
    return path


def _inside(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else path.name


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
