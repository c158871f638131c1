"""How much memory processes of this machine or container can have, and whether the kernel killed any for it."""

from __future__ import annotations

from pathlib import Path

import psutil

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroup versions 2 and 1
_KILLS = ("memory.events", "memory.oom_control")


def _groups() -> list[Path]:
    """Folders of the memory groups that this process is in, each before those that hold it."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            home = _GROUPS / controllers
            here = home / place.lstrip("/")  # inside of a container it may not be there; those above are
            found += [path for path in (here, *here.parents) if path.is_relative_to(home)]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def memory_limit() -> int:
    """Bytes that processes here can have at the most: of the machine or its container, and all of its swap."""
    limits = [_read(group / name).strip() for group in _groups() for name in _LIMITS]
    most = min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdigit())])
    return most + psutil.swap_memory().total


def oom_kills() -> int:
    """Processes that the kernel has killed for memory, as far as it says so."""
    texts = [_read(group / name) for group in _groups() for name in _KILLS] + [_read(Path("/proc/vmstat"))]
    words = [line.split() for text in texts for line in text.splitlines()]
    return sum(int(count) for name, *rest in words for count in rest[:1] if name == "oom_kill" and count.isdigit())


def why_killed(before: int) -> str:
    """What to say of a process that ended by SIGKILL when `oom_kills` had been `before`; empty where nothing is known."""
    if oom_kills() == before:
        return ""
    return (
        f": the kernel killed it, as memory ran out (there are {memory_limit() / 2**30:.3g} GiB); a smaller scale.batch, "
        "compute.sample_batch or compute.workers, or a larger train.accumulate, needs less"
    )
