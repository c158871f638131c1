"""Files of a study: atomic writers, append-only JSON lines and the table of results.

Whatever is read after a crash is either a whole file or, in a `.jsonl`, all lines but the one that was being written. JSON
carries a hash of what it holds: one that was altered since is named (`Damaged`) and never read as if nothing had happened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from harness.errors import UserError
from harness.parts import part_of

if TYPE_CHECKING:
    import pandas as pd

#: The last key of each JSON file and each line of ours: a hash of the rest.
_HASH = "seal"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class Damaged(UserError):
    """A file of ours that does not hold what was written into it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged ({reason}); delete this file and run the same command again to have it made again"
        )
        self.path, self.reason = Path(path), reason


@contextmanager
def _explained(path: Path, folder: str = "folder") -> Iterator[None]:
    """Turn a full disk or a place that cannot be written to into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"no space left on the disk while writing {path}; nothing that was finished is lost: "
                "free some space and run the same command again"
            ) from None
        if error.errno in _FORBIDDEN:
            raise UserError(f"cannot write {path}: {error.strerror}; choose a {folder} that you may write to") from None
        raise


def write_atomically(path: Path, fill: Callable[[BinaryIO], object], folder: str = "folder") -> None:
    """`fill` a temporary file beside `path`, then put it in its place: readers see the old file or the whole new one.

    Raises `UserError` where the disk is full or the place cannot be written to; `folder` is what the message calls it.
    """
    path = Path(path)
    part = part_of(path)
    with _explained(path, folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as handle:
                fill(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _plain(value: Any) -> Any:
    """What `json` does not know: numpy scalars and arrays become numbers and lists, paths become text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Raises `UserError` where the disk is full or the folder read-only."""
    write_atomically(path, lambda handle: handle.write(content))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step; raises as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON reads it back, with a hash of it as its last entry."""
    plain = json.loads(json.dumps(record, ensure_ascii=False, default=_plain))
    return plain | {_HASH: _hash_of(plain)}


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def unsealed(text: str) -> dict[str, Any]:
    """The record of `sealed` in a JSON text, without its hash; `ValueError` where it is something else, or was altered."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(record, dict) or _HASH not in record:
        raise ValueError("its hash is not there")
    if record.pop(_HASH) != _hash_of(record):
        raise ValueError("its content has another hash")
    return record


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replace `path` by indented JSON with its hash, in one step; not-a-number as Python's `json` writes it."""
    write_text(path, json.dumps(sealed(record), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; raises `UserError` if it is missing and `Damaged` if it is anything else."""
    try:
        return unsealed(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise Damaged(path, str(error)) from None


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record and its hash as a line, in one write; a torn line that a crash left at the end is cut off first."""
    path = Path(path)
    line = (json.dumps(sealed(record), ensure_ascii=False) + "\n").encode("utf-8")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as handle:
            cut_torn_line(handle)
            if handle.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_torn_line(handle: Any) -> None:
    """Take off a last line without its newline, as a killed writer leaves it: the next one would be glued to it."""
    end = handle.seek(0, os.SEEK_END)
    whole = _end_of_whole_lines(handle, end)
    if whole < end:
        handle.truncate(whole)


def _end_of_whole_lines(handle: Any, end: int, block: int = 65536) -> int:
    """Position after the last newline before `end`, read backwards in blocks."""
    position = end
    while position > 0:
        start = max(0, position - block)
        handle.seek(start)
        found = handle.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines of `path` (none if it does not exist). A last line without its newline was torn and is left out.

    Raises `Damaged` for any other line that is not as it was written, which no crash of ours leaves behind.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            records.append(unsealed(line.decode("utf-8")))
        except ValueError as error:
            raise Damaged(path, f"line {number}: {error}") from None
    return records


# Columns of results.parquet that every study has, in this order. Those of its metrics and others follow.
_TEXT, _INTEGER, _REAL = "string", "Int64", "float64"
SCHEMA: dict[str, str] = {
    "study": _TEXT,
    "data": _TEXT,
    "method": _TEXT,
    "sampler": _TEXT,
    "title": _TEXT,
    "role": _TEXT,
    "seed": _INTEGER,
    "nfe": _INTEGER,
    "nfe_latent": _INTEGER,
    "nfe_token": _INTEGER,
    "temperature": _REAL,
    "n": _INTEGER,
    "nelbo_nats_per_token": _REAL,
    "nelbo_se": _REAL,
    "bits_per_token": _REAL,
    "flops_per_seq": _REAL,
    "equivalent_nfe": _REAL,
    "seconds_per_seq": _REAL,
    "params": _INTEGER,
    "train_tokens": _INTEGER,
    "train_flops": _REAL,
    "judge": _TEXT,
    "protocol": _TEXT,
    "git_sha": _TEXT,
    "git_sha_train": _TEXT,
    "git_sha_score": _TEXT,
    "device": _TEXT,
    "dtype": _TEXT,
    "torch": _TEXT,
    "mlflow_run_id": _TEXT,
    "cell": _TEXT,
    "time_ms": _REAL,
}
_PLAIN = {_TEXT: str, _INTEGER: int, _REAL: float}
_SORT = ("study", "data", "method", "sampler", "seed", "nfe", "temperature", "cell")


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(value, float) and math.isnan(value)


def _cast(name: str, value: Any, kind: str) -> Any:
    """`value` as the column wants it; unknown stays unknown. Raises `TypeError` rather than make a number up."""
    if type(value) is _PLAIN[kind]:  # nearly all are, and a large table has many
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if _is_missing(value):
        return float("nan") if kind == _REAL else None
    if kind == _TEXT and isinstance(value, str):
        return value
    if kind == _REAL and isinstance(value, (int, float)):
        return float(value)
    if kind == _INTEGER and isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    raise TypeError(f"results column '{name}' holds {kind} and was given {value!r}")


class ResultsTable:
    """Rows of measurements as one parquet file whose dtypes and order do not depend on the order of arrival."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), columns: Sequence[str] = ()) -> None:
        """`columns` of numbers, such as those of metrics, follow the schema's, and are there even without a value."""
        self.rows: list[Mapping[str, Any]] = list(rows)
        self._columns = columns

    def frame(self):
        """A `pandas.DataFrame`: the schema's columns, those given, others by name; sorted; equal rows kept once."""
        import pandas as pd

        schema = SCHEMA | {name: _REAL for name in self._columns if name not in SCHEMA}
        for name in sorted(set().union(*self.rows).difference(schema)):
            schema[name] = _TEXT if any(isinstance(row.get(name), str) for row in self.rows) else _REAL
        columns = {
            name: pd.array([_cast(name, row.get(name), kind) for row in self.rows], dtype=kind)
            for name, kind in schema.items()
        }
        frame = pd.DataFrame(columns).drop_duplicates()
        return frame.sort_values(list(_SORT), kind="stable", na_position="first").reset_index(drop=True)

    def write(self, path: Path) -> None:
        """Replace the parquet file at `path` in one step."""
        write_parquet(path, self.frame())

    @classmethod
    def read(cls, path: Path):
        """The frame that `write` stored, with the same dtypes; raises `UserError` if there is none."""
        import pandas as pd

        if not Path(path).is_file():
            raise UserError(f"{path} does not exist: run the study first")
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a parquet file ({str(error).splitlines()[0]})") from None
        kinds = {name: SCHEMA.get(name) for name in frame.columns}
        return frame.astype(
            {name: kind or (_REAL if frame[name].dtype.kind in "fiu" else _TEXT) for name, kind in kinds.items()}
        )


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Replace `path` by a `pandas.DataFrame` as parquet (no index) in one step."""
    write_atomically(path, lambda handle: frame.to_parquet(handle, engine="pyarrow", index=False))
