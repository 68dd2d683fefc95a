"""Train `lift`, the network that turns 128 mel bands into 513 magnitudes (src/unfog/modalities/audio/codec.py).

    python tools/weights/sound_lift.py --out src/unfog/pretrained/sound-lift [--steps 2500]

Learned from the training clips of both shipped sets of sounds, played at 0.8 to 1.25 of their speed and at various levels, with a
little noise on the bands, as what a diffusion model draws is never exact. Loss: mean |ln| difference of magnitudes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import unfog.data
from unfog.files import write_weights
from unfog.modalities.audio.codec import FLOOR, Lift, bands, stft
from unfog.modalities.audio.data import open_sounds
from unfog.modalities.audio.sound import fitted, resample

SETS = ("drums-notes", "speech-digits")


def batch(waves: list[np.ndarray], rng: np.random.Generator, size: int) -> torch.Tensor:
    """Clips (size, SAMPLES), each at a speed and level of its own."""
    out = []
    for i in rng.integers(len(waves), size=size):
        wave = resample(waves[i], float(np.exp(rng.uniform(-0.22, 0.22))))
        shift = np.zeros(rng.integers(0, 256), np.float32)
        out.append(fitted(np.concatenate([shift, wave])) * 10 ** rng.uniform(-0.6, 0.05))
    return torch.from_numpy(np.stack(out).astype(np.float32))


def error(network: Lift, waves: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """Mean |ln| difference of magnitudes where there is anything."""
    values, wanted = bands(waves), stft(waves).abs().clamp(min=FLOOR).log()
    alive = (values.amax(1, keepdim=True) > np.log(FLOOR)).float()
    made = network(values + noise * torch.randn_like(values)).clamp(min=np.log(FLOOR))
    return ((made - wanted).abs() * alive).sum() / (alive.sum() * wanted.shape[1])


def main(out: Path, steps: int, size: int) -> None:
    sets = [open_sounds(unfog.data.path(name), None) for name in SETS]
    waves = [items.raw[i] for items in sets for i in items.split("train")]
    held = torch.from_numpy(np.stack([fitted(items.raw[i]) for items in sets for i in items.split("heldout")]))
    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), Lift()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps + 1):
        if step % 250 == 0:
            with torch.no_grad():
                print(f"{step} held out {error(network, held):.4f}, {time.monotonic() - began:.0f} s", flush=True)
        rate = 2e-3 * min(step / 100, 1) * min(1.0, (steps - step) / (0.4 * steps))
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        error(network, batch(waves, rng, size), 0.15 * float(rng.random())).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    with torch.no_grad():
        last = float(error(network, held))
    weights = {k: v.detach().half() for k, v in network.state_dict().items()}
    card = {"network": "Lift", "data": SETS, "steps": steps, "batch": size, "held_out_error": round(last, 4)}
    write_weights(out, "lift.safetensors", weights, "lift.json", card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("src/unfog/pretrained/sound-lift"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=12)
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps, arguments.batch)
