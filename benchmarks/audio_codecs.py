"""How well codecs of sound invert, on held-out clips: the choice behind `modalities/audio/codec.py`.

    python benchmarks/audio_codecs.py [--clips 24] [--out benchmarks/results/audio_codecs.json]

Each turns real clips into what a diffusion model would draw and back. numbers: of one x0. LSD: log-spectral distance in dB,
magnitudes floored at −60 dB. bands: mean |ln| difference of mel bands. cents: median error of notes' pitch; in tune: share within
50 cents. MOS: DNSMOS of spoken words. Without torchcrepe and speechmos the last three are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import unfog.data
from unfog.files import write_atomic
from unfog.modalities.audio import codec, ears
from unfog.modalities.audio.data import open_sounds, split_prompt
from unfog.modalities.audio.sound import fitted, midi

Codec = tuple[int, Callable[[Tensor], Tensor]]


def pseudo_inverse(waves: Tensor) -> Tensor:
    magnitude = (torch.linalg.pinv(codec.filters()) @ codec.bands(waves).exp()).clamp(min=0)
    return codec.griffin_lim(magnitude)


def few_bands(waves: Tensor) -> Tensor:
    """64 bands: each two neighbours of the 128 joined, and shared out again."""
    joined = codec.bands(waves).exp().reshape(len(waves), 64, 2, -1).mean(2, keepdim=True).expand(-1, -1, 2, -1)
    return codec.griffin_lim(codec.spread(joined.reshape(len(waves), 128, -1).log()).exp())


def mdct(waves: Tensor) -> Tensor:
    """What any critically sampled transform gives: the wave itself (128 x 128 numbers, whose signs a network must guess)."""
    return waves.clone()


CODECS: dict[str, Codec] = {
    "the clip itself (or MDCT, 128 x 128)": (16_384, mdct),
    "magnitudes 513 x 64, Griffin-Lim": (513 * 64, lambda x: codec.griffin_lim(codec.stft(x).abs())),
    "128 bands, pseudo-inverse, Griffin-Lim": (128 * 64, pseudo_inverse),
    "128 bands, interpolation, Griffin-Lim": (128 * 64, lambda x: codec.griffin_lim(codec.spread(codec.bands(x)).exp())),
    "64 bands, interpolation, Griffin-Lim": (64 * 64, few_bands),
    "128 bands, learned lift, Griffin-Lim (ours)": (128 * 64, lambda x: codec.wave_of(codec.bands(x))),
}


def distance(a: Tensor, b: Tensor) -> float:
    levels = [20 * torch.log10(codec.stft(x).abs().clamp(min=1e-3)) for x in (a, b)]
    return float((levels[0] - levels[1]).square().mean(1).sqrt().mean())


def main(clips: int, out: Path | None) -> None:
    torch.set_num_threads(1)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("drums-notes", "speech-digits"):
        items = open_sounds(unfog.data.path(name), None)
        held = np.random.default_rng(0).permutation(items.split("heldout"))[:clips]
        waves = torch.from_numpy(np.stack([fitted(items.raw[i]) for i in held]))
        notes = [(j, pitch) for j, i in enumerate(held) if (pitch := split_prompt(items.prompts[i])[1]) is not None]
        rows[name] = {}
        for label, (numbers, turn) in CODECS.items():
            began = time.process_time()
            back = turn(waves).clamp(-1, 1)
            spent = (time.process_time() - began) / len(waves)
            row = {"numbers": numbers, "LSD": round(distance(back, waves), 2), "ms a clip": round(1000 * spent, 1),
                   "bands": round(float((codec.bands(back) - codec.bands(waves)).abs().mean()), 3)}  # fmt: skip
            heard = ears.pitches([back[j].numpy() for j, _ in notes]) if notes else None
            if heard is not None:
                cents = np.abs(100 * (midi(heard) - np.array([pitch for _, pitch in notes])))
                row |= {"cents": round(float(np.nanmedian(cents)), 1), "in tune": round(float((cents < 50).mean()), 3)}
            scores = ears.opinions([wave.numpy() for wave in back[:12]]) if not notes else None
            if scores is not None:
                row["MOS"] = round(float(scores.mean()), 2)
            rows[name][label] = row
            print(f"{name}  {label}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if out:
        write_atomic(out, (json.dumps({"clips": clips, "codecs": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    main(arguments.clips, arguments.out)
