"""What an evaluation found: every figure with its interval and its number of pictures, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from unfog.evaluation.statistics import LEVEL, bootstrap_interval, share_interval


class Part(BaseModel):
    """What all parts share: nothing changes later, nothing unknown is read back."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Part):
    """A mean or a share with its 95 % interval; None where there is none (a share of zero)."""

    value: float | None
    low: float | None
    high: float | None
    n: int = Field(ge=1, description="pictures behind it")

    @field_validator("value", "low", "high")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None  # JSON has no infinity

    def __str__(self) -> str:
        numbers = ["    —" if x is None else f"{100 * x:5.1f}" for x in (self.value, self.low, self.high)]
        return f"{numbers[0]} % [{numbers[1]},{numbers[2]}] n={self.n}"


class Group(Part):
    """Retrieval of one group of captions: generated pictures, real ones, and the one as a share of the other."""

    split: str
    generated: Figure
    real: Figure
    reference: str = Field(description="the split that the real pictures are from")
    share: Figure


class Compared(Part):
    """A rate among generated pictures, and the same among real held-out ones (None where there are none)."""

    split: str
    generated: Figure
    real: Figure | None


class Copies(Part):
    """Pictures called copies under one threshold, and what that threshold finds of copies planted on purpose."""

    calibration: str = Field(description="unseen or twins: the real pictures whose 1 % quantile is the threshold")
    threshold: float
    split: str
    generated: Figure
    real: Figure | None
    noisy: Figure = Field(description="found of planted copies with noise of 16/255")
    softened: Figure = Field(description="found of planted copies softened over 2×2 pixels")


class Report(Part):
    """An evaluation of one model; `str` gives the table, `model_dump_json` the JSON."""

    model: str
    model_hash: str
    data: str
    scorer: str = Field(description="sha256 of the scorer's manifest, first 16 digits")
    sampler: str
    steps: int
    scale: float
    first_seed: int
    pictures: int
    batch: int
    distractors: int
    level: float = LEVEL
    retrieval: list[Group]
    copies: list[Copies]
    nearest_generated: float = Field(description="median distance of a sample to its nearest training picture")
    nearest_real: float | None = Field(description="the same of real pictures of that split")
    wrong_style: Compared | None
    seconds: float
    version: str

    def __str__(self) -> str:
        """A plain table: every number in per cent, with its interval and sample size."""
        last = self.first_seed + self.pictures - 1
        rows = [
            ("measure", "split", "generated", "real pictures", "share of real"),
            *(
                (
                    f"R@1 of {self.distractors + 1}",
                    group.split,
                    str(group.generated),
                    str(group.real) + (f" ({group.reference})" if group.reference != group.split else ""),
                    str(group.share),
                )
                for group in self.retrieval
            ),
            *((f"copies ({c.calibration})", c.split, str(c.generated), _or_dash(c.real), "") for c in self.copies),
            *((f"  finds noisy, soft copies ({c.calibration})", "train", str(c.noisy), str(c.softened), "") for c in self.copies),
        ]
        if self.wrong_style is not None:
            style = self.wrong_style
            rows.append(("wrong style", style.split, str(style.generated), _or_dash(style.real), ""))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = [
            f"{self.model} ({self.model_hash}) against {self.data}: {self.pictures} pictures, seeds {self.first_seed} to {last}",
            f"{self.sampler}, {self.steps} steps, scale {self.scale:g}, batch {self.batch}; scorer {self.scorer}; "
            f"{self.seconds:.0f} s; intervals {100 * self.level:.0f} %, whole concepts resampled",
        ]
        real = "—" if self.nearest_real is None else f"{self.nearest_real:.4f}"
        foot = f"median distance to the nearest training picture: generated {self.nearest_generated:.4f}, real {real}"
        return "\n".join([*head, "", *table, "", foot])


def _or_dash(found: Figure | None) -> str:
    return "—" if found is None else str(found)


def figure(values: NDArray[np.bool_], clusters: Sequence[str], n: int | None = None) -> Figure:
    """The rate of True among `values` (N,) with its interval; n, where values repeat, how many are different."""
    low, high = bootstrap_interval(values, clusters)
    return Figure(value=float(np.mean(values)), low=low, high=high, n=n or len(values))


def share_figure(
    part: NDArray[np.bool_], whole: NDArray[np.bool_], part_clusters: Sequence[str], whole_clusters: Sequence[str]
) -> Figure:
    """One rate as a share of another, with its interval; n is the number of `part`."""
    low, high = share_interval(part, whole, part_clusters, whole_clusters)
    value = float(np.mean(part) / np.mean(whole)) if np.any(whole) else None
    return Figure(value=value, low=low, high=high, n=len(part))
