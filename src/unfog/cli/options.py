"""Types of the command line's options: numbers, read strictly; and names with values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from unfog.errors import UserError, shown


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts alone would round 7.5 to 8 without a word."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value[:40]!r} is not a whole number") from None


def _real(_: Any, tokens: Sequence[Token]) -> float:
    """nan and inf pass here; the request refuses them, as it does for every other caller."""
    try:
        return float(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value[:40]!r} is not a number") from None


Whole = Annotated[int, Parameter(converter=_whole)]
Real = Annotated[float, Parameter(converter=_real)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
# The one option with a short name only, as everybody writes it: -n 4.
Repeated = Annotated[list[str] | None, Parameter(negative="")]
Count = Annotated[Whole, Parameter(name="-n")]
# Numbers parted by commas, of which the first may be below 0.
Listed = Annotated[str, Parameter(allow_leading_hyphen=True)]


def named_values(wishes: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs of --set, each name once. Raises UserError for anything else."""
    found: dict[str, str] = {}
    for wish in wishes or ():
        name, mark, value = wish.partition("=")
        if not (mark and name and value) or name in found:
            raise UserError(
                f"--set: {shown(wish)} is no NAME=VALUE, or its name came before; give each name once, as size=768x512"
            )
        found[name] = value
    return found
