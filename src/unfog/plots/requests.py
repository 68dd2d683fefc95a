"""What may be asked of each plot; like `unfog.requests`, and without torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from unfog.errors import shown
from unfog.requests import LARGEST_SEED
from unfog.schema import LONGEST_PROMPT, Name, Prompt, Real, Request, Whole

MOST_VALUES = 24  # on an axis
MOST_CELLS = 400
# what an axis may go over, and how its values are read where they are text
AXES: dict[str, type] = {"steps": int, "scale": float, "sampler": str, "seed": int, "style": str, "prompt": str}
AXIS_HINT = f"NAME=VALUE,VALUE,... with one of {', '.join(AXES)}, as in steps=5,10,20 (values with commas: part them by |)"
Axis = tuple[str, tuple[Any, ...]]


def axis_of(value: object) -> object:
    """(name, values) of "steps=5,10,20", of such a pair, or of a mapping of one. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.items()))
    if isinstance(value, str):
        name, equals, rest = value.partition("=")
        if not equals:
            raise ValueError("has no =")
        values: Sequence[object] = [part.strip() for part in rest.split("|" if "|" in rest else ",")]
    elif isinstance(value, Sequence) and len(value) == 2 and isinstance(value[1], Sequence) and not isinstance(value[1], str):
        name, values = value
    else:
        raise ValueError("is no axis")
    name = name.strip() if isinstance(name, str) else name
    if name not in AXES:
        near = difflib.get_close_matches(str(name)[:200].lower(), AXES, n=1, cutoff=0.5)
        raise ValueError(f"names no axis{f', did you mean {near[0]}?' if near else ''}")
    read = [_read(name, each) for each in values]
    if not 1 <= len(read) <= MOST_VALUES:
        raise ValueError(f"has {len(read)} values, not 1 to {MOST_VALUES}")
    if len(set(read)) < len(read):
        raise ValueError("has a value twice")
    return name, tuple(read)


def _read(name: str, value: object) -> object:
    kind = AXES[name]
    if value == "":
        raise ValueError("has an empty value")
    if kind is str or not isinstance(value, str):
        return value  # whether it fits is for the request of its cell to say
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"has {shown(value)}, which is no {'whole ' if kind is int else ''}number") from None


def _listed(value: object) -> object:
    """Numbers from "1,2.5,3"."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("is not numbers parted by commas") from None


def _whole_listed(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("is not whole numbers parted by commas") from None


AnAxis = Annotated[Axis, BeforeValidator(axis_of)]
Numbers = Annotated[list[Real], BeforeValidator(_listed)]
Wholes = Annotated[list[Whole], BeforeValidator(_whole_listed)]
SEED = Field(0, ge=0, le=LARGEST_SEED - 10_000, description="a whole number from 0, the first seed")
STEPS = Field(None, ge=1, le=1_000, description="a whole number from 1 to 1000, or leave it out for the model's default")
SCALE = Field(None, ge=0, le=100, description="a number from 0 to 100 (1 = no guidance), or leave it out for the model's default")
SAMPLER = Field(None, description="a sampler's name, or leave it out for the model's default")
STYLE = Field(None, description="a style of the model, or leave it out for any style")
NEGATIVE = Field(None, max_length=LONGEST_PROMPT, description=f"what to avoid, in at most {LONGEST_PROMPT:,} characters")
PROMPT = f"what to draw, in 1 to {LONGEST_PROMPT:,} characters"


class GridRequest(Request):
    """Pictures over two or three settings, from the same seeds in all cells, with what each cell cost."""

    model: Name = Field(description="the name of a shipped model, or a model folder")
    prompt: Prompt | None = Field(None, description=f"{PROMPT}, or leave it out where an axis goes over prompts")
    x: AnAxis = Field(description=AXIS_HINT)
    y: AnAxis | None = Field(None, description=f"{AXIS_HINT}, or leave it out")
    z: AnAxis | None = Field(None, description=f"{AXIS_HINT}, or leave it out")
    n: Whole = Field(1, ge=1, le=16, description="a whole number from 1 to 16, the pictures of each cell")
    seed: Whole = SEED
    steps: Whole | None = STEPS
    scale: Real | None = SCALE
    sampler: Name | None = SAMPLER
    style: Name | None = STYLE
    negative: str | None = NEGATIVE
    timed: bool = Field(True, strict=True, description="false to leave out milliseconds, so that equal requests give equal files")

    @field_validator("y", "z")
    @classmethod
    def _another(cls, value: Axis | None, info: ValidationInfo) -> Axis | None:
        for other in ("x", "y"):
            before = info.data.get(other) if other != info.field_name else None
            if value is not None and before is not None and before[0] == value[0]:
                raise ValueError(f"goes over {value[0]}, as {other} does")
        return value


class FilmRequest(Request):
    """How pictures come out of noise: x_t, and what the model takes the picture to be, at some of the steps."""

    model: Name = Field(description="the name of a shipped model, or a model folder")
    prompt: Prompt = Field(description=PROMPT)
    n: Whole = Field(1, ge=1, le=16, description="a whole number from 1 to 16, the pictures under each other")
    seed: Whole = SEED
    steps: Whole | None = STEPS
    scale: Real | None = SCALE
    sampler: Name | None = SAMPLER
    style: Name | None = STYLE
    negative: str | None = NEGATIVE
    frames: Whole = Field(8, ge=2, le=64, description="a whole number from 2 to 64, the steps to show, evenly spread")
    at: Wholes | None = Field(None, min_length=1, max_length=64,
                              description="the steps to show, as in 0,5,10: 0 is the noise; or leave it out")  # fmt: skip


class ForwardRequest(Request):
    """What the forward process makes of a picture, and what a model sees in it."""

    model: Name | None = Field(None, description="the name of a shipped model or a model folder, or leave it out")
    picture: Path | None = Field(None, description="a picture's file, or leave it out for one of the data")
    data: Name | None = Field(None, description="a shipped data set's name, or data, or leave it out for the model's own")
    number: Whole | None = Field(
        None, ge=1, description="a whole number from 1, the picture of the data, or leave it out for the first held-out one"
    )
    schedule: Name | None = Field(None, description="a schedule's name where no model says one, or leave it out for cosine")
    size: Whole | None = Field(None, ge=8, le=1024, description="pixels from 8 to 1024 where no model says them, or leave it out")
    prompt: Prompt | None = Field(None, description="what the model is told, or leave it out for nothing")
    style: Name | None = STYLE
    seed: Whole = SEED
    t: Numbers | None = Field(None, min_length=1, max_length=32, description="times in [0, 1], as in 0,0.25,0.5,1")
    logsnr: Numbers | None = Field(None, min_length=1, max_length=32, description="log-SNRs, as in 6,3,0,-3, instead of t")

    @field_validator("t")
    @classmethod
    def _times(cls, value: list[float] | None) -> list[float] | None:
        for time in value or []:
            if not 0.0 <= time <= 1.0:
                raise ValueError(f"has {time:g}, which is not in [0, 1]")
        return value

    @field_validator("logsnr")
    @classmethod
    def _one_of_the_two(cls, value: list[float] | None, info: ValidationInfo) -> list[float] | None:
        if value is not None and info.data.get("t") is not None:
            raise ValueError("says the noise levels that t says too")
        return value


class LossRequest(Request):
    """Loss by noise level of one or more models, on pictures that they were trained on and on others."""

    models: list[Name] = Field(min_length=1, max_length=6, description="1 to 6 models, each a shipped one's name or a folder")
    data: Name | None = Field(None, description="a shipped data set's name, or data, or leave it out for each model's own")
    n: Whole = Field(64, ge=4, le=10_000, description="a whole number from 4 to 10000, the pictures of each split")
    levels: Numbers = Field(default_factory=lambda: [k / 2 for k in range(-4, 7)], min_length=2, max_length=64,
                            description="2 to 64 values of ln(sigma/alpha), as in -2,-1,0,1,2,3")  # fmt: skip
    own: bool = Field(False, strict=True, description="true for each model's own loss, which other predictions cannot be held "
                      "against")  # fmt: skip
    relative: bool = Field(False, strict=True, description="true for losses over those of the first model, or, of one model, for "
                           "held-out over training losses")  # fmt: skip

    @field_validator("relative")
    @classmethod
    def _one_unit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("own") and len(info.data.get("models", [])) > 1:
            raise ValueError("holds own losses of different models against each other")
        return value

    @field_validator("levels")
    @classmethod
    def _sorted(cls, value: list[float]) -> list[float]:
        for level in value:
            if abs(level) > 9:
                raise ValueError(f"has {level:g}, which is not in [-9, 9]")
        if len({f"{level:g}" for level in value}) < len(value):
            raise ValueError("has a value twice")
        return sorted(value)


class CopiesRequest(Request):
    """What a detector of copies finds of each kind of copy, and what it wrongly finds, over its threshold."""

    model: Name = Field(description="the name of a shipped model, or a model folder, whose data are looked at")
    data: Name | None = Field(None, description="a shipped data set's name, or data, or leave it out for the model's own")
    n: Whole = Field(100, ge=20, le=100_000, description="a whole number from 20, the copies planted of each kind")
    unseen: Whole = Field(500, ge=20, le=100_000, description="a whole number from 20, the pictures that are no copies")
    seed: Whole = SEED
    roc: bool = Field(False, strict=True, description="true for what is found over what is wrongly found, without thresholds")
