"""Data sets that ship with the project."""

from __future__ import annotations

from pathlib import Path

from unfog.errors import UserError


def path(name: str) -> Path:
    """Where a shipped data set lies, e.g. "emoji-64". Raises UserError for an unknown name."""
    found = Path(__file__).parent / f"{name}.zip"
    if not found.is_file():
        known = ", ".join(sorted(p.stem for p in Path(__file__).parent.glob("*.zip")))
        raise UserError(f"no shipped data set named {name!r}; known: {known}")
    return found
