"""Evaluation: how near are samples to the data, how varied, how true to what was asked, how far from copies, at what cost?

Each figure is measured on real data in the same way and stands beside them. Several subjects are measured on the same
captions and seeds and held against the first; what may be luck is said to be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.autoencoders import evaluate_autoencoder
from unfog.evaluation.bits import likelihood
from unfog.evaluation.cache import features_of
from unfog.evaluation.conditions import concepts_of, conditions
from unfog.evaluation.copied import copied
from unfog.evaluation.fidelity import LEAST, few, fidelity, names
from unfog.evaluation.items import LABEL, SHOWN, items_at, report_of, sheets
from unfog.evaluation.items import made_by as made_items
from unfog.evaluation.readers import Reader
from unfog.evaluation.readers import reader as reader_of
from unfog.evaluation.report import Difference, Evaluation, Figure, Measure, Report
from unfog.evaluation.samples import SIDE, Asked, PictureModel, Samples, caption, data_at, found_in, made_by
from unfog.evaluation.statistics import Estimate, differ, difference_interval
from unfog.modalities import modality
from unfog.modalities.contract import Modality
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.latent import autoencoder_folder

if TYPE_CHECKING:
    from unfog.evaluation.memorisation import Memorisation
    from unfog.evaluation.scorer import Scorer
    from unfog.modalities.image.data import PictureSet
    from unfog.model import Model
    from unfog.networks.text import TextEncoder
    from unfog.requests import EvaluateRequest

NUMBERS = (".npy", ".npz")


@dataclass(frozen=True)
class Found:
    """A report, and what comparing it with another needs."""

    report: Report
    estimates: dict[str, Estimate]
    label: str
    values: dict[tuple[str, str], tuple[NDArray[Any], list[str]]] = field(default_factory=dict)
    pairs: Sequence[object] = ()
    pictures: NDArray[np.uint8] | None = None
    captions: Sequence[str] = ()
    real: NDArray[np.uint8] | None = None
    memorised: Memorisation | None = None


def evaluate(request: EvaluateRequest) -> Evaluation:
    """Evaluate all that a request names against one set of data; written to `request.out` (.json or .html) if that is set.

    Raises: UserError where a model, the data or the file to write is not usable, or samples are too few.
    """
    from unfog.evaluation.document import document
    from unfog.files import write_atomic

    if request.out is not None:  # before the long work, not after it
        if request.out.is_dir():
            raise UserError(f"out: {request.out} is a folder; give a file to write the report to")
        if request.out.suffix.lower() not in (".json", ".html"):
            raise UserError(f"out: {request.out} ends in neither .json nor .html; choose one")
    if request.n < LEAST and not request.force:
        raise UserError(few(request.n))
    asked = Asked(request.n, request.seed, request.batch, request.sampler, request.steps, request.scale)
    coded = [name for name in request.models if autoencoder_folder(name)]
    if coded and len(coded) < len(request.models):
        raise UserError(f"{coded[0]}: is an autoencoder, which is compared with autoencoders alone; leave the others out")
    kind = modality("image") if coded else _kind(request)
    if coded:
        found = [_autoencoder(name, request) for name in coded]
    elif kind.name != "image":
        found = _items(kind, request, asked)
    else:
        against = request.against or "emoji-64"
        data = _data(against)
        reader = reader_of(request.reader if not isinstance(data, np.ndarray) else "values")
        found = [_subject(name, data, against, reader, asked, request) for name in request.models]
    differences = [d for other in found[1:] for d in differences_of(found[0], other)]
    evaluation = Evaluation(reports=[one.report for one in found], differences=differences)
    if request.out is not None:
        html = request.out.suffix.lower() == ".html"
        text = document(evaluation, found) if html else evaluation.model_dump_json(indent=1) + "\n"
        try:
            write_atomic(request.out, text.encode())
        except OSError as error:
            raise UserError(f"out: {request.out} cannot be written ({error.strerror or error}); choose another place") from None
    return evaluation


def _autoencoder(name: str, request: EvaluateRequest) -> Found:
    report, made, real, styles = evaluate_autoencoder(name, request)
    return Found(report, {}, "", pictures=made, captions=styles, real=real)


def _is_model(name: str) -> bool:
    place = Path(name)
    return any((folder / "model.json").is_file() for folder in (place, place / "model")) or not place.exists()


def _kind(request: EvaluateRequest) -> Modality:
    """The kind of data that a request is about: said, or that of the first model. Raises UserError where models differ."""
    from unfog.model import load

    kinds = {name: load(name).kind for name in request.models if _is_model(name)}
    first = next(iter(kinds.values()), modality(request.kind or "image"))
    for name, kind in kinds.items():
        if kind.name != (request.kind or first.name):
            raise UserError(f"{name}: is a model of the kind {kind.name}, not {request.kind or first.name}; compare one kind")
    return first


def _items(kind: Modality, request: EvaluateRequest, asked: Asked) -> list[Found]:
    """What a request's names stand for, of a kind that is not pictures, measured."""
    from unfog.model import load

    models = {name: load(name) for name in request.models if _is_model(name)}
    against = request.against or next((str(m.card["training"]["data"]) for m in models.values()), None)
    if against is None:
        raise UserError("against: is missing; give the data to compare with")
    told = next((m.card["training"]["recipe"].get("options") for m in models.values()), None)
    data = items_at(kind, against, told)
    space = next((m.space for m in models.values()), None) or kind.fit(data, kind.options())
    found = []
    for name in request.models:
        model = models.get(name)
        if model is not None:
            made, prompts, seconds = made_items(model, data, asked)
        else:
            own = items_at(kind, name)
            made, prompts, seconds = list(own.raw[: asked.n]), list(own.prompts[: asked.n]), None
        called = model.name if model is not None else Path(name).name
        report, estimates, values = report_of(called, model, made, prompts, kind, space, data, asked, request.force, seconds)
        shown = [int(i) for i in np.linspace(0, len(made) - 1, min(SHOWN, len(made)))]
        labels = [prompts[i] for i in shown]
        pairs = list(zip(prompts, range(len(prompts)), strict=True)) if model is not None else []
        places = data.split("heldout") or list(range(len(data)))
        alike = [next((i for i in places if data.prompts[i] == label), places[0]) for label in labels]
        drawn = sheets(kind, [made[i] for i in shown], labels), sheets(kind, [data.raw[i] for i in alike], labels)
        both = drawn if all(d is not None for d in drawn) else (None, None)
        found.append(Found(report, estimates, LABEL, values, pairs, both[0], labels, both[1]))
    return found


def _data(against: str) -> PictureSet | NDArray[Any]:
    numbers = _numbers(Path(against))
    return data_at(against) if numbers is None else numbers


def _numbers(place: Path) -> NDArray[Any] | None:
    """What a .npy or .npz file of numbers holds, (N, ...); None for anything else, pictures among it."""
    if place.suffix.lower() not in NUMBERS or not place.is_file():
        return None
    try:
        read = np.load(place, allow_pickle=False)
        array = read if isinstance(read, np.ndarray) else read[read.files[0]]
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise UserError(
            f"{place}: not readable as numbers ({str(error).splitlines()[0][:80]}); save it with numpy.save"
        ) from None
    if array.dtype == np.uint8 and array.ndim == 4:
        return None
    if array.ndim < 2 or array.dtype.kind not in "fiu":
        raise UserError(f"{place}: must hold rows of numbers (N, ...), got {array.dtype} {array.shape}; save one row an item")
    return array


def _subject(
    name: str, data: PictureSet | NDArray[Any], against: str, reader: Reader, asked: Asked, request: EvaluateRequest
) -> Found:
    """What one name stands for, measured: a model, a folder of pictures, or numbers."""
    from unfog.modalities.image.data import PictureSet
    from unfog.model import load

    place = Path(name)
    numbers = _numbers(place)
    if (numbers is not None) != isinstance(data, np.ndarray):
        kinds = ("numbers", "pictures") if numbers is not None else ("pictures", "numbers")
        raise UserError(f"against: {name} holds {kinds[0]} and {against} {kinds[1]}; give two sets of one kind")
    if numbers is not None and isinstance(data, np.ndarray):
        return measure_numbers(numbers[: asked.n], data, place.name, Path(against).name, reader, request.force)
    assert not isinstance(data, np.ndarray)
    if not _is_model(name) and not (place / "adapter.json").is_file():
        return measure(found_in(PictureSet.open(place), data, asked.n), data, reader=reader, seed=asked.seed, force=request.force)
    model = load(name)
    samples = made_by(model, data, asked)
    return measure(samples, data, reader=reader, seed=asked.seed, force=request.force, model=model, bits=request.likelihood)


def measure_model(model: PictureModel, data: PictureSet, asked: Asked, **options: Any) -> Found:
    """`measure` of what a model makes for the data's captions; options are those of `measure`."""
    return measure(made_by(model, data, asked), data, seed=asked.seed, **options)


def measure(
    samples: Samples,
    data: PictureSet,
    *,
    reader: Reader | None = None,
    seed: int = 0,
    force: bool = False,
    scorer: Scorer | None = None,
    encoder: TextEncoder | None = None,
    model: Model | None = None,
    bits: int = 0,
) -> Found:
    """Measure pictures against a data set.

    Args: reader, the feature function (None: lite0); force, print also what so few samples cannot tell; model, whose likelihood
        of `bits` pictures seen and unseen is bounded (0: none).
    Raises: UserError where the data is not usable, or samples are too few and `force` is not set.
    """
    from unfog.evaluation.scorer import Scorer
    from unfog.networks.text import TextEncoder

    start = time.perf_counter()
    reader = reader or reader_of("lite0")
    concepts = concepts_of(data)
    train = data.split("train") or list(range(len(data)))
    held = [i for i, record in enumerate(data.records) if record.split != "train"]
    made = features_of(reader, samples.pictures)
    real = [features_of(reader, data, rows=rows, size=SIDE) if rows else None for rows in (train, held)]
    clusters = ([concepts[row] if row >= 0 else f"sample {i}" for i, row in enumerate(samples.rows)],
                [concepts[i] for i in train], [concepts[i] for i in held])  # fmt: skip
    several = len(set(clusters[1])) < len(clusters[1])
    assert real[0] is not None
    rows, estimates = fidelity(made, real[0], real[1], reader.label, clusters if several else None, force)
    values: dict[tuple[str, str], tuple[NDArray[Any], list[str]]] = {}
    warnings = []
    if (samples.rows >= 0).any() and len(set(map(caption, data.records))) > 1 and all(map(caption, data.records)):
        scorer, encoder = scorer or Scorer.load(), encoder or TextEncoder.load()
        judged = conditions(samples, data, scorer, encoder)
        rows += judged.measures
        values |= judged.values
        samples.settings["judge"] = f"scorer {scorer.hash}"
    else:
        warnings.append("no caption of these pictures is known to the data, or it has none: what was asked for is not judged")
    remembered, memorised, warning = copied(samples, data, concepts, seed, model)
    rows += remembered
    warnings += [warning] if warning else []
    if model is not None and bits and isinstance(model.codec, RGBACodec):  # of latents the bound says nothing of pictures
        found, each = likelihood(model, data, bits, seed)
        rows += found
        values[found[0].name, found[0].of] = (each, [str(i) for i in range(len(each))])
    rows += _cost(samples)
    shown = [int(i) for i in np.linspace(0, len(samples.pictures) - 1, min(24, len(samples.pictures)))]
    asked_for = [samples.rows[i] for i in shown]
    pictures = np.stack([data.load(row, SIDE) if row >= 0 else np.zeros((SIDE, SIDE, 4), np.uint8) for row in asked_for])
    report = _report(samples.name, samples.hash, data.path.name, _data_hash(data), len(samples.pictures), samples.settings,
                     reader, rows, warnings, start)  # fmt: skip
    return Found(report, estimates, reader.label, values, samples.pairs, samples.pictures[shown],
                 [caption(data.records[row]) if row >= 0 else "" for row in asked_for], pictures, memorised)  # fmt: skip


def measure_numbers(
    made: NDArray[Any], data: NDArray[Any], name: str, against: str, reader: Reader | None = None, force: bool = False
) -> Found:
    """Measure rows of numbers of any kind, (M, ...) against (N, ...): points, series, vectors of features."""
    import hashlib

    start = time.perf_counter()
    reader = reader or reader_of("values")
    if made.shape[1:] != data.shape[1:]:
        raise UserError(
            f"{name}: items of shape {made.shape[1:]}, those of {against} are {data.shape[1:]}; give items of one shape"
        )
    rows, estimates = fidelity(features_of(reader, made), features_of(reader, data), None, reader.label, None, force)
    hashes = [hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16] for x in (made, data)]
    report = _report(name, hashes[0], against, hashes[1], len(made), {"made": "elsewhere"}, reader, rows, [], start)
    return Found(report, estimates, reader.label)


def _report(
    name: str, hash_: str, data: str, data_hash: str, n: int, settings: dict[str, str], reader: Reader, rows: list[Measure],
    warnings: list[str], start: float,
) -> Report:  # fmt: skip
    from unfog import __version__

    said = settings | {"features": f"{reader.label} ({reader.hash or 'not hashed'})", "resize": reader.resize}
    return Report(subject=name, subject_hash=hash_, data=data, data_hash=data_hash, samples=n, settings=said, measures=rows,
                  warnings=warnings, seconds=round(time.perf_counter() - start, 1), version=__version__)  # fmt: skip


def _data_hash(data: PictureSet) -> str:
    from unfog.files import sha256

    return sha256("\n".join(f"{r.file_name} {data.stamp(r.file_name)} {caption(r)}" for r in data.records).encode())[:16]


def _cost(samples: Samples) -> list[Measure]:
    rows, n = [], len(samples.pictures)
    if samples.seconds is not None:
        rows.append(Measure(group="cost", name="time a picture", of=f"batch {samples.settings['batch']}", unit="s",
                            better="lower", figure=Figure(value=samples.seconds, n=n)))  # fmt: skip
    if samples.evaluations is not None:
        rows.append(Measure(group="cost", name="network evaluations a picture", of="guidance counted", better="lower",
                            figure=Figure(value=samples.evaluations, n=n)))  # fmt: skip
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    except ImportError:  # Windows
        return rows
    return [*rows, Measure(group="cost", name="peak memory", of="this process so far", unit="MB", better="lower",
                           figure=Figure(value=peak, n=n))]  # fmt: skip


def differences_of(first: Found, second: Found) -> list[Difference]:
    """How the second's figures differ from the first's, each with an interval that says whether it may be luck."""
    who = (first.report.subject, second.report.subject)
    if who[0] == who[1]:
        who = tuple(f"{one.report.subject} {one.report.subject_hash[:6]}" for one in (first, second))  # type: ignore[assignment]
    paired = bool(first.pairs) and list(first.pairs) == list(second.pairs)
    found = []
    for name in first.estimates:
        if name not in second.estimates:
            continue
        try:
            d = differ(second.estimates[name], first.estimates[name])
        except UserError:  # of different sizes, where that matters
            continue
        shown = names(first.label).get(name, name)
        found.append(_difference(first, shown, None, who, (d.value, d.low, d.high), paired))
    for (name, of), (ours, clusters) in first.values.items():
        if (name, of) not in second.values:
            continue
        theirs, others = second.values[name, of]
        low, high = difference_interval(theirs, ours, others, clusters)
        value = float(np.mean(theirs) - np.mean(ours))
        found.append(_difference(first, name, of, who, (value, low, high), list(others) == list(clusters)))
    return found


def _difference(
    first: Found, name: str, of: str | None, who: tuple[str, ...], found: tuple[float, float, float], paired: bool
) -> Difference:
    row = first.report.find(name, of)
    value, low, high = found
    real = low > 0 or high < 0
    better = who[1] if (value < 0) == (row.better == "lower") else who[0]
    return Difference(name=name, of=row.of, first=who[0], second=who[1], unit=row.unit, paired=paired,
                      figure=Figure(value=value, low=low, high=high, n=row.figure.n),
                      better=better if real and row.better else "")  # fmt: skip
