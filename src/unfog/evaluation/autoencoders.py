"""How well an autoencoder gives pictures back: `unfog evaluate` of its folder, on pictures that it was not trained on.

PSNR and SSIM a style; and Fréchet distances: of the reconstructions to their own originals, and to other real pictures, beside
that of the originals to the same ones (the noise floor). What the second has more than the floor is the autoencoder's doing; of
few pictures it is mostly chance, and only the first tells.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.cache import features_of
from unfog.evaluation.distances import Moments, frechet
from unfog.evaluation.estimates import frechet_estimate
from unfog.evaluation.fidelity import FLOOR_GROUPS, few
from unfog.evaluation.readers import Reader, reader
from unfog.evaluation.reconstruction import psnr, ssim
from unfog.evaluation.report import Beside, Figure, Measure, Report, mean
from unfog.evaluation.samples import ALL, data_at
from unfog.evaluation.statistics import Estimate
from unfog.files import MANIFEST, sha256

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet
    from unfog.modalities.image.latent import LatentCodec
    from unfog.requests import EvaluateRequest

FLOOR = "the originals, to other pictures"
OWN, OTHER = "reconstructions, to their originals", "reconstructions, to other pictures"
LEAST = 8  # pictures of a style below which it has no row
REFERENCE = 4_000  # other real pictures, drawn by a fixed seed where there are more


def evaluate_autoencoder(name: str, request: EvaluateRequest) -> tuple[Report, NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    """The report, and some pictures beside what was made of them, with their styles.

    Raises: UserError where the folder or the data are not usable, or pictures are too few.
    """
    from unfog import __version__
    from unfog.modalities.image.latent import autoencoder_folder, read_autoencoder

    start, place = time.perf_counter(), autoencoder_folder(name)
    assert place is not None
    codec, card = read_autoencoder(place)
    training = card.get("training") or {}
    against = request.against or str(training.get("data") or "")
    data = data_at(against)
    recipe: dict[str, Any] = training.get("recipe") or {}
    side = int(recipe.get("size", 128))
    unseen = [i for i, record in enumerate(data.records) if record.split != "train"]
    known = not unseen
    order = np.random.default_rng(request.seed)
    rows = order.permutation(unseen or range(len(data)))[: request.n].tolist()
    if len(rows) < 4 or (len(rows) < 50 and not request.force):
        raise UserError(few(len(rows)))
    others = [i for i, record in enumerate(data.records) if record.split == "train"] if unseen else []
    others = order.permutation(others)[:REFERENCE].tolist()
    pictures = np.stack([data.load(row, side) for row in rows])
    seconds = time.perf_counter()
    x0 = codec.encode(pictures)
    encoded = time.perf_counter()
    made = codec.decode(x0)
    decoded = time.perf_counter()
    codec.preview(x0)
    cost = {"encode": encoded - seconds, "decode": decoded - encoded, "preview": time.perf_counter() - decoded}
    styles = [data.records[row].style for row in rows]
    found = [*_likeness(pictures, made, styles), *_distances(reader(request.reader), pictures, made, data, others, side)]
    found += [Measure(group="cost", name=f"time to {what} a picture", of=f"{side}x{side}", unit="s", better="lower",
                      figure=Figure(value=spent / len(rows), n=len(rows))) for what, spent in cost.items()]  # fmt: skip
    size = sum(path.stat().st_size for path in place.iterdir() if path.is_file()) / 1e6
    found.append(Measure(group="cost", name="the folder", of=f"{_parameters(codec):,} parameters", unit="MB", better="lower",
                         figure=Figure(value=size, n=1)))  # fmt: skip
    warnings = ["nothing of these data is held out: figures are of pictures that may have been trained on"] if known else []
    if recipe.get("features") and request.reader == "lite0":
        warnings.append("it was trained on the features of which this distance is made, which flatters it")
    hashed = sha256("\n".join(f"{data.records[i].file_name} {data.stamp(data.records[i].file_name)}" for i in rows).encode())[:16]
    settings = {"latents": "x".join(map(str, x0.shape[1:])), "steps": str(training.get("steps", "?"))}
    report = Report(subject=str(card.get("name", place.name)), subject_hash=sha256((place / MANIFEST).read_bytes())[:16],
                    data=data.path.name, data_hash=hashed, samples=len(rows), settings=settings, measures=found,
                    warnings=warnings, seconds=round(time.perf_counter() - start, 1), version=__version__)  # fmt: skip
    return report, made[:24], pictures[:24], styles[:24]


def _parameters(codec: LatentCodec) -> int:
    return sum(weight.numel() for weight in codec.weights.values())


def _likeness(pictures: NDArray[np.uint8], made: NDArray[np.uint8], styles: list[str]) -> list[Measure]:
    rows = []
    for name, unit, values in (("PSNR", "dB", psnr(pictures, made)), ("SSIM", "", ssim(pictures, made))):
        parts = [(ALL, np.arange(len(styles)))]
        parts += [(style, np.flatnonzero(np.array(styles) == style)) for style in sorted(set(styles) - {""})]
        for of, places in parts:
            if of == ALL or len(places) >= LEAST:
                rows.append(Measure(group="fidelity", name=name, of=of, unit=unit, better="higher", figure=mean(values[places])))
    return rows


def _distances(read: Reader, pictures: NDArray[np.uint8], made: NDArray[np.uint8], data: PictureSet, others: list[int],
               side: int) -> list[Measure]:  # fmt: skip
    """To their own originals (of the same pictures, so nothing of it is chance), and to other pictures as the originals are.

    Without other pictures one half is held against the other.
    """
    ours, theirs = features_of(read, made), features_of(read, pictures)
    own = frechet(Moments.of(ours), Moments.of(theirs), force=True)
    if others:
        reference, told = features_of(read, data, rows=others, size=side), f"{len(others)} other real pictures"
    else:
        half = len(ours) // 2
        reference, ours, theirs, told = theirs[half:], ours[:half], theirs[:half], "originals of the other half"
    first, second = (frechet_estimate(reference, features, groups=FLOOR_GROUPS, force=True) for features in (ours, theirs))
    floor = [Beside(name=FLOOR, figure=_figure(second))]

    def row(of: str, figure: Figure) -> Measure:
        times = figure.value / second.corrected if figure.value is not None and second.corrected > 0 else float("nan")
        return Measure(group="fidelity", name=read.label, of=of, better="lower", figure=figure, beside=floor,
                       note=f"{times:.3f} times the noise floor, the originals' own to {told}")  # fmt: skip

    return [row(OWN, Figure(value=own, n=len(pictures))), row(OTHER, _figure(first))]


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.corrected, low=estimate.low, high=estimate.high, n=estimate.m)
