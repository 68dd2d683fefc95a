"""A run that must end in a given time: its steps are planned, and planned anew where the machine turns out slower or faster.

RUN/plan.json holds the recipe, the budget and a list of {"from": step, "steps": of the whole run}: from that step on the run
is as long as that, and so is its fall of the learning rate. It is written before the first step that follows it, so that the
run is a function of its recipe and this list: one that was cut repeats the steps that it lost by the same list, to the bit.
The clock decides what is added to the list, and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfog.errors import UserError
from unfog.files import write_atomic
from unfog.training.recipe import Recipe

FILE = "plan.json"
MINUTES = 60.0  # a budget where none is given
REVIEWS = 40  # looks at the clock in a budget
WINDOW = 6  # of them over which the pace is taken, so that a report does not look like a slow machine
OFF = 0.08  # share of the time left by which a plan must miss before it is changed
SAID = 0.2  # share of the steps by which they must differ from what was last said to be said again
KEPT = 0.97  # share of the time left that is planned for: a little is always lost


@dataclass
class Budget:
    """The plan of one run; `budget(step)` gives the recipe with as many steps as hold at `step`.

    seconds: the budget, counted from `began` (of `now`); None: follow the list and never change it. `reserve`: seconds that
    the end takes (last samples, last checkpoint).
    """

    out: Path
    recipe: Recipe
    seconds: float | None = None
    began: float = 0.0
    reserve: float = 0.0
    preset: str | None = None
    steps: list[dict[str, int]] = field(default_factory=list)
    now: Callable[[], float] = time.monotonic
    _marks: list[tuple[int, float]] = field(default_factory=list)

    _said: int = 0

    def __post_init__(self) -> None:
        self._said = self.recipe.steps
        if not self.steps:
            self.steps.append({"from": 0, "steps": self.recipe.steps})

    def at(self, step: int) -> int:
        """The steps of the whole run by the newest entry that holds at `step`."""
        return [entry["steps"] for entry in self.steps if entry["from"] <= step][-1]

    def __call__(self, step: int) -> Recipe:
        if self.seconds is not None:
            self._review(step)
        return self.recipe.model_copy(update={"steps": self.at(step)})

    def _review(self, step: int) -> None:
        now = self.now()
        if not self._marks or step < self._marks[-1][0]:
            self._marks = [(step, now)]
            kept = [entry for entry in self.steps if entry["from"] <= step]
            if kept != self.steps:  # what was planned beyond this step was for another hour
                self.steps = kept
                self.write()
            return
        assert self.seconds is not None
        last, since = self._marks[-1]
        if now - since < self.seconds / REVIEWS or step - last < 3:
            return
        self._marks = [*self._marks[-WINDOW:], (step, now)]
        first, since = self._marks[0]
        planned, pace = self.at(step), (now - since) / (step - first)
        left = max((self.seconds - (now - self.began) - self.reserve) * KEPT, 0.0)
        fits = max(step + round(left / pace), step + 1)
        late = fits < planned
        missed = abs(fits - planned) > OFF * max(planned - step, 1)
        falling = step >= (1 - self.recipe.decay) * planned  # prolonged now, the rate would have to rise again
        if missed and (late or not falling) and step < planned:
            self.steps.append({"from": step, "steps": fits})
            self.write()
            if abs(fits - self._said) > SAID * self._said:
                self._said = fits
                pace_now = f"{'slower' if late else 'faster'} than planned, {pace:.3g} s a step"
                print(f"unfog: {pace_now}: {fits} steps, so that the learning rate falls to its end in time", file=sys.stderr)

    def write(self) -> None:
        """RUN/plan.json, whole or not at all."""
        kept: dict[str, Any] = {"preset": self.preset, "budget_seconds": self.seconds, "steps": self.steps,
                                "recipe": self.recipe.model_dump()}  # fmt: skip
        write_atomic(self.out / FILE, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())


def recorded(out: Path) -> Budget | None:
    """The plan that a run in `out` was begun with, None where it had none. Raises UserError where it cannot be read."""
    path = out / FILE
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_bytes())
        steps = [{"from": int(entry["from"]), "steps": int(entry["steps"])} for entry in kept["steps"]]
        if not steps or steps[0]["from"] != 0 or any(entry["steps"] < 1 for entry in steps):
            raise ValueError("its list of steps")
        return Budget(out, Recipe.model_validate(kept["recipe"]), preset=kept["preset"], steps=steps)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0][:80]
        raise UserError(f"{path}: is not the plan of a run ({reason}); train anew in another --out") from None


def clock(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3.4 h, 2.5 d."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
