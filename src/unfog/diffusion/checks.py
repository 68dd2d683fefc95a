"""Checks of options that samplers, grids and processes share: one line that says where, what, and what it may be."""

from __future__ import annotations

from collections.abc import Sequence

from unfog.errors import UserError, unknown


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """UserError naming the option, its value and the nearest choice, if `value` is none of them."""
    if value not in choices:
        raise unknown(name, value, choices)


def check_whole(where: str, name: str, value: object, low: int, high: int | None = None) -> None:
    """UserError unless `value` is a whole number (no bool) of at least `low` and, if given, at most `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{where}: {name} must be a whole number {span}, got {value!r}")


def check_eta(sampler: str, eta: float) -> None:
    """UserError unless eta, the share of fresh noise, lies in [0, 1]."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"sampler {sampler!r}: eta must lie in [0, 1], got {eta}")
