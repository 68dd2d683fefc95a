"""What a run has written so far, as a report needs it. Nothing is taken on trust: the folder may be anybody's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfog.errors import UserError
from unfog.training.telemetry import ABOUT, EVENTS, TIMING, lines

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """Lines of steps, of reports and of timing in their order, what the run is, and its sheets of samples by step."""

    folder: Path
    about: Line
    recipe: Line
    steps: Sequence[Line]
    reports: Sequence[Line]
    timing: Sequence[Line]
    samples: Sequence[tuple[int, Path]]

    @property
    def last(self) -> int:
        """The last step that anything is known of."""
        return max((line["step"] for line in [*self.steps, *self.reports]), default=0)

    @property
    def restarts(self) -> list[int]:
        """The steps at which the run was taken up again."""
        starts = [line["step"] for line in self.timing if line.get("start")]
        return starts[1:]

    @property
    def levels(self) -> list[str]:
        """The noise bins of the reports, rising."""
        names = {level for line in self.reports for level in _mapping(line.get("held_out"))}
        return sorted((n for n in names if number(_parsed(n)) is not None), key=float)

    def of(self, key: str, level: str | None = None) -> tuple[list[int], list[float | None]]:
        """Steps and values of a figure of the reports, in one noise bin where it has those."""
        found = [(line["step"], number(line.get(key) if level is None else _mapping(line.get(key)).get(level)))
                 for line in self.reports]  # fmt: skip
        return [step for step, _ in found], [value for _, value in found]


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mapping(value: object) -> Line:
    return value if isinstance(value, Mapping) else {}


def _json(path: Path) -> Line:
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def read_run(folder: Path) -> Run:
    """A run's folder, finished, going on, or written before there was a file of timing. Raises UserError where it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that a training run writes (its --out)")
    if not (folder / EVENTS).is_file():
        raise UserError(f"{folder}: has no {EVENTS}, so it is no training run; give the folder that a run writes (its --out)")
    about = _json(folder / ABOUT)
    card = {} if about else _json(folder / "model" / "model.json")  # a run from before there was a run.json
    recipe = _mapping(about.get("recipe") or _mapping(card.get("training")).get("recipe"))
    events = lines(folder / EVENTS)
    found = ((p.stem, p) for p in (folder / "samples").glob("*.png"))
    samples = sorted((int(stem), path) for stem, path in found if stem.isdecimal())
    last = max((line["step"] for line in events), default=0)
    return Run(
        folder,
        about or {"name": card.get("name", folder.name), "styles": card.get("styles", [])},
        recipe,
        [line for line in events if "loss" in line],
        [line for line in events if isinstance(line.get("held_out"), Mapping)],
        lines(folder / TIMING),
        [(step, path) for step, path in samples if step <= last],
    )
