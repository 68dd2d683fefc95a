"""What the copy detector finds, what an overfit model looks like, whether the shipped one copies, and what --novel costs.

    python benchmarks/memorisation.py [--only detector overfit shipped novel]   writes benchmarks/results/memorisation.json

detector: training pictures changed in each way of evaluation/plants.py, and in ways of this file's own (none of which the
weights were fitted on), against held-out pictures: emoji-64's, and those of a set of painted textures that has nothing to do
with emoji. The threshold is set on held-out pictures; false positives are counted on the half of them that did not set it. Each
sample is looked at alone, so recall is the same where 1 % or 5 % of a set are copies; what an alarm is worth then is told too.
overfit: a small network trained on 50 pictures until it draws them. shipped: emoji-64. novel: what --novel costs. One thread.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import unfog
from unfog.data import path
from unfog.evaluation.copies import Known, look
from unfog.evaluation.memorisation import Share, calibrate, duplicates, memorisation, planted
from unfog.evaluation.plants import KINDS
from unfog.modalities.image.data import PictureSet
from unfog.requests import TrainRequest

RESULTS = Path(__file__).parent / "results" / "memorisation.json"
SMALL = {"unshuffle": 4, "widths": [32, 64], "blocks": [1, 1], "attention": [False, True], "embedding": 64, "text_dim": 384}
Pictures = NDArray[np.uint8]


def posterised(x: Pictures, r: np.random.Generator) -> Pictures:
    """To 5 bits a channel and a curve of gamma 0.85 to 1.2."""
    y = np.rint((x[..., :3] / 255) ** r.uniform(0.85, 1.2) * 31) / 31 * 255
    return np.concatenate([np.rint(y).astype(np.uint8), x[..., 3:]], -1)


def webp_on_grey(x: Pictures, r: np.random.Generator) -> Pictures:
    """On a grey ground, as WebP of quality 40 to 80."""
    alpha, handle = x[..., 3:] / 255, io.BytesIO()
    Image.fromarray(np.rint(x[..., :3] * alpha + int(r.integers(60, 220)) * (1 - alpha)).astype(np.uint8)).save(
        handle, "WEBP", quality=int(r.integers(40, 81))
    )
    return np.asarray(Image.open(io.BytesIO(handle.getvalue())).convert("RGBA"))


def zoomed(x: Pictures, r: np.random.Generator) -> Pictures:
    """3 to 6 % larger, what stands out cut off."""
    side, share = x.shape[0], 1 + r.uniform(0.03, 0.06)
    large = Image.fromarray(x).resize((round(side * share),) * 2, Image.Resampling.LANCZOS)
    edge = (large.width - side) // 2
    return np.asarray(large.crop((edge, edge, edge + side, edge + side)))


def warm(x: Pictures, r: np.random.Generator) -> Pictures:
    """Red up and blue down by 4 to 12 %, or the other way."""
    gain = 1 + r.choice([-1, 1]) * r.uniform(0.04, 0.12) * np.array([1, 0, -1])
    return np.concatenate([np.clip(np.rint(x[..., :3] * gain), 0, 255).astype(np.uint8), x[..., 3:]], -1)


OWN = {"posterised": posterised, "webp on grey": webp_on_grey, "zoomed": zoomed, "warm": warm}


def texture(r: np.random.Generator, side: int = 64) -> Pictures:
    """Coloured 1/f noise with a few soft discs and bars."""
    f = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.fftfreq(side)[None] ** 2
    f[0, 0] = 1
    y = np.stack([np.fft.ifft2(np.fft.fft2(r.normal(size=(side, side))) * f ** -r.uniform(0.4, 1.1)).real for _ in range(3)], -1)
    y = (y - y.mean()) / y.std() * r.uniform(0.1, 0.25) @ (np.ones((3, 3)) / 3 + r.normal(size=(3, 3)) / 3) + r.uniform(
        0.2, 0.8, 3
    )
    rows, columns = np.mgrid[:side, :side]
    for _ in range(r.integers(0, 6)):
        turn, (v, u) = r.uniform(0, np.pi), (grid - r.uniform(0, side) for grid in (rows, columns))
        a, b = (u * np.cos(turn) + v * np.sin(turn)) / r.uniform(4, 24), (v * np.cos(turn) - u * np.sin(turn)) / r.uniform(4, 24)
        far = np.hypot(a, b) - 1 if r.random() < 0.5 else np.maximum(abs(a), abs(b)) - 1
        cover = np.clip(0.5 - far * 8, 0, 1)[..., None] * r.uniform(0.6, 1)
        y = y * (1 - cover) + r.uniform(0, 1, 3) * cover
    made = np.clip(np.rint(y * 255), 0, 255).astype(np.uint8)
    return np.concatenate([made, np.full((side, side, 1), 255, np.uint8)], -1)


def emoji() -> tuple[PictureSet, list[int], Pictures, list[int]]:
    """The set, its training rows and pictures, and its held-out rows."""
    data = PictureSet.open(path("emoji-64"))
    rows = data.split("train")
    held = [i for i in range(len(data)) if data.records[i].split != "train"]
    return data, rows, np.stack([data.load(i, 64) for i in rows]), held


def detector() -> dict[str, Any]:
    data, rows, train, held = emoji()
    r = np.random.default_rng(11)
    sets = {
        "emoji-64": (train, np.stack([data.load(i, 64) for i in held]), [data.records[i].concept for i in held]),
        "textures": (np.stack([texture(r) for _ in range(2_000)]), np.stack([texture(r) for _ in range(400)]), None),
    }
    found: dict[str, Any] = {}
    for name, (known_pictures, unseen, groups) in sets.items():
        known = Known.of(known_pictures[i : i + 256] for i in range(0, len(known_pictures), 256))
        start = time.process_time()
        innocent = look(unseen, known)
        each = (time.process_time() - start) / len(unseen) * 1000
        limit = calibrate(innocent.score, groups)
        drawn = r.permutation(len(known_pictures))[:150]
        parts = planted([known_pictures[i] for i in drawn], known, 5, {**KINDS, **OWN})
        recall = {kind: Share.of(part.score > limit.threshold) for kind, part in parts.items()}
        every = np.concatenate([part.score for part in parts.values()]) > limit.threshold
        right = np.concatenate([part.index == drawn for part in parts.values()])
        false, hit = limit.measured.value, float(every.mean())
        alarms = {
            f"{p:.0%}": {"recall": hit, "alarms that are copies": p * hit / (p * hit + (1 - p) * false)} for p in (0.01, 0.05)
        }
        turned_limit = calibrate(look(unseen, known, mirrored=True).score, groups)
        turned = look([known_pictures[i][:, ::-1] for i in drawn], known, mirrored=True)
        found[name] = {
            "known": len(known),
            "unseen": len(unseen),
            "calibration": limit.model_dump(),
            "recall": {kind: share.model_dump() for kind, share in recall.items()},
            "all kinds": Share.of(every).model_dump(),
            "original named": float(right[every].mean()),
            "planted": alarms,
            "mirrored": Share.of(turned.score > turned_limit.threshold).model_dump(),
            "mirrored_false_positives": turned_limit.measured.model_dump(),
            "milliseconds": each,
        }
        print(name, "false positives", limit.measured, "all kinds", Share.of(every), flush=True)
        for kind, share in recall.items():
            print(f"  {kind.ljust(14)} {share}")
        print(f"  mirrored       {found[name]['mirrored']['value']:.3f}, {each:.1f} ms a picture", flush=True)
    names = [data.records[i].file_name for i in rows]
    twins = duplicates(Known.of(train[i : i + 256] for i in range(0, len(train), 256)), names)
    found["duplicates in emoji-64"] = twins.model_dump()
    print("duplicates", twins.share, twins.groups)
    return found


def overfit(steps: int = 1_200) -> dict[str, Any]:
    """A network of half the tiny preset's widths, trained on 50 pictures and asked for them."""
    from unfog.training.presets import PRESETS
    from unfog.training.run import run_recipe

    data, rows, _, held = emoji()
    r = np.random.default_rng(2)
    chosen = [int(i) for i in r.permutation(rows)[:50]]
    others = [int(i) for i in r.permutation(held)[:250]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "fifty"
        folder.mkdir()
        lines = []
        for split, part in (("train", chosen), ("heldout_pair", others)):
            for i in part:
                name, record = f"{i}.png", data.records[i]
                Image.fromarray(data.load(i, 64)).resize((32, 32), Image.Resampling.BOX).save(folder / name)
                lines.append(
                    {"file_name": name, "name": record.name, "style": record.style, "concept": record.concept, "split": split}
                )
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        recipe = PRESETS["tiny"].recipe(name="fifty", data=str(folder), steps=steps, batch=8, report_steps=600, settings=SMALL)
        (Path(place) / "recipe.json").write_text(recipe.model_dump_json())
        start = time.process_time()
        made = run_recipe(TrainRequest(source=Path(place) / "recipe.json", out=Path(place) / "run", force=True))
        seconds = time.process_time() - start
        model = unfog.load(made)
        small = PictureSet.open(folder)
        seen, unseen = small.split("train"), small.split("heldout_pair")
        known, new = (np.stack([small.load(i, 32) for i in part]) for part in (seen, unseen))
        asked = [small.records[i] for i in seen] * 2
        prompts, styles = [a.name for a in asked], [a.style for a in asked]
        samples = np.stack(model.make(prompts, styles, list(range(len(asked))), batch=25, steps=12))
        found = memorisation(model, samples, known, new, names=[small.records[i].file_name for i in seen],
                             groups=[small.records[i].concept for i in unseen],
                             **_asked(small, seen, unseen))  # fmt: skip
    print(found, f"trained in {seconds:.0f} s", sep="\n", flush=True)
    return {"steps": steps, "seconds": seconds, "samples": len(samples), **_told(found)}


def shipped(count: int = 240, samples: str = "") -> dict[str, Any]:
    """The shipped model, asked for captions of held-out pairs (then of training pictures), with its defaults."""
    data, rows, train, held = emoji()
    model = unfog.load("emoji-64")
    order = np.random.default_rng(0).permutation(data.split("heldout_pair"))[:count]
    if samples:  # made before, as below
        kept = np.load(samples)
        made, order = kept["made"], kept["rows"][: len(kept["made"])]
    else:
        records = [data.records[i] for i in order]
        made = np.stack(model.make([a.name for a in records], [a.style for a in records], list(range(len(order))), batch=20))
    new = np.stack([data.load(i, 64) for i in held])
    found = memorisation(model, made, train, new, names=[data.records[i].file_name for i in rows],
                         groups=[data.records[i].concept for i in held],
                         **_asked(data, rows, held), most=len(held))  # fmt: skip
    print(found, flush=True)
    return {"samples": len(made), "asked": "captions of held-out (concept, style) pairs", **_told(found)}


def novel() -> dict[str, Any]:
    from unfog.evaluation.memory import memory

    data = PictureSet.open(path("emoji-64"))
    seconds = {}
    with tempfile.TemporaryDirectory() as place:
        for call in ("first call", "second call"):
            start = time.process_time()
            kept = memory(data, Path(place))
            seconds[call] = time.process_time() - start
        pictures = [data.load(i, 64) for i in data.split("heldout_pair")[:20]]
        start = time.process_time()
        for picture in pictures:
            kept.near([picture])
        seconds["a picture"] = (time.process_time() - start) / len(pictures)
        size = sum(p.stat().st_size for p in Path(place).rglob("*.known"))
    print(seconds, f"{size / 1e6:.1f} MB", flush=True)
    return {"processor_seconds": seconds, "bytes": size}


def _asked(data: PictureSet, seen: list[int], unseen: list[int]) -> dict[str, Any]:
    """prompts and styles of both sides."""
    names, styles = ([[getattr(data.records[i], key) for i in part] for part in (seen, unseen)] for key in ("name", "style"))
    return {"prompts": tuple(names), "styles": tuple(styles)}


def _told(found: Any) -> dict[str, Any]:
    return found.model_dump(exclude={"curve", "copies", "duplicates"}) | {"text": str(found).splitlines()}


def main() -> None:
    parts = {"detector": detector, "overfit": overfit, "shipped": shipped, "novel": novel}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--samples", default="", help=".npz of pictures made before (made, rows), for `shipped`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        made = shipped(samples=given.samples) if name == "shipped" else parts[name]()
        found = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | {name: made}
        RESULTS.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
