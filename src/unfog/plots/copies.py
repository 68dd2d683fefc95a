"""How far a detector of copies can be trusted: what it finds of each kind of copy, and what it wrongly finds, over its threshold.

    recall(k, s) = share of copies, changed in the way k, that score above s      false positives(s): the same of unseen pictures

`Reliability` is plain lists, so that any detector can be drawn; `stream` measures the one of `unfog.evaluation.copies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from unfog.errors import UserError
from unfog.evaluation.copies import QUANTILE, nearest, thumbnails
from unfog.modalities.image.colours import turn_hue
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
    """The 95 % interval of a share of n. Source: Wilson 1927, JASA 22, 209."""
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
    rng = np.random.default_rng(request.seed)
    known = np.concatenate([thumbnails(np.stack([data.load(row, SIDE) for row in train[i : i + 256]]))
                            for i in range(0, len(train), 256)])  # fmt: skip
    yield Progress(1, len(CHANGES) + 2)
    if split:
        rows = rng.permutation(data.split(split))[: request.n].tolist()
        unseen = -nearest(thumbnails(np.stack([data.load(row, SIDE) for row in rows])), known)[0]
    else:  # each training picture against all others
        own = rng.permutation(len(train))[: request.n]
        unseen = -nearest(known[own], known, own.tolist(), list(range(len(train))))[0]
    yield Progress(2, len(CHANGES) + 2)
    chosen = [data.load(train[i], SIDE) for i in rng.permutation(len(train))[: request.n]]
    scores = {}
    for k, (kind, change) in enumerate(CHANGES.items()):
        changed = np.stack([change(picture, np.random.default_rng([request.seed, i])) for i, picture in enumerate(chosen)])
        scores[kind] = -nearest(thumbnails(changed), known)[0]
        yield Progress(3 + k, len(CHANGES) + 2)
    used = -float(np.quantile(-unseen, QUANTILE, method="lower"))
    found = Reliability.of(unseen, scores, used, "the score, which is −1 × the distance to the nearest")
    drawn = curve(found, f"Copies of {data.path.stem}: found, and found wrongly", request.roc)
    yield Curve(drawn.lines, drawn.facts | {"data": data.path.stem, "model": model.name, "split": split or "train"})


def _moved(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """By 1 or 2 pixels each way."""
    dy, dx = (int(rng.choice([-2, -1, 1, 2])) for _ in range(2))
    out = np.zeros_like(picture)
    h, w = picture.shape[:2]
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = picture[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


def _saved_anew(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """As JPEG, quality 50 to 90, its transparency as it was."""
    file = BytesIO()
    Image.fromarray(picture).convert("RGB").save(file, "JPEG", quality=int(rng.integers(50, 91)))
    return np.dstack([np.asarray(Image.open(file)), picture[..., 3:]])


def _noisy(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """With noise of 8/255 where it is visible."""
    noise = rng.normal(0, 8, picture.shape) * (picture[..., 3:] > 8)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def _softened(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Made smaller by a third and enlarged again."""
    image, side = Image.fromarray(picture), round(SIDE / 1.5)
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))


# what is done to a planted copy, (picture (64, 64, 4) straight RGBA uint8, generator) -> the same
CHANGES: dict[str, Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]] = {
    "moved": _moved,
    "hue turned a little": lambda picture, rng: turn_hue(picture, float(rng.uniform(0.02, 0.06)) * float(rng.choice([-1, 1]))),
    "saved anew": _saved_anew,
    "noisy": _noisy,
    "softened": _softened,
}
