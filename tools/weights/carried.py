"""Carry what a U-Net has learned into a larger one, into larger pictures or an autoencoder's latents, to train on from there.

    python tools/weights/carried.py finer MODEL OUT                     a level of twice the resolution around the network
    python tools/weights/carried.py latents MODEL --autoencoder NAME --data data/emoji-128.zip OUT
    python tools/weights/carried.py pixels MODEL --data data/emoji-128.zip OUT          as many cells, of more pixels each
    python tools/weights/carried.py mixed MODEL --other MODEL [--share S] OUT    between both but for what touches the pictures
    unfog train RECIPE --start OUT ...

All inner weights are taken over. What lies between them and the pictures is fitted by least squares on training pictures, so
that the new network does about what the old one did (the errors of both are printed); training finds the rest. A finer level's
own blocks start as the identity, and its gate (networks/unet.py) closed. Latents of a cell are nearly a linear map of its
pixels (its share of variance is printed), and so are fewer pixels of more, but noise on the one is no white noise on the other:
much is left to train.
`mixed` brings back what a model learned in latents: networks of which the one began as the other stay so near that halfway
between them lies a better start than either (emoji-64 and emoji-128: errors at high noise below those of both).
Sources of the ideas: Chen et al. 2016, arXiv:1511.05641 (Net2Net); Wortsman et al. 2022, arXiv:2203.05482 (averaged weights).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import unfog.data
from unfog.evaluation.samples import caption
from unfog.files import write_weights
from unfog.modalities import build_network
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.latent import WEIGHTS, LatentCodec, read_autoencoder
from unfog.model import Model
from unfog.networks.layers import fourier
from unfog.networks.unet import UNet

RIDGE = 1e-4  # of the mean square of what is fitted from
GAIN = 8.0  # of the new stream: norms do not see it, and steps that are even in size would shake smaller weights
SHIFTS = (1.4, 0.7, 0.0, -0.7, -1.4, -2.1, -2.8)  # of log-SNR, tried: latents share less with their neighbours than pixels
STEADY = 4  # channels of the new stream that are constant at first, so that norms over it keep sizes


def fitted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weight (m, n), bias (m,) of the least-squares map of (..., n) to (..., m), and the share of variance that it explains."""
    x, y = x.reshape(-1, x.shape[-1]).double(), y.reshape(-1, y.shape[-1]).double()
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    found = torch.linalg.solve(wide.T @ wide + RIDGE * len(x) * torch.eye(wide.shape[1], dtype=x.dtype), wide.T @ y)
    share = 1 - (wide @ found - y).square().sum() / (y - y.mean(0)).square().sum()
    return found[:-1].T.float().contiguous(), found[-1].float(), float(share)


def cells(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, H/side, W/side, C·side²)."""
    return F.pixel_unshuffle(x, side).permute(0, 2, 3, 1).contiguous()


def squares(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H/2, W/2, 4·C), as Down and Up order them."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)


def turned(weight: Tensor, shift: float) -> Tensor:
    """The first map of log-SNR's sines and cosines, as if `shift` were added to log-SNR: exact, by turning each pair."""
    half = weight.shape[1] // 2
    angle = fourier(torch.tensor([shift]), 2 * half)[0]
    sine, cosine = angle[:half], angle[half:]
    return torch.cat(
        [weight[:, :half] * cosine - weight[:, half:] * sine, weight[:, :half] * sine + weight[:, half:] * cosine], 1
    )


class Seen:
    """Noisy training pictures with their captions, and what a network makes of them, in parts. codec, data: others than the
    model's own."""

    def __init__(self, model: Model, count: int = 512, codec: Any = None, data: PictureSet | None = None) -> None:
        size = None if data else (model.size, model.size)
        data, codec = data or PictureSet.open(unfog.data.path("emoji-64")), codec or model.codec
        rows = np.random.default_rng(1).permutation(data.split("train"))[:count].tolist()
        generator = torch.Generator().manual_seed(3)
        self.x0 = codec.encode(torch.as_tensor(np.stack([data.load(i, size) for i in rows])))
        self.level = (0.6 + 1.4 * torch.randn(count, generator=generator)).clamp(-3.2, 4.0)  # ln(σ/α)
        schedule = model.denoiser.process.schedule
        t = schedule.time(-2 * self.level)
        alpha, sigma = (value[:, None, None, None] for value in (schedule.alpha(t), schedule.sigma(t)))
        self.x_t = alpha * self.x0 + sigma * torch.randn(self.x0.shape, generator=generator)
        records = [data.records[i] for i in rows]
        self.cond = model.condition([caption(r) for r in records], [r.style for r in records])

    @torch.no_grad()
    def by(self, network: UNet, *parts: tuple[torch.nn.Module, bool]) -> list[Tensor]:
        """The network's output, and of each (module, given) its output, or (given) what goes into it."""
        kept: list[list[Tensor]] = [[] for _ in parts]

        def keep(place: int, given: bool) -> Any:
            return lambda module, inputs, output: kept[place].append(inputs[0] if given else output)

        hooks = [module.register_forward_hook(keep(k, given)) for k, (module, given) in enumerate(parts)]
        made = []
        for first in range(0, len(self.x_t), 64):
            rows = slice(first, first + 64)
            made.append(network(self.x_t[rows], -2 * self.level[rows], {k: v[rows] for k, v in self.cond.items()}))
        for hook in hooks:
            hook.remove()
        return [torch.cat(found) for found in (made, *kept)]

    def tell(self, **made: Tensor) -> None:
        """The mean square error of each, by noise level."""
        for low in range(-3, 4):
            rows = (self.level >= low) & (self.level < low + 1)
            errors = [f"{name} {float((x[rows] - self.x0[rows]).square().mean()):.4f}" for name, x in made.items()]
            print(f"ln(sigma/alpha) {low} to {low + 1}: {', '.join(errors)}")


@torch.no_grad()
def finer(model: Model) -> tuple[UNet, dict[str, Any]]:
    """A network with a level of twice the resolution and half the width around the model's, and its settings."""
    old: Any = model.denoiser.network
    settings = dict(model.card["network"]["settings"])
    widths = [settings["widths"][0] // 2, *settings["widths"]]
    settings |= {"unshuffle": settings["unshuffle"] // 2, "widths": widths, "blocks": [1, *settings["blocks"]],
                 "attention": [False, *settings["attention"]], "gated": True}  # fmt: skip
    torch.manual_seed(0)
    new: Any = build_network("image", "unet", settings)
    inner = {}
    for name, value in old.state_dict().items():
        first, *rest = name.split(".")
        if first in ("down", "shrink"):
            rest[0] = str(int(rest[0]) + 1)
        if first not in ("stem", "head", "norm"):
            inner[".".join([first, *rest])] = value
    new.load_state_dict(inner, strict=False)
    new.eval()
    seen, numbers, width = Seen(model), settings["channels"] * settings["unshuffle"] ** 2, widths[0]
    out, stem, last = seen.by(old, (old.stem, False), (old.norm, True))

    new.stem.conv.weight[:numbers] = 0
    new.stem.conv.weight[range(numbers), range(numbers), 1, 1] = 1.0  # a cell's numbers pass, beside random features of them
    new.stem.conv.bias.zero_()
    weight, bias, share = fitted(squares(new.stem(cells(seen.x_t, settings["unshuffle"]))), stem)
    print(f"first features: {share:.3f} of their variance")
    new.shrink[0].linear.weight.copy_(weight)
    new.shrink[0].linear.bias.copy_(bias)

    weight, bias, share = fitted(last, squares(cells(out, settings["unshuffle"])))
    print(f"pixels by the last features: {share:.3f}")
    grown, offset = 0.02 * torch.randn(4, width, weight.shape[1]), torch.zeros(4, width)
    grown[:, :numbers], offset[:, :numbers] = weight.reshape(4, numbers, -1), bias.reshape(4, numbers)
    grown[:, numbers : numbers + STEADY] = 0
    offset[:, numbers : numbers + STEADY] = 3.0 * torch.tensor([1.0, 1.0, -1.0, -1.0])
    new.grow[-1].linear.weight.copy_(GAIN * grown.flatten(0, 1))
    new.grow[-1].linear.bias.copy_(GAIN * offset.flatten())
    for stage in new.up[-1]:
        stage.merge.weight.mul_(0.1 * GAIN)
        stage.merge.bias.zero_()
    (_, normed), rows = seen.by(new, (new.norm, False)), slice(0, 128)
    padded = F.pad(F.silu(normed[rows]), (0, 0, 1, 1, 1, 1))
    high, wide = normed.shape[1:3]
    taps = torch.cat([padded[:, i : i + high, j : j + wide] for i in range(3) for j in range(3)], -1)
    weight, bias, share = fitted(taps, cells(seen.x0, settings["unshuffle"])[rows])
    print(f"pixels by the new last features: {share:.3f}")
    new.head.conv.weight.copy_(weight.reshape(numbers, 3, 3, width).permute(0, 3, 1, 2))
    new.head.conv.bias.copy_(bias)
    seen.tell(before=out, now=seen.by(new)[0])
    return new, settings


@torch.no_grad()
def moved(model: Model, codec: Any, data: PictureSet) -> tuple[UNet, dict[str, Any]]:
    """The model's network on what the codec makes of the data: its first and last map behind and before the linear maps between
    a cell's two forms."""
    settings = dict(model.card["network"]["settings"])
    rows = np.random.default_rng(0).permutation(data.split("train"))[:1500].tolist()
    side = model.size // settings["unshuffle"]  # cells a side, the same for both
    shape = codec.shape(*data.load(rows[0]).shape[1::-1])
    settings |= {"channels": shape[0], "unshuffle": shape[1] // side}
    pixels, found = [], []
    for row in rows:
        picture = torch.tensor(data.load(row))[None]
        found.append(codec.encode(picture))
        pixels.append(model.codec.encode(torch.as_tensor(data.load(row, (model.size, model.size)))[None]))
    x, z = cells(torch.cat(pixels), model.size // side), cells(torch.cat(found), settings["unshuffle"])
    (to_x, x_bias, first), (to_z, z_bias, second) = fitted(z, x), fitted(x, z)
    print(f"old numbers by new ones: {first:.3f} of the variance; new by old: {second:.3f}")
    old: Any = model.denoiser.network
    weights = {name: value.float() for name, value in old.state_dict().items()}
    stem, head = weights["stem.conv.weight"], weights["head.conv.weight"]
    weights["stem.conv.bias"] = weights["stem.conv.bias"] + torch.einsum("oikl,i->o", stem, x_bias)
    weights["stem.conv.weight"] = torch.einsum("oikl,ij->ojkl", stem, to_x)
    weights["head.conv.weight"] = torch.einsum("ji,iokl->jokl", to_z, head)
    weights["head.conv.bias"] = to_z @ weights["head.conv.bias"] + z_bias
    for name in ("gate.conv.weight", "gate.conv.bias"):  # what share of a pixel's numbers is taken, that of the cell's
        if name in weights:
            weights[name] = weights[name].mean(0, keepdim=True).repeat_interleave(len(to_z), 0)
    network: Any = build_network("image", "unet", settings)
    tried = {}
    for shift in SHIFTS:
        time = turned(weights["conditioning.time.0.weight"], shift)
        network.load_state_dict({**weights, "conditioning.time.0.weight": time})
        seen = Seen(model, 192, codec, data)
        tried[shift] = float((seen.by(network.eval())[0] - seen.x0).square().mean())
    best = min(tried, key=lambda shift: tried[shift])
    print(f"error by what is added to log-SNR: {', '.join(f'{k:g}: {v:.4f}' for k, v in tried.items())}; taken {best:g}")
    weights["conditioning.time.0.weight"] = turned(weights["conditioning.time.0.weight"], best)
    network.load_state_dict(weights)
    seen.tell(now=seen.by(network)[0])
    return network, settings


OUTER = ("stem.", "head.", "gate.", "norm.")


def mixed(weights: dict[str, Tensor], others: dict[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
    """A U-Net's weights, of which those between the finest level's two maps hold `share` of another's of the same shape."""
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("up."))
    outer = (*OUTER, "down.0.", "shrink.0.", f"up.{last}.", f"grow.{last - 1}.")
    return {k: v if k.startswith(outer) else (1 - share) * v.float() + share * others[k].float() for k, v in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["finer", "latents", "pixels", "mixed"])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--autoencoder", default="emoji-128-autoencoder")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the other's weights in mixed ones, 0 to 1")
    given = parser.parse_args()
    model = Model(given.model, dtype=torch.float32)
    card: Any = json.loads((given.model / "model.json").read_text())
    others = {WEIGHTS: model.codec.weights} if isinstance(model.codec, LatentCodec) else {}
    if given.what == "mixed":
        network, settings = model.denoiser.network, card["network"]["settings"]
        other: Any = Model(given.other, dtype=torch.float32).denoiser.network
        network.load_state_dict(mixed(network.state_dict(), other.state_dict(), given.share))
        seen = Seen(model)
        seen.tell(now=seen.by(network)[0])
    elif given.what == "finer":
        network, settings = finer(model)
    else:
        data = PictureSet.open(given.data)
        size = data.load(0).shape[0]
        card["size"] = card["training"]["recipe"]["size"] = size
        codec: Any = model.codec
        if given.what == "latents":
            codec, _ = read_autoencoder(given.autoencoder)
            card["codec"], others = codec.card(), {WEIGHTS: codec.weights}
            card["training"]["recipe"]["autoencoder"] = given.autoencoder
        network, settings = moved(model, codec, data)
    card["network"]["settings"] = settings
    own = {key: value for key, value in settings.items() if key not in ("channels", "classes")}
    card["training"]["recipe"] |= {"settings": own}
    write_weights(
        given.out, "network.safetensors", {k: v.half() for k, v in network.state_dict().items()}, "model.json", card, others
    )


if __name__ == "__main__":
    main()
