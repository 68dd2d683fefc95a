"""Progress and remaining time on stderr: a bar on a terminal, JSON lines elsewhere; stdout is for results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from unfog.requests import Progress

Made = TypeVar("Made")

INTERVAL = 0.25  # seconds between two lines: at most four a second, however fast the steps are


def watch(events: Iterable[Progress | Made], what: str) -> Iterator[Made]:
    """Pass the results through and show the progress between them."""
    return _bar(events, what) if sys.stderr.isatty() else _lines(events)


def _lines(events: Iterable[Progress | Made]) -> Iterator[Made]:
    """{"event": "progress", "done": 3, "total": 20, "eta_s": 1.4} on stderr, a few a second."""
    from unfog.requests import Progress

    start, last = time.monotonic(), -INTERVAL
    for event in events:
        if not isinstance(event, Progress):
            yield event
            continue
        now = time.monotonic()
        if now - last < INTERVAL and event.done < event.total:
            continue
        last = now
        eta = (now - start) / event.done * (event.total - event.done) if event.done else None
        line = {"event": "progress", "done": event.done, "total": event.total, "eta_s": eta if eta is None else round(eta, 1)}
        print(json.dumps(line), file=sys.stderr, flush=True)


def _bar(events: Iterable[Progress | Made], what: str) -> Iterator[Made]:
    """A bar with the remaining time, gone when the work is done."""
    from rich import progress
    from rich.console import Console

    from unfog.requests import Progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    # stdout stays ours: rich would otherwise take over print() and send our results to its own console.
    with progress.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task(what, total=None)
        for event in events:
            if not isinstance(event, Progress):
                yield event
            else:
                bar.update(task, completed=event.done, total=event.total)
