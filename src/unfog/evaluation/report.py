"""What an evaluation found: every figure with its interval, its number of samples and what it is held against.

A figure alone says nothing: beside it stands what real data reach on the same measure (the noise floor), and how it was made
(settings). `str` gives the table of a terminal, `model_dump_json` the JSON, `document.py` the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from unfog.errors import UserError
from unfog.evaluation.statistics import LEVEL, bootstrap_interval, share_interval
from unfog.schema import Part

GROUPS = {
    "fidelity": "Distance to the data",
    "coverage": "Precision, coverage, diversity",
    "condition": "Does it show what was asked for?",
    "memory": "Memory: copies, and what is known by heart",
    "likelihood": "Likelihood",
    "cost": "Cost",
}
Unit = Literal["", "%", "bits/dim", "nats", "s", "MB", "dB"]


class Figure(Part):
    """A value with its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(ge=1, description="samples behind it")

    @field_validator("value", "low", "high")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None  # JSON has no infinity

    def shown(self, unit: str = "", count: bool = True) -> str:
        """For a table: the value, the interval where there is one, and n."""
        if self.value is None:
            return "—"
        text = _number(self.value, unit)
        if self.low is not None or self.high is not None:
            low, high = ("—" if x is None else _number(x, unit) for x in (self.low, self.high))
            text += f" [{low}, {high}]"
        return text + (f" {unit}" if unit else "") + (f" n={self.n}" if count else "")


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Beside(Part):
    """What else was measured in the same way: real data, a half of the data against the other."""

    name: str
    figure: Figure


class Measure(Part):
    """One row of a report."""

    group: Literal["fidelity", "coverage", "condition", "memory", "likelihood", "cost"]
    name: str
    of: str = Field(description="which samples: a split, or all")
    figure: Figure
    unit: Unit = ""
    better: Literal["lower", "higher", ""] = ""
    beside: list[Beside] = Field(default_factory=list)
    note: str = Field("", description="what a reader must know, such as why there is no figure")

    def against(self, name: str) -> Figure:
        """The figure of that name beside this one. Raises KeyError."""
        return {beside.name: beside.figure for beside in self.beside}[name]


class Report(Part):
    """An evaluation of one model, or of a folder of samples, against one set of data."""

    subject: str
    subject_hash: str
    data: str
    data_hash: str
    samples: int
    settings: dict[str, str] = Field(description="how the samples were made and read: sampler, steps, weights, resize, ...")
    level: float = LEVEL
    measures: list[Measure]
    warnings: list[str] = Field(default_factory=list)
    seconds: float
    version: str

    def find(self, name: str, of: str | None = None) -> Measure:
        """The row of that name (and of those samples). Raises UserError where there is none."""
        for measure in self.measures:
            if measure.name == name and of in (None, measure.of):
                return measure
        known = ", ".join(sorted({m.name for m in self.measures}))
        raise UserError(f"report: no measure {name!r}{f' of {of}' if of else ''}; there are: {known}")

    def __str__(self) -> str:
        head = [f"{self.subject} ({self.subject_hash}) against {self.data} ({self.data_hash}): {self.samples} samples",
                "; ".join(f"{key} {value}" for key, value in self.settings.items())]  # fmt: skip
        lines = [*head, f"[{100 * self.level:.0f} % intervals], {self.seconds:.0f} s"]
        for group, title in GROUPS.items():
            rows = [m for m in self.measures if m.group == group]
            if rows:
                lines += ["", title, *table([_row(m) for m in rows])]
        return "\n".join([*lines, *(f"! {text}" for text in self.warnings)])


def _row(m: Measure) -> tuple[str, ...]:
    arrow = {"lower": "↓", "higher": "↑", "": " "}[m.better]
    beside = "; ".join(f"{b.name}: {b.figure.shown(m.unit)}" for b in m.beside)
    return f"  {m.name} {arrow}", m.of, m.figure.shown(m.unit), beside, m.note


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Difference(Part):
    """The second model's figure less the first's, with its interval; `real` where the interval excludes 0."""

    name: str
    of: str
    first: str
    second: str
    figure: Figure
    unit: Unit = ""
    better: str = Field("", description="the model that this measure favours, where the difference is real")
    paired: bool

    @property
    def real(self) -> bool:
        low, high = self.figure.low, self.figure.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def __str__(self) -> str:
        verdict = (f"real: {self.better} is better" if self.better else "real") if self.real else "no real difference"
        return f"{self.name} of {self.of}: {self.second} − {self.first} = {self.figure.shown(self.unit)}; {verdict}"


class Evaluation(Part):
    """Reports on one or several models against the same data, and how the others differ from the first."""

    reports: list[Report]
    differences: list[Difference] = Field(default_factory=list)

    def __str__(self) -> str:
        parts = [str(report) for report in self.reports]
        if self.differences:
            kind = {True: "same prompts and seeds", False: "independent samples"}
            rows = [(f"  {d.name}", d.of, f"{d.second} − {d.first}", d.figure.shown(d.unit), kind[d.paired],
                     str(d).rpartition("; ")[2]) for d in self.differences]  # fmt: skip
            parts.append("\n".join(["Differences", *table(rows)]))
        return "\n\n".join(parts)


def rate(values: NDArray[np.bool_], clusters: Sequence[str], n: int | None = None) -> Figure:
    """The rate of True among `values` (N,) with its interval; n, where values repeat, how many are different."""
    low, high = bootstrap_interval(values, clusters)
    return Figure(value=float(np.mean(values)), low=low, high=high, n=n or len(values))


def mean(values: Iterable[float]) -> Figure:
    """The mean of independent values (N,) with its interval."""
    array = np.asarray(list(values), np.float64)
    low, high = bootstrap_interval(array) if len(array) > 1 else (None, None)
    return Figure(value=float(array.mean()), low=low, high=high, n=len(array))


def share(
    part: NDArray[np.bool_], whole: NDArray[np.bool_], part_clusters: Sequence[str], whole_clusters: Sequence[str]
) -> Figure:
    """One rate as a share of another, with its interval; n is the number of `part`."""
    low, high = share_interval(part, whole, part_clusters, whole_clusters)
    value = float(np.mean(part) / np.mean(whole)) if np.any(whole) else None
    return Figure(value=value, low=low, high=high, n=len(part))
