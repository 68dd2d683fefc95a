"""What a person sees while a run trains."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from unfog.training.recipe import Recipe


class Shown:
    """Progress for a person on a terminal (rich), or a JSON line every half minute elsewhere."""

    def __init__(self, recipe: Recipe, leads: bool = True) -> None:
        self.recipe, self.leads, self.last = recipe, leads, 0.0
        self.bar: Any = None

    def __enter__(self) -> Shown:
        if self.leads and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                                console=Console(stderr=True))  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.recipe.name, total=self.recipe.steps)
        return self

    def __call__(self, step: int, event: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=f"{self.recipe.name} loss {event['loss'] or math.nan:.4f}")
        elif self.leads and time.monotonic() - self.last > 30:
            self.last = time.monotonic()
            left = (self.recipe.steps - step) * event["seconds"]
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in event.items()}
            print(json.dumps({**rounded, "eta_seconds": round(left)}), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
