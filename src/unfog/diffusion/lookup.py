"""Finding an entry of a registry by name, with one helpful line when it is not there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
