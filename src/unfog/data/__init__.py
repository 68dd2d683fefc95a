"""Data sets that ship with the project."""

from __future__ import annotations

from pathlib import Path

from unfog.errors import UserError

FOLDER = Path(__file__).parent


def known() -> dict[str, Path]:
    """Every shipped data set by its name."""
    return {p.stem: p for p in sorted(FOLDER.iterdir()) if p.is_file() and p.suffix != ".py"}


def path(name: str) -> Path:
    """Where a shipped data set lies, e.g. "emoji-64". Raises UserError for an unknown name."""
    if name not in known():
        raise UserError(f"no shipped data set named {name!r}; known: {', '.join(known())}")
    return known()[name]
