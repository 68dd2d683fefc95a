"""How near samples are to the data, and how much of the data they cover: rows of a report from features alone.

The same figures stand beside them for real data: held-out items against the training items, and half of the training items
against the other half, as many as there are samples. What a model has more than these is its own doing; what is less, luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.estimates import ESTIMATES, estimates
from unfog.evaluation.report import Beside, Figure, Measure
from unfog.evaluation.samples import ALL
from unfog.evaluation.statistics import Estimate

LEAST = 50  # samples below which nothing here is worth printing
FLOOR_GROUPS = 5  # of the jackknife of real data: their intervals may be rough, and a Fréchet distance is dear
PARTS = (*ESTIMATES, "prdc")
HELD_OUT, HALVES = "real, held out", "real, half against half"
Features = NDArray[np.float32]


def names(label: str) -> dict[str, str]:
    """What each figure is called, by the label of its reader: FD-lite0 gives KD-lite0 and MIND-lite0; FID gives KID."""
    if label == "FID":
        return {"frechet": "FID", "kernel": "KID", "mind": "MIND"}
    of = label.removeprefix("FD-")
    return {"frechet": label, "kernel": f"KD-{of}", "mind": f"MIND-{of}"}


def few(n: int) -> str:
    """Why n samples are refused."""
    return f"n: {n} samples tell next to nothing; give {LEAST} or more, or --force to print them all the same"


def fidelity(
    made: Features,
    train: Features,
    held: Features | None,
    label: str,
    clusters: tuple[Sequence[object], Sequence[object], Sequence[object]] | None = None,
    force: bool = False,
) -> tuple[list[Measure], dict[str, Estimate]]:
    """Rows of made features (M, D) against training features (N, D), and the estimates behind them, by name.

    Args: held, features of real items that were not trained on; clusters, labels of the made, training and held-out items.
    Raises: UserError where a set is empty or not finite, widths differ, or samples are too few and `force` is not set.
    """
    if len(made) < LEAST and not force:
        raise UserError(few(len(made)))
    labels = clusters or (range(len(made)), range(len(train)), range(0 if held is None else len(held)))
    rows: list[Measure] = []
    found: dict[str, Estimate] = {}
    order = np.random.default_rng(0).permutation(len(train))
    halves = order[: len(train) // 2], order[len(train) // 2 :][: len(made)]
    for part in PARTS:
        # how much is covered changes with how many real items there are: what stands side by side is held against as many
        real, of = (train[halves[0]], [labels[1][i] for i in halves[0]]) if part == "prdc" else (train, labels[1])
        ours, why = _tried(part, real, made, (of, labels[0]) if clusters else None, force)
        beside: list[tuple[str, dict[str, Estimate]]] = []
        if ours and held is not None:
            rows_ = np.random.default_rng(1).permutation(len(held))[: len(made)]
            pair = (of, [labels[2][i] for i in rows_]) if clusters else None
            beside.append((HELD_OUT, _tried(part, real, held[rows_], pair, True, FLOOR_GROUPS)[0]))
        if ours:
            beside.append((HALVES, _tried(part, train[halves[0]], train[halves[1]], None, True, FLOOR_GROUPS)[0]))
        for name in ("precision", "recall", "density", "coverage") if part == "prdc" else (part,):
            rows.append(_measure(name, label, ours.get(name), len(made), why, beside, made.shape[1]))
        found |= ours
    return rows, found


def _tried(
    part: str, real: Features, made: Features, clusters: tuple[Sequence[object], Sequence[object]] | None, force: bool,
    groups: int | None = None,
) -> tuple[dict[str, Estimate], str]:  # fmt: skip
    """The estimates of one part, or why there are none. Sets that can never be compared are the caller's error."""
    options = {} if groups is None else {"groups": groups}
    try:
        return estimates(real, made, which=(part,), clusters=clusters, force=force, **options), ""
    except UserError as error:
        if "samples" not in str(error) and "too few" not in str(error):
            raise
        return {}, str(error)


def _measure(
    name: str, label: str, ours: Estimate | None, n: int, why: str, beside: list[tuple[str, dict[str, Estimate]]], dim: int
) -> Measure:
    shown = names(label).get(name, name)
    group: Literal["fidelity", "coverage"] = "fidelity" if name in names(label) else "coverage"
    better: Literal["lower", "higher"] = "lower" if group == "fidelity" else "higher"
    unit: Literal["", "%"] = "%" if name in ("precision", "recall", "coverage", "diversity") else ""
    if ours is None:
        return Measure(group=group, name=shown, of=ALL, figure=Figure(value=None, n=n), unit=unit, better=better, note=why)
    note = ""
    if name == "frechet":
        note = f"corrected to infinitely many samples; others print {ours.value:.4g}"
        if n <= dim:
            note = f"of {n} samples in {dim} dimensions, forced: do not rely on it; {note}"
    elif n < LEAST:
        note = f"of {n} samples, forced: do not rely on it"
    elif group == "coverage" and name != "diversity":
        note = f"against {ours.n} real items; it changes with the numbers of both"
    others = [Beside(name=title, figure=_figure(found[name])) for title, found in beside if name in found]
    return Measure(group=group, name=shown, of=ALL, figure=_figure(ours), unit=unit, better=better, beside=others, note=note)


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.corrected, low=estimate.low, high=estimate.high, n=estimate.m)
