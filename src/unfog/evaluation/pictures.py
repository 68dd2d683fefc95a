"""Evaluation of a text-to-picture model: does it draw what was asked, in the style asked, and not from memory?

For each split of the data (captions seen in training, (concept, style) pairs unseen, concepts unseen) pictures are made
from the names alone with the style given beside them, then retrieval, copies and styles are measured on them and on
the real pictures of the very same captions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.copies import copy_threshold, lower_quantile, nearest, planted, thumbnails
from unfog.evaluation.report import Compared, Copies, Group, Report, figure, share_figure
from unfog.evaluation.retrieval import DISTRACTORS, draw_distractors, retrieval

if TYPE_CHECKING:
    from unfog.evaluation.scorer import Scorer
    from unfog.modalities.image.data import PictureSet, Record
    from unfog.networks.text import TextEncoder
    from unfog.requests import EvaluateRequest

SPLITS = ("train", "heldout_pair", "heldout_concept")
# Unseen pictures stand in for the captions seen in training: the scorer knows those captions' pictures by heart.
REFERENCE = {"train": "heldout_pair"}
MOST_COPIES = 500  # samples whose nearest training picture is looked for
PLANTED = 200  # imperfect copies of training pictures, to see what a threshold finds
SIDE = 64
BATCH = 16


class PictureModel(Protocol):
    """What is asked of a model."""

    name: str
    hash: str
    styles: list[str]
    defaults: dict[str, Any]

    def generate_many(
        self,
        prompts: Sequence[str],
        styles: Sequence[str | None],
        seeds: Sequence[int],
        batch: int = 16,
        steps: int | None = None,
        scale: float | None = None,
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Sample:
    """The pictures made for one split, and where their captions come from."""

    rows: list[int]  # records of the data set; a record comes again where more pictures than records are wanted
    pictures: NDArray[np.uint8]
    real: NDArray[np.uint8]  # of the different records, in the order of their first coming
    place: list[int]  # of each row in `real`


def evaluate(request: EvaluateRequest, *, batch: int = BATCH, steps: int | None = None, scale: float | None = None) -> Report:
    """Evaluate the model that a request names; the report is written to `request.out` as JSON if that is set.

    Args: batch, pictures made at once; steps and scale, instead of the model's defaults.
    Raises: UserError where the model, the data or the file to write is not usable.
    """
    from unfog.data import path
    from unfog.files import write_atomic
    from unfog.modalities.image.data import PictureSet
    from unfog.model import load

    if request.out is not None and request.out.is_dir():  # before the long work, not after it
        raise UserError(f"out: {request.out} is a folder; give a file to write the report to")
    model = load(request.model)
    place = Path(request.against)
    data = PictureSet.open(place if place.exists() or place.suffix or len(place.parts) > 1 else path(request.against))
    report = measure(model, data, request.n, request.seed, batch=batch, steps=steps, scale=scale)
    if request.out is not None:
        try:
            write_atomic(request.out, (report.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            raise UserError(f"out: {request.out} cannot be written ({error.strerror or error}); choose another place") from None
    return report


def measure(
    model: PictureModel,
    data: PictureSet,
    n: int,
    seed: int = 0,
    *,
    batch: int = BATCH,
    steps: int | None = None,
    scale: float | None = None,
    scorer: Scorer | None = None,
    encoder: TextEncoder | None = None,
) -> Report:
    """Make `n` pictures, shared evenly among the data's splits with seeds seed, seed + 1, ..., and measure them.

    Raises: UserError where the data set has no captions, or fewer than two different ones.
    """
    from unfog import __version__
    from unfog.evaluation.scorer import Scorer, describe
    from unfog.networks.text import TextEncoder

    start = time.perf_counter()
    scorer, encoder = scorer or Scorer.load(), encoder or TextEncoder.load()
    names = [caption(record) for record in data.records]
    if not all(names):
        bare = data.records[names.index("")].file_name
        raise UserError(f"{data.path}: {bare} has no caption; add a name or text to each picture")
    captions = list(dict.fromkeys(names))
    if len(captions) < 2:
        raise UserError(f"{data.path}: all pictures share one caption; retrieval needs at least two")
    number = {name: i for i, name in enumerate(captions)}
    distractors = min(DISTRACTORS, len(captions) - 1)
    samples = _generate(model, data, names, n, seed, batch, steps, scale)
    tags = {name: record.tags if record.name else [] for name, record in zip(names, data.records, strict=True)}
    texts = scorer.text_vectors(describe(encoder, captions, [tags[name] for name in captions])).numpy()

    def hits(pictures: NDArray[np.uint8], rows: Sequence[int]) -> NDArray[np.bool_]:
        vectors = scorer.picture_vectors(scorer.features(pictures)).numpy()
        own = [number[names[row]] for row in rows]
        return retrieval(vectors, texts, own, draw_distractors(own, len(captions), distractors))

    concepts = [record.concept or name for record, name in zip(data.records, names, strict=True)]
    generated = {split: hits(sample.pictures, sample.rows) for split, sample in samples.items()}
    real = {split: hits(s.real, list(dict.fromkeys(s.rows)))[s.place] for split, s in samples.items()}
    groups = []
    for split in samples:
        reference = REFERENCE[split] if REFERENCE.get(split) in samples else split
        ours, theirs = ([concepts[row] for row in samples[s].rows] for s in (split, reference))
        groups.append(
            Group(
                split=split,
                generated=figure(generated[split], ours),
                real=figure(real[reference], theirs, len(samples[reference].real)),
                reference=reference,
                share=share_figure(generated[split], real[reference], ours, theirs),
            )
        )
    copies, nearest_generated, nearest_real = _copies(samples, data, concepts, seed)
    return Report(
        model=model.name,
        model_hash=model.hash,
        data=data.path.name,
        scorer=scorer.hash,
        sampler=model.defaults["sampler"],
        steps=steps or model.defaults["steps"],
        scale=model.defaults["scale"] if scale is None else scale,
        first_seed=seed,
        pictures=sum(len(sample.rows) for sample in samples.values()),
        batch=batch,
        distractors=distractors,
        retrieval=groups,
        copies=copies,
        nearest_generated=nearest_generated,
        nearest_real=nearest_real,
        wrong_style=_wrong_style(samples, data, concepts, scorer, model.styles),
        seconds=round(time.perf_counter() - start, 1),
        version=__version__,
    )


def caption(record: Record) -> str:
    """What a picture is asked for by: its name, else its text."""
    return (record.name or record.text).strip()


def _generate(
    model: PictureModel,
    data: PictureSet,
    names: Sequence[str],
    n: int,
    seed: int,
    batch: int,
    steps: int | None,
    scale: float | None,
) -> dict[str, Sample]:
    """Pictures for each split that the data set has, a split's records in an order drawn by the seed."""
    splits = [split for split in SPLITS if data.split(split)]
    if not splits:
        raise UserError(f"{data.path}: no picture is in a split of {', '.join(SPLITS)}; leave `split` out or set it")
    if n < len(splits):
        raise UserError(f"n: {n} pictures cannot cover the {len(splits)} splits of the data; give {len(splits)} or more")
    samples, first = {}, seed
    for k, split in enumerate(splits):
        count = n // len(splits) + (k < n % len(splits))
        order = np.random.default_rng([seed, k]).permutation(data.split(split)).tolist()
        rows = [order[i % len(order)] for i in range(count)]
        styles = [data.records[row].style for row in rows]
        made = model.generate_many(
            [names[row] for row in rows],
            [style if style in model.styles else None for style in styles],
            list(range(first, first + count)),
            batch=batch,
            steps=steps,
            scale=scale,
        )
        first += count
        different = list(dict.fromkeys(rows))
        index = {row: i for i, row in enumerate(different)}
        real = np.stack([data.load(row, SIDE) for row in different])
        samples[split] = Sample(rows, _even(made), real, [index[row] for row in rows])
    return samples


def _even(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pictures at 64×64 where their side is no multiple of 32, which the copy detector needs."""
    if pictures.shape[1] % 32 == 0 and pictures.shape[2] % 32 == 0:
        return pictures
    from PIL import Image

    # Pillow resizes RGBA through premultiplied alpha.
    return np.stack([np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BOX)) for p in pictures])


def _copies(
    samples: Mapping[str, Sample], data: PictureSet, concepts: Sequence[str], seed: int
) -> tuple[list[Copies], float, float | None]:
    """Copies among the samples of a split whose real pictures the model has not seen, where the data has one.

    Returns: the rates under each threshold, and the median nearest distances of samples and of real pictures.
    """
    train = data.split("train") or list(range(len(data)))
    pictures = np.stack([data.load(row, SIDE) for row in train])
    known, known_concepts = thumbnails(pictures), [concepts[row] for row in train]
    split = "heldout_pair" if "heldout_pair" in samples else next(iter(samples))
    rows = samples[split].rows[:MOST_COPIES]
    made, _ = nearest(thumbnails(samples[split].pictures[:MOST_COPIES]), known)
    drawn = np.random.default_rng(seed).permutation(len(train))[:PLANTED]
    noisy, soft = (nearest(thumbnails(part), known)[0] for part in planted(pictures[drawn], seed))
    thresholds = {"twins": copy_threshold(known, known_concepts, known, known_concepts, seed=seed)}
    real: NDArray[np.float32] | None = None
    unseen: list[int] = []
    if split != "train":  # a training picture is its own nearest one
        unseen = np.random.default_rng(seed).permutation(data.split(split))[:MOST_COPIES].tolist()
        real, _ = nearest(thumbnails(np.stack([data.load(row, SIDE) for row in unseen])), known)
        thresholds = {"unseen": lower_quantile(real), **thresholds}
    planted_concepts = [known_concepts[i] for i in drawn]
    rates = [
        Copies(
            calibration=name,
            threshold=threshold,
            split=split,
            generated=figure(made < threshold, [concepts[row] for row in rows]),
            real=None if real is None else figure(real < threshold, [concepts[row] for row in unseen]),
            noisy=figure(noisy < threshold, planted_concepts),
            softened=figure(soft < threshold, planted_concepts),
        )
        for name, threshold in thresholds.items()
    ]
    return rates, float(np.median(made)), None if real is None else float(np.median(real))


def _wrong_style(
    samples: Mapping[str, Sample], data: PictureSet, concepts: Sequence[str], scorer: Scorer, styles: Sequence[str]
) -> Compared | None:
    """Pictures that do not look like the style asked for, all splits together; real ones from held-out splits."""
    known = set(scorer.style_names) & set(styles)
    made = [
        (data.records[row].style, concepts[row], picture)
        for sample in samples.values()
        for row, picture in zip(sample.rows, sample.pictures, strict=True)
        if data.records[row].style in known
    ]
    real = [
        (data.records[row].style, concepts[row], picture)
        for split, sample in samples.items()
        if split != "train"
        for row, picture in zip(dict.fromkeys(sample.rows), sample.real, strict=True)
        if data.records[row].style in known
    ]
    if not made:
        return None
    figures = [
        figure(style_error(scorer.styles(np.stack([p for _, _, p in part])), [s for s, _, _ in part]), [c for _, c, _ in part])
        if part
        else None
        for part in (made, real)
    ]
    assert figures[0] is not None
    return Compared(split="all", generated=figures[0], real=figures[1])


def style_error(found: Sequence[str], asked: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures look like another style than the one asked for (N,); the mean is the error."""
    return np.array([a != b for a, b in zip(found, asked, strict=True)], bool)
