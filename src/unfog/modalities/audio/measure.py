"""What evaluation says of sounds: as asked for, in tune, like real ones, well spoken; each beside real clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.modalities.audio import ears, judge
from unfog.modalities.audio.data import split_prompt
from unfog.modalities.audio.sound import midi
from unfog.modalities.contract import Items, Measured

Array = NDArray[np.float64]
NEAR = 50  # cents within which a pitch is met
MOST_RATED = 24  # clips that DNSMOS rates: each takes it a second
MOST_REAL = 512
COMPONENTS = 32  # of embeddings, as a covariance of 256 numbers would want thousands of clips


def measure(made: Sequence[Any], prompts: Sequence[str], real: Items, seed: int) -> list[Measured]:
    """Rows for clips `made` for `prompts`. What lacks a package or a judge is left out, which the first row's note says."""
    if not len(made):
        raise UserError("measure: no clips were made; make some")
    held = real.split("heldout") or list(range(len(real)))
    waves, asked = [real.raw[i] for i in held], [real.prompts[i] for i in held]
    missing: list[str] = []
    rows = [Measured("fidelity", "level, dB", _levels(made), _levels(waves))]
    _judge(rows, missing, made, prompts, waves, asked, real, seed)
    _pitch(rows, missing, made, prompts, waves, asked)
    _fidelity(rows, missing, made, real, seed)
    if not any(split_prompt(prompt)[1] is not None for prompt in real.prompts):
        scores = ears.opinions(made[:MOST_RATED])
        if scores is None:
            missing.append("DNSMOS (speechmos and onnxruntime)")
        else:
            beside = ears.opinions([waves[i] for i in np.random.default_rng(seed).permutation(len(waves))[:MOST_RATED]])
            rows.append(
                Measured("fidelity", "DNSMOS overall", scores, beside, "", "higher", "1 to 5; each clip said again for 9 s")
            )
    if missing:
        first = rows[0]
        note = f"left out: {'; '.join(missing)}"
        rows[0] = Measured(first.group, first.name, first.made, first.real, first.unit, first.better, note)
    return rows


def _levels(waves: Sequence[Any]) -> Array:
    return np.array([20 * np.log10(max(float(np.sqrt(np.square(wave).mean())), 1e-6)) for wave in waves])


def _judge(rows: list[Measured], missing: list[str], made: Sequence[Any], prompts: Sequence[str], waves: Sequence[Any],
           asked: Sequence[str], real: Items, seed: int) -> None:  # fmt: skip
    among = sorted({split_prompt(prompt)[0] for prompt in real.prompts} - {"", "any"})
    if not among:
        return
    if not set(among) <= set(judge.judge()[1]):
        missing.append("class accuracy (the judge does not know these classes)")
        return
    wanted = [split_prompt(prompt)[0] for prompt in prompts]
    meant = [i for i, name in enumerate(wanted) if name in among]
    said, features = judge.judged(made, among)
    of_real, _ = judge.judged(waves, among)
    real_right = np.array([a == split_prompt(b)[0] for a, b in zip(of_real, asked, strict=True)], float)
    if meant:
        right = np.array([said[i] == wanted[i] for i in meant], float)
        note = f"a judge of {len(among)} classes, trained apart on other features"
        rows.append(Measured("condition", "class as asked", right, real_right, "%", "higher", note))
    beside = np.random.default_rng(seed).permutation(len(real))[:MOST_REAL]
    known = judge.judged([real.raw[i] for i in beside], among)[1]
    made_far, real_far = against(features, known, seed)
    rows.append(Measured("fidelity", "FD (judge)", made_far, real_far, "", "lower", FD_NOTE))


def _pitch(rows: list[Measured], missing: list[str], made: Sequence[Any], prompts: Sequence[str], waves: Sequence[Any],
           asked: Sequence[str]) -> None:  # fmt: skip
    def met(clips: Sequence[Any], words: Sequence[str]) -> tuple[Array, Array] | None:
        notes = [(clip, pitch) for clip, word in zip(clips, words, strict=True) if (pitch := split_prompt(word)[1]) is not None]
        heard = ears.pitches([clip for clip, _ in notes])
        if heard is None:
            return None
        cents = 100 * (midi(heard) - np.array([pitch for _, pitch in notes], float))
        return (np.abs(cents) <= NEAR).astype(float), np.abs(cents)[np.isfinite(cents)]

    if not any(split_prompt(prompt)[1] is not None for prompt in prompts):
        return
    of_made, of_real = met(made, prompts), met(waves, asked)
    if of_made is None or of_real is None:
        missing.append("pitch (torchcrepe)")
        return
    beside = of_real[0] if len(of_real[0]) else None
    note = f"CREPE hears it within {NEAR} cents; what has no sure pitch is not"
    rows.append(Measured("condition", "pitch as asked", of_made[0], beside, "%", "higher", note))
    if len(of_made[1]):
        middle = float(np.median(of_real[1])) if len(of_real[1]) else None
        rows.append(Measured("condition", "median error of pitch, cents", float(np.median(of_made[1])), middle, "", "lower"))


FD_NOTE = f"Fréchet distance of {COMPONENTS} components, to all real clips; beside it as many real clips against the rest"


def _fidelity(rows: list[Measured], missing: list[str], made: Sequence[Any], real: Items, seed: int) -> None:
    features = ears.embedded(made)
    if features is None:
        missing.append("FD of voice embeddings (resemblyzer)")
        return
    beside = np.random.default_rng(seed).permutation(len(real))[:MOST_REAL]
    known = ears.embedded([real.raw[i] for i in beside])
    if known is not None:
        made_far, real_far = against(features, known, seed)
        rows.append(Measured("fidelity", "FD (Resemblyzer)", made_far, real_far, "", "lower", FD_NOTE))


def against(made: Array, real: Array, seed: int) -> tuple[float, float]:
    """The Fréchet distance of `made` (N, D) to `real` (M, D), and its floor: as many real ones (at most half) to the rest.

    Both after the same map onto the real set's principal components, each of unit variance.
    """
    centre = real.mean(0)
    _, sizes, axes = np.linalg.svd(real - centre, full_matrices=False)
    kept = min(COMPONENTS, int((sizes > 1e-6 * sizes[0]).sum()))
    basis = axes[:kept].T / (sizes[:kept] / np.sqrt(max(len(real) - 1, 1)))
    a, b = (made - centre) @ basis, (real - centre) @ basis
    order = np.random.default_rng([seed, 1]).permutation(len(b))
    n = max(min(len(a), len(b) // 2), 1)
    pick = np.random.default_rng([seed, 2]).permutation(len(a))[:n]
    rest = b[order[n:]]
    return frechet(a[pick], rest), frechet(b[order[:n]], rest)


def frechet(a: Array, b: Array) -> float:
    """|μa − μb|² + tr A + tr B − 2·tr √(AB) of rows (N, D) and (M, D), ≥ 0; also of fewer rows than numbers in one.

    tr √(AB) is the sum of the singular values of X·Yᵀ, with X and Y the centred rows over √(n − 1): A = Xᵀ·X, B = Yᵀ·Y.
    Source: Dowson and Landau 1982.
    """
    x, y = ((rows - rows.mean(0)) / np.sqrt(max(len(rows) - 1, 1)) for rows in (a, b))
    left, right = (np.linalg.qr(rows)[1] for rows in (x, y))  # X = Q·R, and Q has no say in singular values
    shared = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return max(0.0, float(apart + np.square(x).sum() + np.square(y).sum() - 2 * shared))
