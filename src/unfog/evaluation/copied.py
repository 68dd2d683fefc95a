"""Rows of a report about memory: copies among the samples, what the detector is worth here, duplicates, seen against unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unfog.evaluation.memorisation import Memorisation, memorisation
from unfog.evaluation.report import Beside, Figure, Measure
from unfog.evaluation.samples import ALL, SIDE, Samples, caption
from unfog.evaluation.shares import Share
from unfog.modalities.image.data import PictureSet

MOST = 500  # samples that are held against the training pictures


def copied(
    samples: Samples, data: PictureSet, concepts: Sequence[str], seed: int, model: Any = None
) -> tuple[list[Measure], Memorisation, str]:
    """The rows, all that was found, and a warning or "".

    Where the data holds pictures out and samples were made for their captions, only these samples count: a model asked for what
    it was trained on may well draw it.
    """
    train = data.split("train") or list(range(len(data)))
    held = [row for row, record in enumerate(data.records) if record.split != "train"]
    split = next((s for s in ("heldout_pair", "heldout_concept") if (samples.splits == s).any()), ALL)
    places = samples.of(split)[:MOST]
    records = [[data.records[row] for row in rows] for rows in (train, held)]
    known = getattr(model, "styles", ())
    found = memorisation(
        model,
        samples.pictures[places],
        np.stack([data.load(row, SIDE) for row in train]),
        np.stack([data.load(row, SIDE) for row in held]) if held else None,
        names=[record.file_name for record in records[0]],
        groups=[concepts[row] for row in held] or None,
        prompts=([caption(r) for r in records[0]], [caption(r) for r in records[1]]),
        styles=([r.style if r.style in known else None for r in records[0]],
                [r.style if r.style in known else None for r in records[1]]),
        seed=seed,
    )  # fmt: skip
    real = f"real, {'unseen' if found.unseen == 'held-out' else 'each against the others'}"

    def row(name: str, share: Share, *beside: Beside, note: str = "") -> Measure:
        return Measure(
            group="memory", name=name, of=split, figure=_figure(share), unit="%", better="lower", beside=list(beside), note=note
        )

    falsely = Beside(name=real, figure=_figure(found.calibration.measured))
    planted = [Beside(name=f"found, {kind}", figure=_figure(share)) for kind, share in found.recall.items()]
    rows = [
        row("copies", found.alarms, falsely, note=found.words),
        row("mirrored copies", found.mirrored, Beside(name=real, figure=_figure(found.mirrored_calibration.measured))),
        Measure(group="memory", name="planted copies found", of="train", unit="%", better="higher", beside=planted,
                figure=_figure(Share.of(np.repeat([True, False], _hits(found))))),
        Measure(group="memory", name="distance to the likeliest original", of=split, note="median, aligned and recoloured",
                figure=Figure(value=found.nearest_generated, n=len(places)),
                beside=[Beside(name=real, figure=Figure(value=found.nearest_real, n=found.calibration.measured.n))]),
    ]  # fmt: skip
    if found.duplicates is not None:
        twins = found.duplicates
        rows.append(Measure(group="memory", name="training pictures with a twin", of="train", unit="%", better="lower",
                            figure=Figure(value=twins.share, n=twins.n), note=f"in {twins.groups} groups"))  # fmt: skip
    return rows, found, found.words if found.verdict == "copies" else ""


def _hits(found: Memorisation) -> tuple[int, int]:
    """Planted copies that are found and that are not, all kinds together."""
    hits = sum(round(share.value * share.n) for share in found.recall.values())
    return hits, sum(share.n for share in found.recall.values()) - hits


def _figure(share: Share) -> Figure:
    return Figure(value=share.value, low=share.low, high=share.high, n=share.n)
