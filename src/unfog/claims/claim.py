"""What a claim is: the field's sentence, the tests that decide it, fixed before anything is measured, and what was found.

    verdict = holds, if every test is passed; does not hold, if none is; else holds in part
    not measured, if a test has no value: a verdict never rests on some of its tests

A claim's module states a `Statement` and a function that measures; only `decide` here turns figures into a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import ge, gt, le, lt
from typing import Literal

from pydantic import Field, field_validator

from unfog.schema import Part

Op = Literal["<", "<=", ">", ">="]
Verdict = Literal["holds", "does not hold", "holds in part", "not measured"]

COMPARE: dict[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}


class Figure(Part):
    """One measured number with its 95 % interval (None where it is exact or comes from an exhaustive count) and its size."""

    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(ge=0, description="how many of `of` are behind it; 0 for what is exact")
    of: str = ""

    @field_validator("value", "low", "high")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None  # JSON has no infinity


class Line(Part):
    """One line of a plot; low and high are its interval, point by point."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    dashed: bool = False
    dots: bool = False


class Plot(Part):
    """A plot as data; `name` becomes a file's name."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    title: str
    lines: list[Line]
    x_name: str
    y_name: str
    log_x: bool = False
    log_y: bool = False


class Test(Part):
    """One thing that must be so for the claim to hold: found `op` bound. Stated in the code, before measuring."""

    __test__ = False  # no test of pytest's

    key: str
    says: str
    op: Op
    bound: float


class Check(Part):
    """A test and what was found; passed is None where there is no value."""

    says: str
    op: Op
    bound: float
    found: float | None
    passed: bool | None


@dataclass(frozen=True)
class Settings:
    """How much is measured: quick for a look (seconds a claim), else in full (minutes); the same seed gives the same figures."""

    quick: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Statement:
    """A claim before it is measured."""

    title: str
    says: str  # the sentence as the field says it
    source: str
    how: str  # on what and how it is measured
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Found:
    """What measuring gave: figures and plots to show, a value for each test's key, and what a reader should know besides."""

    figures: tuple[Figure, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()


Say = Callable[[str], None]  # progress: one short line
Measure = Callable[[Settings, Say], Found]


class Claim(Part):
    """A claim, measured and decided."""

    name: str
    title: str
    says: str
    source: str
    how: str
    quick: bool
    seed: int
    version: str
    checks: list[Check]
    verdict: Verdict
    figures: list[Figure]
    plots: list[Plot]
    notes: list[str]


def decide(tests: tuple[Test, ...], values: Mapping[str, float]) -> tuple[list[Check], Verdict]:
    """Each test held against its value, and the verdict.

    Raises: ValueError for a value that no test asks for, which would be a slip of the module that measures.
    """
    foreign = set(values) - {test.key for test in tests}
    if foreign:
        raise ValueError(f"values that no test asks for: {sorted(foreign)}")
    checks = []
    for test in tests:
        value = values.get(test.key, math.nan)
        # an infinite value was measured, and fails or passes as such; only NaN says nothing
        passed = None if math.isnan(value) else COMPARE[test.op](value, test.bound)
        shown = value if math.isfinite(value) else None
        checks.append(Check(says=test.says, op=test.op, bound=test.bound, found=shown, passed=passed))
    passes = [check.passed for check in checks]
    if not passes or None in passes:
        return checks, "not measured"
    return checks, "holds" if all(passes) else "holds in part" if any(passes) else "does not hold"
