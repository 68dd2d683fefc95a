"""How far a detector of copies can be trusted: what it finds of each kind of copy, and what it wrongly finds, over its threshold.

    recall(k, s) = share of copies, changed in the way k, that score above s      false positives(s): the same of unseen pictures

`Reliability` is plain lists, so that any detector can be drawn; `stream` measures the one of `unfog.evaluation.memorisation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unfog.errors import UserError
from unfog.evaluation.copies import Known, look
from unfog.evaluation.memorisation import calibrate, planted
from unfog.evaluation.plants import KINDS
from unfog.model import Model
from unfog.page import Lines, Series
from unfog.plots.data import held_out, pictures_of
from unfog.plots.drawn import Curve
from unfog.plots.requests import CopiesRequest
from unfog.requests import Progress

SIDE = 64
POINTS = 60  # thresholds of a curve
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Reliability:
    """thresholds (T,) rising; false_positives (T,) and recall[kind] (T,) in [0, 1]; unseen, planted: how many were scored.

    used: the threshold that is used, or None.
    """

    thresholds: Sequence[float]
    false_positives: Sequence[float]
    recall: Mapping[str, Sequence[float]]
    unseen: int
    planted: Mapping[str, int]
    used: float | None = None
    score: str = "the score"

    @classmethod
    def of(cls, unseen: ArrayLike, planted: Mapping[str, ArrayLike], used: float | None = None, score: str = "the score",
           points: int = POINTS) -> Reliability:  # fmt: skip
        """From the scores of pictures that are no copies (N,) and of copies of each kind (M,); higher is more like a copy."""
        real = np.asarray(unseen, np.float64)
        made = {kind: np.asarray(scores, np.float64) for kind, scores in planted.items()}
        every = np.concatenate([real, *made.values()])
        if not len(real) or not made or not all(map(len, made.values())) or not np.isfinite(every).all():
            raise UserError("copies: scores must be finite numbers, some of unseen pictures and some of each kind of copy")
        low, high = np.quantile(every, (0.002, 0.998))
        ends = np.linspace(low, high, points)
        ends = np.unique(np.append(ends, [] if used is None else [used]))

        def above(scores: NDArray[np.float64]) -> list[float]:
            return [float((scores > end).mean()) for end in ends]

        counts = {kind: len(scores) for kind, scores in made.items()}
        return cls(ends.tolist(), above(real), {k: above(s) for k, s in made.items()}, len(real), counts, used, score)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n, also of many thousands at once. Source: Wilson 1927, JASA 22, 209."""
    middle, half = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # exactly, which rounding would miss


def curve(found: Reliability, title: str = "Copies: found, and found wrongly", roc: bool = False) -> Curve:
    """Shares over the threshold; roc: recall over false positives instead. With 95 % intervals."""
    at, series = _at(found), []
    kept = _corners(found) if roc else list(range(len(found.thresholds)))
    least = 0.5 / found.unseen  # where none is found wrongly on a logarithmic scale
    x = [max(found.false_positives[i], least) if roc else found.thresholds[i] for i in kept]
    lines = [(kind, found.planted[kind], recall, k % 5, k >= 5) for k, (kind, recall) in enumerate(found.recall.items())]
    if not roc:
        lines.append(("unseen pictures: false positives", found.unseen, found.false_positives, 5, True))
    for name, count, shares, colour, dashed in lines:
        y = [shares[i] for i in kept]
        ends = [wilson(share, count) for share in y]
        low, high = [a for a, _ in ends], [b for _, b in ends]
        series.append(Series(f"{name} ({count:,})", x, y, colour, dashed=dashed, low=low, high=high))
    words = "share of unseen pictures found wrongly" if roc else f"threshold of {found.score}"
    marks = []
    if at is not None and found.used is not None:
        words += f" (used: {found.used:.3g}, {100 * at['false_positives']:.3g} % found wrongly)"
        marks = [max(at["false_positives"], least) if roc else found.used]
    facts: dict[str, Any] = {"plot": "copies", "thresholds": list(found.thresholds), "score": found.score, "used": found.used,
                             "false_positives": list(found.false_positives), "unseen": found.unseen,
                             "recall": {kind: list(values) for kind, values in found.recall.items()},
                             "planted": dict(found.planted), "at_used": at}  # fmt: skip
    return Curve(Lines(title, series, words, "share found", x_log=roc, zero=True, marks=marks, marked="used:"), facts)


def _corners(found: Reliability) -> list[int]:
    """Of thresholds with the same false positives the lowest, which finds most; false positives rising."""
    first: dict[float, int] = {}
    for i, share in enumerate(found.false_positives):
        first.setdefault(share, i)
    return sorted(first.values(), key=lambda i: found.false_positives[i])


def _at(found: Reliability) -> dict[str, Any] | None:
    """What holds at the threshold in use."""
    if found.used is None:
        return None
    i = int(np.argmin(np.abs(np.asarray(found.thresholds) - found.used)))
    return {"false_positives": found.false_positives[i], "recall": {kind: values[i] for kind, values in found.recall.items()}}


def stream(request: CopiesRequest, model: Model) -> Iterator[Progress | Curve]:
    """Progress, then the curve of the detector among the pictures that the model was trained on."""
    data = pictures_of(request.data, model)
    train, split = data.split("train"), held_out(data)
    if len(train) < 20:
        raise UserError(f"data: {data.path} has {len(train)} training pictures; a detector's share of errors needs 20 or more")
    rng, total = np.random.default_rng(request.seed), len(KINDS) + 2
    known = Known.of([data.load(row, SIDE) for row in train[i : i + 256]] for i in range(0, len(train), 256))
    yield Progress(1, total)
    if split:
        rows = rng.permutation(data.split(split))[: request.unseen].tolist()
        unseen = look([data.load(row, SIDE) for row in rows], known).score
        groups = [data.records[row].concept or data.records[row].file_name for row in rows]
    else:  # each training picture against all others
        own = rng.permutation(len(train))[: request.unseen]
        unseen, groups = look(known.part(own).planes, known, own).score, [str(i) for i in own]
    used = calibrate(unseen, groups, seed=request.seed).threshold
    yield Progress(2, total)
    pictures = [data.load(train[i], SIDE) for i in rng.permutation(len(train))[: request.n]]
    scores: dict[str, NDArray[np.float32]] = {}
    for k, (kind, change) in enumerate(KINDS.items()):
        scores |= {name: found.score for name, found in planted(pictures, known, request.seed, {kind: change}).items()}
        yield Progress(3 + k, total)
    found = Reliability.of(unseen, scores, used, "the score (log-odds of a copy)")
    drawn = curve(found, f"Copies of {data.path.stem}: found, and found wrongly", request.roc)
    yield Curve(drawn.lines, drawn.facts | {"data": data.path.stem, "model": model.name, "split": split or "train"})
