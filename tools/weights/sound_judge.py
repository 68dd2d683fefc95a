"""Train the judge of sounds (src/unfog/modalities/audio/judge.py), which no diffusion model is ever trained with.

    python tools/weights/sound_judge.py --out src/unfog/pretrained/sound-judge [--epochs 40]

Learned from the training clips of both shipped sets, played at 0.92 to 1.08 of their speed, up to 60 ms late, with two stripes of
time and of frequency hidden, and some noise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import unfog.data
from unfog.files import write_weights
from unfog.modalities.audio.data import open_sounds, split_prompt
from unfog.modalities.audio.judge import Judge
from unfog.modalities.audio.sound import fitted, resample

SETS = ("drums-notes", "speech-digits")
BATCH = 32


def moved(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wave = resample(wave, float(np.exp(rng.uniform(-0.08, 0.08))))
    wave = fitted(np.concatenate([np.zeros(rng.integers(0, 960), np.float32), wave]))
    return wave + rng.normal(0, 10 ** rng.uniform(-4.5, -2.5), wave.shape).astype(np.float32)


def hidden(bands: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    for item in bands:
        at = rng.integers(0, bands.shape[3] - 12)
        item[:, :, at : at + rng.integers(0, 12)] = 0
        at = rng.integers(0, bands.shape[2] - 5)
        item[:, at : at + rng.integers(0, 5)] = 0
    return bands


def main(out: Path, epochs: int) -> None:
    clips = [(items.raw[i], split_prompt(items.prompts[i])[0], items.splits[i] == "train", name)
             for name in SETS for items in [open_sounds(unfog.data.path(name), None)] for i in range(len(items))]  # fmt: skip
    classes = sorted({kind for _, kind, _, _ in clips})
    train = [(wave, classes.index(kind)) for wave, kind, learned, _ in clips if learned]
    counts = np.bincount([kind for _, kind in train], minlength=len(classes))
    chance = np.array([1 / np.sqrt(counts[kind]) for _, kind in train])  # rare classes oftener
    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), Judge(len(classes))
    steps, began = epochs * len(train) // BATCH, time.monotonic()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    lr = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = rng.choice(len(train), BATCH, p=chance / chance.sum())
        waves = torch.from_numpy(np.stack([moved(train[i][0], rng) for i in chosen]))
        wanted = torch.tensor([train[i][1] for i in chosen])
        loss = F.cross_entropy(network.heard(hidden(network.bands(waves), rng))[1], wanted, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        lr.step()
        if step % 200 == 0:
            print(f"{step}/{steps} loss {float(loss.detach()):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    network.eval()
    right: dict[str, float] = {}
    with torch.no_grad():
        for name in SETS:
            part = [(wave, kind) for wave, kind, learned, of in clips if of == name and not learned]
            own = [classes.index(kind) for kind in sorted({kind for _, kind, _, of in clips if of == name})]
            logits = network(torch.from_numpy(np.stack([fitted(wave) for wave, _ in part])))[1][:, own]
            said = [classes[own[i]] for i in logits.argmax(1).tolist()]
            right[name] = round(float(np.mean([a == b for a, (_, b) in zip(said, part, strict=True)])), 4)
            print(name, "held out", right[name], [(a, b) for a, (_, b) in zip(said, part, strict=True) if a != b])
    weights = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    card = {"classes": classes, "data": SETS, "epochs": epochs, "held_out_accuracy": right}
    write_weights(out, "judge.safetensors", weights, "judge.json", card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/unfog/pretrained/sound-judge"))
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs)
