"""What names and options may be: one line of error that says where, what, and what to give instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from unfog.errors import UserError, unknown

V = TypeVar("V")


def lookup(registry: Mapping[str, V], name: str, kind: str) -> V:
    """registry[name], or a UserError that states the nearest name."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def call(function: Callable[..., V], label: str, skip: int, *args: Any, **options: Any) -> V:
    """Call `function(*args, **options)`; an option that it does not have is a UserError, never ignored.

    `skip`: how many leading parameters are not options. So is text where the default is a number, and the reverse.
    """
    known = dict(list(inspect.signature(function).parameters.items())[skip:])
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {label}", option, known)
        default, said = known[option].default, str(known[option].annotation)
        for kind, word in ((str, "text"), (bool, "true or false"), (Real, "a number")):
            if isinstance(default, kind):
                if not isinstance(value, kind) and not (value is None and "None" in said):
                    raise UserError(f"{label}: {option} must be {word}, got {value!r}")
                break
    try:
        return function(*args, **options)
    except TypeError as error:
        raise UserError(f"{label}: {error}") from error


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
