"""Does a model hand out what it was trained on? Copies among its samples, held against what real unseen pictures score.

    threshold t    the k-th highest score of n held-out pictures, k = ⌊n/100 + 1/100⌋       P(score > t | unseen) ≤ 1 %
    measured       the same with t set on one half of them and counted on the other, both ways, with an interval
    alarm rate     share of samples with score > t                                 a verdict only where its interval is above 1 %
    recall         share of training pictures, changed on purpose (plants.KINDS), with score > t

1 % means: of real pictures that nobody copied, drawn as the held-out ones were, one in a hundred is called a copy. A set that
draws two things alike (flags, clock faces, hearts of other colours) has such pictures among its held-out ones; they stay in.
Mirrored copies have a threshold of their own, for sets hold mirrored pairs that nothing tells from mirrored copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from unfog.evaluation.copies import Found, Known, Pictures, look
from unfog.evaluation.membership import Membership, membership
from unfog.evaluation.plants import KINDS, Change
from unfog.evaluation.shares import Part, Share

STATED = 0.01  # of real unseen pictures may be called copies
TWIN = 0.03  # RMS over premultiplied RGBA in [0, 1] at 32×32 below which two pictures are one: looked at in emoji-64
PLANTED = 100  # training pictures changed on purpose, of each kind
POINTS = 60  # of a reliability curve
SHOWN = 12  # examples named


class Calibration(Part):
    """A threshold and what it was taken on."""

    threshold: float
    stated: float
    measured: Share = Field(description="false positives on the half that did not set the threshold, both halves together")
    enough: bool = Field(description="whether there were enough unseen pictures to show the stated share")


class Curve(Part):
    """How threshold, false positives and recall go together; each list has one entry a threshold, the lowest first."""

    thresholds: list[float]
    false_positives: list[float]
    recall: dict[str, list[float]]


class Copy(Part):
    """A sample and the training picture that it is called a copy of."""

    sample: int
    original: str
    score: float
    apart: float
    mirrored: bool


class Duplicates(Part):
    """Training pictures that nearly equal another one."""

    share: float = Field(description="pictures that have a twin")
    spare: float = Field(description="pictures that could go without loss: all but one of each group")
    groups: int
    largest: int
    examples: list[list[str]]
    n: int


class Memorisation(Part):
    """All that was found of one model; `str` gives the table."""

    calibration: Calibration
    unseen: Literal["held-out", "training"] = Field(description="training: each against all others, where nothing is held out")
    alarms: Share = Field(description="samples called copies")
    mirrored: Share = Field(description="samples called mirrored copies, by that threshold")
    mirrored_calibration: Calibration
    nearest_generated: float = Field(description="median RMS to the likeliest original, aligned and recoloured")
    nearest_real: float
    recall: dict[str, Share]
    curve: Curve
    copies: list[Copy]
    duplicates: Duplicates | None
    membership: Membership | None
    verdict: Literal["copies", "clear", "unclear"]
    words: str

    def __str__(self) -> str:
        rows = [
            ("alarm rate", str(self.alarms)),
            ("mirrored", str(self.mirrored)),
            ("false positives", f"{self.calibration.measured} (stated {100 * self.calibration.stated:g} %)"),
            *((f"finds {kind}", str(share)) for kind, share in self.recall.items()),
            ("nearest, median", f"generated {self.nearest_generated:.4f}, real {self.nearest_real:.4f}"),
        ]
        if self.duplicates is not None:
            found = self.duplicates
            rows.append(("duplicates", f"{100 * found.share:.1f} % of {found.n:,} in {found.groups} groups"))
        if self.membership is not None:
            rows.append(("seen or unseen", str(self.membership)))
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name.ljust(width)}  {text}" for name, text in rows), self.words])


def threshold_of(scores: ArrayLike, stated: float = STATED) -> float:
    """A score that one more picture, drawn as these `scores` (N,) were, exceeds with a chance of at most `stated`.

    It is the k-th highest with k = floor(stated·(N + 1)): the next of N + 1 is as likely to have any rank (Vovk et al. 2005,
    conformal prediction). Of too few scores (k = 0) it is the highest, and the chance is 1/(N + 1).
    Raises: ValueError where there are none.
    """
    ranked = np.sort(np.asarray(scores, np.float64))[::-1]
    if len(ranked) == 0:
        raise ValueError("a threshold needs scores of unseen pictures")
    return float(ranked[min(max(int(stated * (len(ranked) + 1)) - 1, 0), len(ranked) - 1)])


def calibrate(scores: ArrayLike, groups: Sequence[object] | None = None, stated: float = STATED, seed: int = 0) -> Calibration:
    """A threshold from what unseen pictures score (N,), and how many exceed one that was set without them.

    Args: groups, N labels: pictures of one label stay in one half (concepts, of which several styles are held out together).
    """
    x = np.asarray(scores, np.float64)
    labels = list(range(len(x))) if groups is None else list(groups)
    code: dict[object, int] = {}
    of = np.array([code.setdefault(label, len(code)) for label in labels])
    first = (np.random.default_rng(seed).permutation(len(code)) % 2 == 0)[of]
    crossed = np.zeros(len(x), bool)
    for half in (first, ~first):
        if half.any() and (~half).any():
            crossed[half] = x[half] > threshold_of(x[~half], stated)
    measured = Share.of(crossed)
    return Calibration(threshold=threshold_of(x, stated), stated=stated, measured=measured, enough=stated * len(x) >= 2)


def duplicates(known: Known, names: Sequence[str], limit: float = TWIN) -> Duplicates:
    """Which known pictures nearly equal another (RMS below `limit` at 32×32), as groups of twins and twins' twins."""
    count = len(known)
    flat = known.planes.flatten(1).float().numpy() / 255
    squares = np.einsum("nd,nd->n", flat, flat)
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(0, count, 512):
        apart = squares[i : i + 512, None] + squares[None, i:] - 2 * flat[i : i + 512] @ flat[i:].T
        for a, b in np.argwhere(apart < limit**2 * flat.shape[1]).tolist():
            if a < b:
                parent[root(i + b)] = root(i + a)
    members: dict[int, list[int]] = {}
    for i in range(count):
        members.setdefault(root(i), []).append(i)
    groups = sorted((group for group in members.values() if len(group) > 1), key=len, reverse=True)
    inside = sum(map(len, groups))
    return Duplicates(share=inside / max(count, 1), spare=(inside - len(groups)) / max(count, 1), groups=len(groups),
                      largest=len(groups[0]) if groups else 1, n=count,
                      examples=[[names[i] for i in group[:6]] for group in groups[:SHOWN]])  # fmt: skip


def planted(
    pictures: Sequence[NDArray[np.uint8]], known: Known, seed: int = 0, kinds: Mapping[str, Change] = KINDS
) -> dict[str, Found]:
    """What pictures among the known ones score once they are changed in each of the ways."""
    found = {}
    for k, (name, change) in enumerate(kinds.items()):
        rng = np.random.default_rng([seed, k])
        found[name] = look([change(picture, rng) for picture in pictures], known)
    return found


def curve(unseen: Found, found: Mapping[str, Found], points: int = POINTS) -> Curve:
    """False positives and recall of each kind at thresholds spread over the scores of the unseen pictures."""
    shares = np.concatenate([[0.0], np.geomspace(1 / max(len(unseen.score), 2), 1, points)])
    levels = sorted({threshold_of(unseen.score, share) for share in shares})
    recall = {name: [float((part.score > level).mean()) for level in levels] for name, part in found.items()}
    return Curve(thresholds=levels, false_positives=[float((unseen.score > level).mean()) for level in levels], recall=recall)


def memorisation(
    model: Any,
    samples: Pictures,
    train: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    heldout: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | None,
    *,
    names: Sequence[str] | None = None,
    groups: Sequence[object] | None = None,
    prompts: tuple[Sequence[str], Sequence[str]] | None = None,
    styles: tuple[Sequence[str | None], Sequence[str | None]] | None = None,
    known: Known | None = None,
    stated: float = STATED,
    seed: int = 0,
    most: int = 500,
    plants: int = PLANTED,
) -> Memorisation:
    """Copies of training pictures among samples, what the detector is worth here, duplicates, and the loss seen against unseen.

    Args: model, for the membership test (None: none is made); samples, train, heldout, straight RGBA (H, W, 4) uint8 of any
        shapes (heldout None: training pictures, each against all others, stand in); names, of training pictures; groups, of
        held-out pictures (concepts); prompts and styles, of training and of held-out pictures, for the membership test;
        known, `Known.of` the training pictures where it is at hand; stated, the share of unseen pictures that may be called
        copies; most, unseen pictures that are looked at; plants, training pictures changed in each of the ways.
    Raises: ValueError where there are no samples, or fewer than two training pictures.
    """
    if len(samples) == 0 or len(train) < 2:
        raise ValueError("memorisation needs samples and at least two training pictures")
    known = known or Known.of(train[i : i + 256] for i in range(0, len(train), 256))
    names = names or [str(i) for i in range(len(train))]
    rng = np.random.default_rng(seed)
    own: NDArray[np.int64] | None = None
    if heldout is not None and len(heldout):
        rows = rng.permutation(len(heldout))[:most]
        unseen, labels = [heldout[i] for i in rows], None if groups is None else [groups[i] for i in rows]
    else:
        own = rng.permutation(len(train))[:most]
        unseen, labels = [train[i] for i in own], None
    innocent, innocent_mirrored = (look(unseen, known, own, mirrored) for mirrored in (False, True))
    limits = [calibrate(part.score, labels, stated, seed) for part in (innocent, innocent_mirrored)]
    made, made_mirrored = (look(samples, known, None, mirrored) for mirrored in (False, True))
    drawn = rng.permutation(len(train))[:plants]
    found = planted([train[i] for i in drawn], known, seed)
    alarms, alarms_mirrored = (Share.of(part.score > c.threshold) for part, c in zip((made, made_mirrored), limits, strict=True))
    verdict = _verdict(alarms, limits[0])
    member = None
    if model is not None and own is None and heldout is not None and prompts is not None:
        member = membership(model, train, heldout, prompts, styles or ([None] * len(train), [None] * len(heldout)), seed=seed)
    return Memorisation(
        calibration=limits[0],
        unseen="training" if own is not None else "held-out",
        alarms=alarms,
        mirrored=alarms_mirrored,
        mirrored_calibration=limits[1],
        nearest_generated=float(np.median(made.apart)),
        nearest_real=float(np.median(innocent.apart)),
        recall={name: Share.of(part.score > limits[0].threshold) for name, part in found.items()},
        curve=curve(innocent, found),
        copies=_examples(made, made_mirrored, limits, names),
        duplicates=duplicates(known, names),
        membership=member,
        verdict=verdict,
        words=_words(verdict, alarms, limits[0]),
    )


def _examples(made: Found, mirrored: Found, limits: Sequence[Calibration], names: Sequence[str]) -> list[Copy]:
    """The samples that exceed a threshold by most."""
    all_ = [
        (float(part.score[i]) - limit.threshold, Copy(sample=int(i), original=names[int(part.index[i])], mirrored=turned,
         score=round(float(part.score[i]), 3), apart=round(float(part.apart[i]), 4)))
        for part, limit, turned in ((made, limits[0], False), (mirrored, limits[1], True))
        for i in np.flatnonzero(part.score > limit.threshold)
    ]  # fmt: skip
    return [copy for _, copy in sorted(all_, key=lambda pair: -pair[0])[:SHOWN]]


def _verdict(alarms: Share, limit: Calibration) -> Literal["copies", "clear", "unclear"]:
    """copies: more alarms than unseen pictures can explain; clear: the interval reaches at most three times the stated share."""
    allowed = max(limit.stated, limit.measured.value)
    if alarms.low > allowed:
        return "copies"
    return "clear" if alarms.high <= 3 * limit.stated and limit.enough else "unclear"


def _words(verdict: str, alarms: Share, limit: Calibration) -> str:
    rate = (
        f"{100 * alarms.value:.1f} % of {alarms.n} samples are called copies, as {100 * limit.stated:g} % of unseen pictures are"
    )
    if verdict == "copies":
        return f"The model copies its training pictures: {rate}."
    if verdict == "clear":
        return f"No copying found: {rate}."
    more = "make more samples, or hold out more pictures"
    return f"Nothing is certain: {rate}, perhaps {100 * alarms.high:.1f} %; {more}."
