"""One report on a text-and-style model: retrieval by the independent scorer, copies, wrong styles.

Three groups of prompts: concepts seen in training, (concept, style) pairs held out, concepts held out in all styles. Each
figure stands beside the same figure of real pictures, with its sample size and a 95 % bootstrap interval over concepts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import unfog
import unfog.data
from unfog.errors import UserError
from unfog.evaluation.copies import copy_share, copy_threshold, thumbnails
from unfog.evaluation.retrieval import DISTRACTORS, draw_distractors, retrieval
from unfog.evaluation.scorer import Scorer, describe
from unfog.evaluation.statistics import bootstrap_interval, share_interval
from unfog.files import write_atomic
from unfog.modalities.image.data import PictureSet, Record
from unfog.networks.text import TextEncoder
from unfog.requests import EvaluateRequest

GROUPS = ("train", "heldout_pair", "heldout_concept")
BATCH = 16


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Make `request.n` pictures a group, judge them and the real ones; plain values, ready for JSON.

    Raises: UserError where the model, the data or the scorer do not do.
    """
    if request.out is not None and request.out.is_dir():
        raise UserError(f"out: {request.out} is a folder; give the name of a file")
    place = Path(request.against)
    data = PictureSet.open(place if place.exists() else unfog.data.path(request.against))
    if not all(data.split(group) for group in GROUPS):
        raise UserError(f"{data.path}: has no {' / '.join(GROUPS)} splits; state `split` and `concept` in metadata.jsonl")
    model, scorer, encoder = unfog.load(request.model), Scorer.load(), TextEncoder.load()
    first: dict[str, Record] = {}
    for record in data.records:
        first.setdefault(record.concept, record)
    order = sorted(first)
    number = {concept: i for i, concept in enumerate(order)}
    texts = scorer.text_vectors(describe(encoder, [first[c].name for c in order], [first[c].tags for c in order])).numpy()

    def judge(pictures: NDArray[np.uint8], records: list[Record]) -> tuple[NDArray[np.bool_], list[bool]]:
        features = scorer.features(pictures)
        own = [number[r.concept] for r in records]
        hits = retrieval(scorer.picture_vectors(features).numpy(), texts, own, draw_distractors(own, len(texts)))
        return hits, [found != r.style for found, r in zip(scorer.styles(features), records, strict=True)]

    report: dict[str, Any] = {
        "model": model.name, "model_hash": model.hash, "data": request.against, **model.defaults, "seed": request.seed,
        "weights": model.card["training"], "distractors": DISTRACTORS,
        "interval": "95 %, bootstrap over concepts", "groups": {},
    }  # fmt: skip
    report["weights"] = {k: report["weights"][k] for k in ("steps", "pictures_seen")}
    rng = np.random.default_rng(request.seed)
    samples: dict[str, tuple[NDArray[np.uint8], list[Record]]] = {}
    wrong_all: list[bool] = []
    start = time.perf_counter()
    for group in GROUPS:
        rows = [int(i) for i in rng.permutation(data.split(group))[: request.n]]
        records = [data.records[i] for i in rows]
        seeds = [request.seed + i for i in range(len(rows))]
        made = model.generate_many([r.name for r in records], [r.style for r in records], seeds, batch=BATCH)
        samples[group] = (made, records)
        real = np.stack([data.load(i) for i in rows])
        hits, wrong = judge(made, records)
        real_hits, real_wrong = judge(real, records)
        concepts = [r.concept for r in records]
        share = float(hits.mean() / real_hits.mean()) if real_hits.any() else float("inf")
        report["groups"][group] = {
            "n": len(rows),
            "retrieval": round(float(hits.mean()), 4),
            "retrieval_interval": _rounded(bootstrap_interval(hits, concepts)),
            "real_retrieval": round(float(real_hits.mean()), 4),
            "share_of_real": round(share, 4),
            "share_interval": _rounded(share_interval(hits, real_hits, concepts, concepts)),
            "wrong_style": round(float(np.mean(wrong)), 4),
            "real_wrong_style": round(float(np.mean(real_wrong)), 4),
        }
        wrong_all += wrong
    report["wrong_style"] = {"n": len(wrong_all), "rate": round(float(np.mean(wrong_all)), 4),
                             "interval": _rounded(bootstrap_interval(np.array(wrong_all, float)))}  # fmt: skip
    report["copies"] = _copies(data, *samples["heldout_pair"])
    report["seconds"] = round(time.perf_counter() - start, 1)
    if request.out is not None:
        write_atomic(request.out, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _copies(data: PictureSet, made: NDArray[np.uint8], records: list[Record]) -> dict[str, Any]:
    """Share of samples nearer to a training picture than 1 % of real pictures are to one of another concept."""
    rows = data.split("train")
    train = thumbnails(np.stack([data.load(i) for i in rows]))
    concepts = [data.records[i].concept for i in rows]
    threshold = copy_threshold(train, concepts, train, concepts)
    real = thumbnails(np.stack([data.load(i) for i in data.split("heldout_pair")]))
    flagged, _, index = copy_share(thumbnails(made), train, threshold)
    own = [concepts[j] == r.concept for j, r in zip(index, records, strict=True)]
    real_flagged, _, _ = copy_share(real, train, threshold)
    return {
        "n": len(made),
        "share": round(float(flagged.mean()), 4),
        "interval": _rounded(bootstrap_interval(flagged, [r.concept for r in records])),
        "nearest_is_the_same_concept": round(float(np.mean(own)), 4),
        "real_n": len(real),
        "real_share": round(float(real_flagged.mean()), 4),
        "threshold_rms": round(threshold, 4),
    }


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(v, 4) for v in interval]
