"""Do two folders of a study hold the same results? `python -m tests.same_results OLD NEW` (each holds results.parquet).

For changes that must not change a number: scores, samples and weights are compared to the bit. Times, provenance and the
names of files are left out, so that a folder of an earlier layout can be the old one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pandas as pd
from safetensors import safe_open

#: A row is known by what people call it: labels and folders may change.
KEY = ["title", "seed", "nfe", "temperature"]
LEFT_OUT = {"seconds_per_seq", "time_ms", "mlflow_run_id", "git_sha", "cell", "protocol", "method", "sampler", "study"}


def _rows(folder: Path) -> pd.DataFrame:
    frame = pd.read_parquet(folder / "results.parquet")
    return frame.sort_values(KEY, na_position="first").reset_index(drop=True)


def different_scores(old: Path, new: Path) -> list[str]:
    """What differs in the tables, in lines."""
    a, b = _rows(old), _rows(new)
    if len(a) != len(b):
        return [f"{len(a)} rows, then {len(b)}"]
    columns = [name for name in a.columns if name not in LEFT_OUT]
    lost = [f"column {name} is gone" for name in columns if name not in b.columns]
    changed = [name for name in columns if name in b.columns and not a[name].equals(b[name].astype(a[name].dtype))]
    return lost + [f"column {name}: {a[name].tolist()} became {b[name].tolist()}" for name in changed]


def _samples(folder: Path) -> dict[str, set[str]]:
    """Hashes of the files of samples, by what their names end in (seed, NFE, temperature)."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("samples/*.jsonl"):
        place = path.stem[path.stem.rindex("-nfe") :]
        found.setdefault(place, set()).add(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def different_samples(old: Path, new: Path) -> list[str]:
    """Budgets at which some method's samples are no longer drawn."""
    known = _samples(new)
    return [f"samples{place} differ" for place, files in _samples(old).items() if not files <= known.get(place, set())]


def _weights(folder: Path) -> dict[str, set[str]]:
    """Hashes of all tensors of a trained model, by its class and seed."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("model.safetensors"):
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["harness"])
            digest = hashlib.sha256()
            for name in sorted(file.keys()):
                digest.update(name.encode() + file.get_tensor(name).numpy().tobytes())
        found.setdefault(f"{meta['config']['_target_']} seed {meta['seed']}", set()).add(digest.hexdigest())
    return found


def different_weights(old: Path, new: Path) -> list[str]:
    """Models whose weights are not there any more."""
    known = _weights(new)
    return [f"weights of {name} differ" for name, files in _weights(old).items() if not files <= known.get(name, set())]


def main(old: str, new: str) -> int:
    """Exit code 0 where all is the same, else 1; what differs is printed."""
    found = [
        line
        for differ in (different_scores, different_samples, different_weights)
        for line in differ(Path(old), Path(new))
    ]
    counts = f"{len(_rows(Path(old)))} rows, {sum(map(len, _samples(Path(old)).values()))} sets of samples, "
    print(counts + f"{sum(map(len, _weights(Path(old)).values()))} models: {len(found)} differences")
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
