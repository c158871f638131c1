"""What MLflow accepts as names and values, and how longer or stranger ones are made to fit without a silent clash."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_NAME, MAX_PARAM, MAX_TAG = 250, 6000, 5000
_STRANGE = re.compile(r"[^\w./: -]", re.ASCII)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:8]


def name(text: str) -> str:
    """A metric, parameter or tag name: strange characters become '_', and long names end in a hash of the whole."""
    clean = posixpath.normpath(_STRANGE.sub("_", text).strip("/ ")).lstrip("./") if text.strip("/ .") else "_"
    return clean if len(clean) <= MAX_NAME else f"{clean[: MAX_NAME - 9]}_{_mark(text)}"


def names(texts: Iterable[str]) -> dict[str, str]:
    """`name` of each text; where two would become one, both carry a hash of the original."""
    clean = {text: name(text) for text in texts}
    taken = list(clean.values())
    return {
        text: short if taken.count(short) == 1 else f"{short[: MAX_NAME - 9]}_{_mark(text)}"
        for text, short in clean.items()
    }


def shorten(text: str, limit: int) -> str:
    """`text`, or its beginning and a hash of the whole where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    tail = f"... [{len(text)} characters, sha256 {hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]}]"
    return text[: limit - len(tail)] + tail


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow stores them: text of at most 6000 characters."""
    clean = names(values)
    return {clean[key]: shorten(_text(value), MAX_PARAM) for key, value in values.items()}


def tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow stores them; a `git_sha` also fills the field that its pages show as the version."""
    clean = names(values)
    made = {clean[key]: shorten(_text(value), MAX_TAG) for key, value in values.items() if value is not None}
    if "git_sha" in made:
        made.setdefault("mlflow.source.git.commit", made["git_sha"])
    return made


def key(text: str) -> str:
    """`text` as a tag that can be searched for: itself if it is plain, else a hash."""
    plain = re.fullmatch(r"[\w./:+=@ -]{1,250}", text, re.ASCII)
    return text if plain else "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def curve_value(value: float | None) -> float:
    """NaN for whatever is not finite: MLflow would otherwise store an infinity as the largest number there is."""
    return float(value) if value is not None and math.isfinite(value) else math.nan
