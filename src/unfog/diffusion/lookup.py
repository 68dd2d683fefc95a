"""Finding an entry of a registry by name, with one helpful line when it is not there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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

    `skip`: how many leading parameters are not options.
    """
    names = list(inspect.signature(function).parameters)[skip:]
    for option in options:
        if option not in names:
            raise unknown(f"option of {label}", option, names)
    try:
        return function(*args, **options)
    except TypeError as error:
        raise UserError(f"{label}: {error}") from error
