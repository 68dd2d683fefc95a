"""What requests of all kinds share: how numbers, times and texts are read, and one line for whatever is wrong with a field."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from unfog.errors import UserError, shown, unknown

LONGEST_PROMPT = 2_000  # characters; the text encoder reads far fewer, so a longer one is a mistake


def _whole(value: object) -> object:
    """A whole number from anything that is one (numpy's too), never from a bool, a float or a string."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError("is not a whole number")
    return operator.index(value)


def _real(value: object) -> object:
    """Numbers only: pydantic alone would read True as 1.0 and "7" as 7.0."""
    if isinstance(value, (bool, str, bytes)):
        raise ValueError("is not a number")
    return value


def _span(value: object) -> object:
    """Seconds from 45s, 30m, 2h, 1.5h or 1d; a number is seconds already."""
    if not isinstance(value, str):
        return _real(value)
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([smhd])", value.strip().lower())
    if found is None:
        raise ValueError("is not a time")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


Whole = Annotated[int, BeforeValidator(_whole)]
Span = Annotated[float, BeforeValidator(_span)]
Real = Annotated[float, BeforeValidator(_real)]
Prompt = Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Part(BaseModel):
    """A part of what was found and is written down: nothing changes later, nothing unknown is read back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(BaseModel):
    """What requests share: unknown fields and NaN are refused, text is stripped, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)


AnyRequest = TypeVar("AnyRequest", bound=Request)


def check(kind: type[AnyRequest], fields: Mapping[str, Any]) -> AnyRequest:
    """The request of this kind with these fields. Raises: UserError, one line, where a field is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise one_line(kind, error) from None


def one_line(kind: type[BaseModel], error: ValidationError) -> UserError:
    """pydantic's first finding as one line: the field, what is wrong with it, what to give."""
    findings = error.errors(include_url=False)
    first = findings[0]
    field = str(first["loc"][0]) if first["loc"] else kind.__name__
    if first["type"] == "extra_forbidden":
        return unknown("field", field, kind.model_fields)
    if first["type"] == "missing":
        wrong = "is missing"
    else:
        wrong = _wrong(first["type"], first.get("input"), first.get("ctx", {}), first["msg"])
    # "prompts 3" is the third prompt; people count from 1.
    place = f"{field} {first['loc'][1] + 1}" if len(first["loc"]) > 1 and isinstance(first["loc"][1], int) else field
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    hint = kind.model_fields[field].description if field in kind.model_fields else "see the documentation"
    return UserError(f"{place}: {wrong}; give {hint}{more}")


def _wrong(kind: str, value: object, ctx: Mapping[str, Any], message: str) -> str:
    """What is wrong with a value, in words that fit behind the field's name."""
    if kind in ("string_too_short", "too_short"):
        return "is empty"
    if kind == "string_too_long":
        return f"has {len(str(value)):,} characters"
    if kind == "too_long":
        return f"has {ctx.get('actual_length')} entries"
    if kind == "string_unicode":
        return "is not valid text (broken Unicode)"
    if kind == "value_error":
        return f"{shown(value)} {ctx['error']}"
    if kind == "finite_number":
        return f"{shown(value)} is not a finite number"
    for rule, words in (("ge", "is less than"), ("gt", "is not above"), ("le", "is more than")):
        if rule in ctx:
            return f"{shown(value)} {words} {ctx[rule]}"
    return f"{shown(value)} is refused ({message[:1].lower()}{message[1:]})"
