"""What a user did wrong, in one line: the value, the reason, the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class UserError(Exception):
    """Bad input. The command line prints the message as one line on standard error and exits with `EXIT_CODE`."""


class JobError(Exception):
    """A job's own fault, such as a loss that is not a number: it would fail again, and the others go on."""


class BudgetError(UserError):
    """A step budget that a sampler cannot meet exactly."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the closest of `choices`, or `; choose one of ...` where nothing is close."""
    names = sorted({str(c) for c in choices})
    if not names:
        return ""
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return "; choose one of " + ", ".join(names)
