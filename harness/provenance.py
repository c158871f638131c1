"""Where a number came from: code version, machine, packages; and hashes that identify what was asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch numpy scipy pandas pyarrow transformers tokenizers datasets mauve-text mlflow hydra-core omegaconf optuna "
    "safetensors matplotlib"
)
PACKAGES = tuple(_PACKAGES.split())
UNKNOWN = "unknown"


@dataclass(frozen=True)
class GitState:
    """`sha` is 'unknown' and `dirty` None outside a repository, without git, or before the first commit."""

    sha: str = UNKNOWN
    dirty: bool | None = None

    @property
    def label(self) -> str:
        """The sha, with '-dirty' where files differ from it."""
        return f"{self.sha}-dirty" if self.dirty else self.sha


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None if it could not be run or failed."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],  # a kill would leave a lock behind
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state(folder: Path | None = None) -> GitState:
    """Commit of the code (or of `folder`), and whether tracked or new files differ from it."""
    folder = Path(folder) if folder is not None else Path(__file__).resolve().parent
    # Installed inside the environment of some other project, the code is ignored there and its sha says nothing.
    if _git(folder, "check-ignore", "-q", ".") is not None:
        return GitState()
    sha = _git(folder, "rev-parse", "--verify", "HEAD")
    if not sha:
        return GitState()
    status = _git(folder, "status", "--porcelain")
    return GitState(sha, None if status is None else bool(status))


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by name; those that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_count() -> int:
    """Cores that this process may use, which is fewer than the machine has inside a container or a batch job."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or UNKNOWN


def device_name(device: str) -> str:
    """Name of the hardware behind a torch device string such as 'cpu', 'cuda', 'cuda:1' or 'mps'."""
    if device == "cpu":
        return _cpu_name()
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(device)
    return device


def provenance(device: str = "cpu", folder: Path | None = None) -> dict[str, Any]:
    """A flat JSON-ready record of code, machine and versions for results, logs and reports."""
    git = git_state(folder)
    return {
        "git_sha": git.sha,
        "git_dirty": git.dirty,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_count": cpu_count(),
        "device": device,
        "device_name": device_name(device),
        "python": platform.python_version(),
        "torch": package_versions(("torch",)).get("torch", UNKNOWN),
        "packages": package_versions(),
    }


def _canonical(value: Any) -> Any:
    """`value` in terms of what JSON has; raises `TypeError` for anything whose text form might not be stable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"only text keys have an identity, not {list(value)!r}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's and torch's
        return _canonical(value.tolist())
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{type(value).__name__} has no identity that lasts")


def canonical_json(obj: Any) -> str:
    """One text for equal content: keys sorted, no spaces, ASCII. Raises `ValueError` for NaN and infinities."""
    return json.dumps(_canonical(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity_hash(obj: Any) -> str:
    """sha256 of `canonical_json(obj)` in hexadecimal (64 characters)."""
    return hashlib.sha256(canonical_json(obj).encode("ascii")).hexdigest()


def short_hash(obj: Any, length: int = 12) -> str:
    """The first `length` characters of `identity_hash`, for names of folders and runs."""
    return identity_hash(obj)[:length]
