"""Pictures that a request brings along to be followed: what may be said of one, and how it is said in a word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from unfog.errors import UserError, shown
from unfog.schema import Name, Real, Request, check


class ControlAsked(Request):
    """A picture that steers: by what is seen of it as `kind`, how strongly, and in which share of the sampling."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Name = Field(description="a kind of control such as lineart")
    picture: Any = Field(description="a path, a PIL picture, or an array (H, W, 4) of uint8")
    strength: Real = Field(1.0, ge=0, le=2, description="a number from 0 to 2, 1 as it was learned")
    interval: tuple[Real, Real] = Field((0.0, 1.0), description="two shares of the sampling from 0 to 1, the smaller first")

    @field_validator("interval")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("is no part of the sampling")
        return value

    @classmethod
    def of(cls, wish: object, **more: Any) -> ControlAsked:
        """KIND=PICTURE or KIND=PICTURE:STRENGTH; a mapping of the fields; one of these. more: for what is not said there.

        Raises UserError for anything else.
        """
        if isinstance(wish, ControlAsked):
            return wish
        if isinstance(wish, Mapping):
            return check(cls, {**more, **wish})
        kind, equals, rest = str(wish).partition("=")
        if not isinstance(wish, str) or not equals or not kind or not rest:
            raise UserError(f"control: {shown(wish)} is not KIND=PICTURE; give one such as lineart=sketch.png")
        path, number = parted(rest)
        fields = {"kind": kind, "picture": path} | ({} if number is None else {"strength": number})
        return check(cls, {**more, **fields})


class StyleAsked(Request):
    """A picture whose style is followed, and how much."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    picture: Any = Field(description="a path, a PIL picture, or an array (H, W, 4) of uint8")
    weight: Real = Field(1.0, ge=0, le=2, description="a number from 0 to 2, 1 as it was learned")

    @classmethod
    def of(cls, wish: object, **more: Any) -> StyleAsked:
        """PICTURE or PICTURE:WEIGHT; a mapping of the fields; a picture; one of these."""
        if isinstance(wish, StyleAsked):
            return wish
        if isinstance(wish, Mapping):
            return check(cls, {**more, **wish})
        path, number = parted(wish) if isinstance(wish, str) else (wish, None)
        return check(cls, {**more, "picture": path, **({} if number is None else {"weight": number})})


def parted(wish: str) -> tuple[str, float | None]:
    """PATH:NUMBER in its two parts, PATH alone with None."""
    path, colon, number = wish.rpartition(":")
    known = colon and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", number, re.IGNORECASE)
    return (path, float(number)) if known else (wish, None)


def _read(value: object) -> object:
    return [ControlAsked.of(wish) for wish in value] if isinstance(value, (list, tuple)) else value


def _read_styles(value: object) -> object:
    return [StyleAsked.of(wish) for wish in value] if isinstance(value, (list, tuple)) else value


Styles = Annotated[list[StyleAsked], BeforeValidator(_read_styles)]


Controls = Annotated[list[ControlAsked], BeforeValidator(_read)]
