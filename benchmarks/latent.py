"""What a training step and a picture cost at 128 px: in latents against in pixels, with emoji-64's U-Net.

    python benchmarks/latent.py [--batch 8] [--out benchmarks/results/latent.json]

The same network (widths, blocks, attention), told the same text and style, learns from random x0 of
    latents               8 x 32 x 32, a 32x32 grid of 8 numbers a cell: emoji-128
    latents in 2x2        the same unshuffled by 2: a 16x16 grid of 32 numbers a cell
    pixels in 8x8 squares 4 x 128 x 128, unshuffled by 8: the same grid of 256 numbers a cell
    pixels in 4x4 squares unshuffled by 4: a 32x32 grid of 64 numbers a cell
Processor seconds of one thread, the least of several: the gradient of a few pictures, and the optimiser with the average, of
which a step of the recipe's 64 pictures is made up. Encoding and decoding of one picture by the
autoencoder of recipes/emoji_128_autoencoder.py stand beside: a run pays the first once a picture, a sampling the second once.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import denoising_loss
from unfog.modalities.image.latent import LatentCodec
from unfog.networks.autoencoder import Autoencoder
from unfog.networks.unet import UNet
from unfog.training.ema import PowerEMA
from unfog.training.optimisers import MuonAdamW
from unfog.training.recipe import read_recipe

HERE = Path(__file__).parent
WAYS = {"latents": ((8, 32, 32), 1), "latents in 2x2": ((8, 32, 32), 2), "pixels in 8x8 squares": ((4, 128, 128), 8),
        "pixels in 4x4 squares": ((4, 128, 128), 4)}  # fmt: skip


def least(work: Callable[[], object], times: int) -> float:
    """Processor seconds of the quickest of several calls; the first is not counted."""
    found = []
    for _ in range(times + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found[1:])


def measured(shape: tuple[int, ...], unshuffle: int, batch: int, times: int) -> dict[str, float]:
    recipe = read_recipe(HERE.parent / "recipes" / "emoji_128.py")
    settings = {**recipe.settings, "unshuffle": unshuffle, "channels": shape[0], "classes": 5}
    torch.manual_seed(0)
    network = UNet(**settings)
    denoiser = Preconditioned(network, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    optimiser, average = MuonAdamW(network, recipe.lr), PowerEMA(network, recipe.ema, 4)
    given = {"x0": torch.randn(batch, *shape), "noise": torch.randn(batch, *shape), "t": torch.rand(batch),
             "cond": {"text": torch.randn(batch, 16, 384), "text_mask": torch.ones(batch, 16, dtype=torch.bool),
                      "class": torch.zeros(batch, dtype=torch.long)}}  # fmt: skip

    def loss(part: dict) -> torch.Tensor:
        return denoising_loss(denoiser, part["x0"], part["cond"], part["t"], part["noise"])

    def learn() -> None:
        network.zero_grad(set_to_none=True)
        loss(given).mean().backward()

    def descend() -> None:
        optimiser.step()
        average.update(network, 4)

    network.train()
    gradient = least(learn, times) / batch
    optimising = least(descend, times)
    network.eval()
    with torch.inference_mode():
        sampled = least(lambda: network(given["x0"], torch.zeros(batch), given["cond"]), times)
    parts = {"gradient": gradient, "optimiser": optimising, "a_trained_picture": gradient + optimising / recipe.batch,
             "an_evaluation": sampled / batch}  # fmt: skip
    return {"parameters": sum(p.numel() for p in network.parameters()), **{f"ms_{key}": 1000 * s for key, s in parts.items()}}


def codec_cost(batch: int, times: int) -> dict[str, float]:
    text = (HERE.parent / "recipes" / "emoji_128_autoencoder.py").read_text()
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.Assign))
    settings = ast.literal_eval(node.value)["settings"]
    network = Autoencoder(**settings)
    codec = LatentCodec({"settings": settings, "mean": [0.0] * network.latent, "std": [1.0] * network.latent})
    codec.take(network.state_dict())
    pictures = np.random.default_rng(0).integers(0, 256, (batch, 128, 128, 4), dtype=np.uint8)
    x0 = codec.encode(pictures)
    return {"parameters": sum(p.numel() for p in network.parameters()),
            "ms_encode": 1000 * least(lambda: codec.encode(pictures), times) / batch,
            "ms_decode": 1000 * least(lambda: codec.decode(x0), times) / batch,
            "ms_preview": 1000 * least(lambda: codec.preview(x0[:1]), 5 * times)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measured(*way, given.batch, given.times) for name, way in WAYS.items()}
    base = found["latents"]
    for name, row in found.items():
        ratio = row["ms_a_trained_picture"] / base["ms_a_trained_picture"]
        print(f"{name:24}{row['parameters'] / 1e6:.2f}M  {row['ms_a_trained_picture']:.1f} ms a trained picture ({ratio:.2f}), "
              f"{row['ms_an_evaluation']:.1f} ms an evaluation", flush=True)  # fmt: skip
    found["autoencoder"] = codec_cost(given.batch, given.times)
    print("autoencoder             " + ", ".join(f"{key} {value:.3g}" for key, value in found["autoencoder"].items()))
    if given.out:
        given.out.write_text(json.dumps({"batch": given.batch, "torch": torch.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
