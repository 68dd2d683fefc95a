"""The one error that a user may cause: a single line that says what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input; the command line prints it as one line and exits with code 2."""


def shown(value: object, longest: int = 40) -> str:
    """A value short enough for one line, quoted, with no line break or control character in it."""
    if isinstance(value, str):
        value = value[: longest + 1]  # before repr: a user may send megabytes
    elif isinstance(value, int) and value.bit_length() > 128:
        return "a number beyond 2**128"  # Python refuses to print very long integers
    text = repr(value)
    return text if len(text) <= longest + 2 else text[: longest - 1] + "…"


def unknown(what: str, value: object, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the known ones, with the nearest of them."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(value)[:200].lower(), lower, n=1, cutoff=0.5)
    if near:
        advice = f"did you mean {lower[near[0]]}?"
    elif not names:
        advice = f"there is no {what} to choose here; leave it out"
    else:
        listed = ", ".join(names[:20])
        advice = f"give one of: {listed}" + (" ..." if len(names) > 20 else "")
    return UserError(f"{what}: {shown(value)} is unknown; {advice}")
