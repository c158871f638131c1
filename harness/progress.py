"""Words of a line of progress, for whoever shows one."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


def counted(text: str, done: float, total: float) -> str:
    """`text` with how far it is before its first comma, "train 450/900, loss 2.41"; as it is where nothing is counted."""
    head, comma, rest = text.partition(", ")
    return f"{head} {int(done)}/{int(total)}{comma}{rest}" if total else text
