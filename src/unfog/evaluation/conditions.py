"""Does a picture show what was asked for? Retrieval of its caption among others, and its style, beside real pictures.

Judged by the shipped scorer (scorer.py), which no generator was trained against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.report import Beside, Measure, rate, share
from unfog.evaluation.retrieval import DISTRACTORS, draw_distractors, retrieval
from unfog.evaluation.samples import ALL, SIDE, SPLITS, Samples, caption
from unfog.evaluation.scorer import Scorer, describe
from unfog.modalities.image.data import PictureSet
from unfog.networks.text import TextEncoder

# Unseen pictures stand in for the captions seen in training: the scorer knows those captions' pictures by heart.
REFERENCE = {"train": "heldout_pair"}


@dataclass(frozen=True)
class Judged:
    """What was found of each sample: the name of a measure and the samples it is of -> hits (N,), and their clusters."""

    measures: list[Measure]
    values: dict[tuple[str, str], tuple[NDArray[np.bool_], list[str]]]


def concepts_of(data: PictureSet) -> list[str]:
    """The concept of each record: pictures of one succeed and fail together."""
    return [record.concept or caption(record) for record in data.records]


def conditions(samples: Samples, data: PictureSet, scorer: Scorer, encoder: TextEncoder) -> Judged:
    """Retrieval for each split, and wrong styles over all, of the samples whose captions the data knows.

    Raises: UserError where the data has fewer than two different captions, or none at a picture.
    """
    names = [caption(record) for record in data.records]
    if not all(names):
        bare = data.records[names.index("")].file_name
        raise UserError(f"{data.path}: {bare} has no caption; add a name or text to each picture")
    captions = list(dict.fromkeys(names))
    if len(captions) < 2:
        raise UserError(f"{data.path}: all pictures share one caption; retrieval needs at least two")
    number = {name: i for i, name in enumerate(captions)}
    distractors = min(DISTRACTORS, len(captions) - 1)
    tags = {name: record.tags if record.name else [] for name, record in zip(names, data.records, strict=True)}
    texts = scorer.text_vectors(describe(encoder, captions, [tags[name] for name in captions])).numpy()
    concepts = concepts_of(data)

    def hits(pictures: NDArray[np.uint8], rows: Sequence[int]) -> NDArray[np.bool_]:
        vectors = scorer.picture_vectors(scorer.features(pictures)).numpy()
        own = [number[names[row]] for row in rows]
        return retrieval(vectors, texts, own, draw_distractors(own, len(captions), distractors))

    splits = [s for s in (*SPLITS, ALL) if (samples.rows[samples.splits == s] >= 0).any()]
    places = {split: np.array([i for i in samples.of(split) if samples.rows[i] >= 0]) for split in splits}
    rows = {split: samples.rows[places[split]].tolist() for split in splits}
    different = {split: list(dict.fromkeys(rows[split])) for split in splits}
    shown = {split: np.stack([data.load(row, SIDE) for row in different[split]]) for split in splits}
    generated = {split: hits(samples.pictures[places[split]], rows[split]) for split in splits}
    real = {split: dict(zip(different[split], hits(shown[split], different[split]).tolist(), strict=True)) for split in splits}
    name, measures, values = f"R@1 of {distractors + 1}", [], {}
    for split in splits:
        reference = REFERENCE[split] if REFERENCE.get(split) in splits else split
        ours, theirs = ([concepts[row] for row in rows[s]] for s in (split, reference))
        known = np.array([real[reference][row] for row in rows[reference]])
        beside = [Beside(name=f"real pictures ({reference})", figure=rate(known, theirs, len(different[reference])))]
        measures.append(Measure(group="condition", name=name, of=split, figure=rate(generated[split], ours), unit="%",
                                better="higher", beside=beside))  # fmt: skip
        measures.append(Measure(group="condition", name="R@1 as a share of real", of=split, unit="%", better="higher",
                                figure=share(generated[split], known, ours, theirs)))  # fmt: skip
        values[name, split] = (generated[split], ours)
    styles = _wrong_style(samples, places, rows, shown, data, concepts, scorer)
    if styles is not None:
        measure, wrong, clusters = styles
        measures.append(measure)
        values[measure.name, measure.of] = (wrong, clusters)
    return Judged(measures, values)


def _wrong_style(
    samples: Samples, places: dict[str, NDArray[np.int64]], rows: dict[str, list[int]], shown: dict[str, NDArray[np.uint8]],
    data: PictureSet, concepts: Sequence[str], scorer: Scorer,
) -> tuple[Measure, NDArray[np.bool_], list[str]] | None:  # fmt: skip
    """Pictures that do not look like the style asked for, all splits together; real ones from held-out splits."""
    known = set(scorer.style_names) & set(samples.styles)
    made = [(row, samples.pictures[i]) for split in rows for i, row in zip(places[split], rows[split], strict=True)
            if data.records[row].style in known]  # fmt: skip
    real = [(row, picture) for split in rows if split != "train"
            for row, picture in zip(dict.fromkeys(rows[split]), shown[split], strict=True)
            if data.records[row].style in known]  # fmt: skip
    if not made:
        return None

    def wrong(part: Sequence[tuple[int, NDArray[np.uint8]]]) -> tuple[NDArray[np.bool_], list[str]]:
        found = scorer.styles(np.stack([picture for _, picture in part]))
        return style_error(found, [data.records[row].style for row, _ in part]), [concepts[row] for row, _ in part]

    found, clusters = wrong(made)
    beside = [Beside(name="real pictures (held out)", figure=rate(*wrong(real)))] if real else []
    measure = Measure(group="condition", name="wrong style", of=ALL, unit="%", better="lower", figure=rate(found, clusters),
                      beside=beside)  # fmt: skip
    return measure, found, clusters


def style_error(found: Sequence[str], asked: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures look like another style than the one asked for (N,); the mean is the error."""
    return np.array([a != b for a, b in zip(found, asked, strict=True)], bool)
