"""What a person sees while a run trains."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from unfog.training.recipe import LoopSettings

FEW = 5  # steps before which nobody can say how long it will take
WINDOW = 512  # steps whose time counts
WILD = 20.0  # times the median; a longer step is one during which the machine slept
REFRESH = 0.5  # seconds between two pictures of the terminal: drawing one takes some milliseconds
EVERY = 30.0  # seconds between two JSON lines
BARS = "▁▂▃▄▅▆▇█"


class Remaining:
    """Seconds that a run still takes: steps left × the mean of the last ones, and reports left × their median."""

    def __init__(self, steps: int, report_steps: int) -> None:
        self.steps, self.report_steps = steps, report_steps
        self.seconds: deque[float] = deque(maxlen=WINDOW)
        self.reports: deque[float] = deque(maxlen=9)
        self.seen = 0

    def step(self, seconds: float) -> None:
        """A step took so long."""
        self.seen += 1
        if self.seen > 2:  # the first ones warm up
            self.seconds.append(seconds)

    def report(self, seconds: float) -> None:
        """A report took so long."""
        self.reports.append(seconds)

    def left(self, step: int) -> float | None:
        """After `step` steps; None while it cannot be said."""
        if self.seen < FEW:
            return None
        most = WILD * sorted(self.seconds)[len(self.seconds) // 2]
        mean = math.fsum(min(s, most) for s in self.seconds) / len(self.seconds)
        reports = -(-self.steps // self.report_steps) - step // self.report_steps
        return (self.steps - step) * mean + (reports * sorted(self.reports)[len(self.reports) // 2] if self.reports else 0.0)


class Spark:
    """A line of at most `cells` bars for all values so far; when it is full, pairs become their means."""

    def __init__(self, cells: int = 40) -> None:
        self.cells, self.span = cells, 1
        self.means: list[float] = []
        self.sum, self.count = 0.0, 0

    def add(self, value: float) -> None:
        """The next value; one that is no number is left out."""
        if not math.isfinite(value):
            return
        self.sum, self.count = self.sum + value, self.count + 1
        if self.count < self.span:
            return
        self.means.append(self.sum / self.count)
        self.sum, self.count = 0.0, 0
        if len(self.means) == self.cells:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.span *= 2

    def __str__(self) -> str:
        if not self.means:
            return ""
        low, high = min(self.means), max(self.means)
        step = (high - low) / (len(BARS) - 1) or 1.0
        return "".join(BARS[round((value - low) / step)] for value in self.means)


class Shown:
    """Progress for a person on a terminal (rich), or a JSON line every half minute elsewhere."""

    def __init__(self, settings: LoopSettings, leads: bool = True, name: str = "training", batches: int = 1) -> None:
        self.steps, self.leads, self.name = settings.steps, leads, name
        self.items = settings.batch * batches
        self.last = -math.inf
        self.remaining = Remaining(settings.steps, settings.report_steps)
        self.spark, self.smooth = Spark(), math.nan
        self.recent: deque[tuple[float, float]] = deque(maxlen=64)  # seconds of a step, and those waited for data
        self.held: Mapping[str, float] = {}
        self.live: Any = None

    def __enter__(self) -> Shown:
        if self.leads and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, step: int, event: Mapping[str, Any]) -> None:
        """After every step: loss, grad, lr, steps of the whole run, seconds, and waited, those of them spent waiting for data."""
        if not self.leads:
            return
        self.steps = self.remaining.steps = event.get("steps", self.steps)  # a plan may have changed them
        self.remaining.step(event["seconds"])
        self.recent.append((event["seconds"], event.get("waited", 0.0)))
        self.spark.add(event["loss"])
        if math.isfinite(event["loss"]):
            self.smooth = event["loss"] if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * event["loss"]
        now = time.monotonic()
        if self.live is not None and (now - self.last >= REFRESH or step == self.steps):
            self.last = now
            self.live.update(self.drawn(step), refresh=True)
        elif self.live is None and now - self.last >= EVERY:
            self.last = now
            rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in event.items()}
            speed, waiting = self.speed()
            left = self.remaining.left(step)
            rounded |= {"items_per_s": round(speed, 1), "waiting": round(waiting, 3),
                        "eta_seconds": left if left is None else round(left)}  # fmt: skip
            print(json.dumps(rounded), file=sys.stderr, flush=True)

    def report(self, step: int, values: Mapping[str, Any], seconds: float) -> None:
        """What a report measured, and how long it took."""
        self.remaining.report(seconds)
        self.held = values.get("held_out", {})
        if self.leads and self.live is None:
            told = {key: round(values[key], 4) for key in ("copies", "copies_real", "nearest", "nearest_real") if key in values}
            held = {level: round(loss, 5) for level, loss in self.held.items()}
            print(json.dumps({"step": step, "held_out": held, **told}), file=sys.stderr, flush=True)

    def speed(self) -> tuple[float, float]:
        """Items a second, and the share of the time spent waiting for data, over the last steps."""
        took = math.fsum(seconds for seconds, _ in self.recent)
        if not took:
            return 0.0, 0.0
        return len(self.recent) * self.items / took, math.fsum(waited for _, waited in self.recent) / took

    def drawn(self, step: int) -> Any:
        """The terminal's picture, for rich."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self.remaining.left(step)
        speed, waiting = self.speed()
        head = Table.grid(padding=(0, 1))
        head.add_row(Text(self.name, style="bold"), ProgressBar(self.steps, step, width=40),
                     Text(f"{step:,}/{self.steps:,}"),
                     Text("" if left is None else f"{clock(left)} left", "cyan"))  # fmt: skip
        lines = [Text(f"loss {self.smooth:.4f} ") + Text(str(self.spark), "green"),
                 Text(f"{speed:,.1f} items/s, {waiting:.0%} waiting for data", "red" if waiting > 0.1 else "")]  # fmt: skip
        if self.held:
            lines.append(Text("held out  " + "  ".join(f"{level}: {loss:.4f}" for level, loss in self.held.items()), "dim"))
        return Group(head, *lines)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
