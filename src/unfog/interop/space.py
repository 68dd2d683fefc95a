"""The model space of Stable Diffusion: text through one or two CLIP encoders, pictures through an autoencoder.

    prompt -> fragments (text, weight) -> chunks of 77 tokens -> states, side by side      weight w: s ← s₀ + w·(s − s₀)

s₀ are the states of the empty prompt; prompts of several lengths are filled up with empty chunks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.errors import UserError, shown, unknown
from unfog.interop import guides as guiding
from unfog.interop.clip import ClipText, Fragments, Said, Tokens
from unfog.interop.guides import Guides, Steer
from unfog.interop.networks import Autoencoder
from unfog.modalities.contract import Cond
from unfog.prompts import Fragment
from unfog.requests import GenerateRequest

Asked: TypeAlias = "str | tuple[Fragment, ...]"  # text as it stands, or what `unfog.prompts` read of one
KEPT = 256  # chunks whose states are remembered
PLACES = {"size": "WIDTHxHEIGHT", "original": "WIDTHxHEIGHT", "target": "WIDTHxHEIGHT", "crop": "LEFT,TOP"}


def fragments(prompt: Asked) -> Fragments:
    """The pieces of a prompt with their weights; what weighs nothing is left out."""
    return [(prompt, 1.0)] if isinstance(prompt, str) else [(text, weight) for text, weight in prompt if weight > 0.0]


class Encoder:
    """One text encoder with its tokens. skip: take the states before the last layer, without its norm (SDXL)."""

    def __init__(self, tokens: Tokens, network: ClipText, skip: bool) -> None:
        rows = len(network.embeddings["token_embedding"].weight)  # type: ignore[arg-type]
        if tokens.largest >= rows:
            raise UserError(
                f"tokenizer: has the number {tokens.largest}, the text encoder only {rows} vectors; get the folder again"
            )
        places = len(network.embeddings["position_embedding"].weight)  # type: ignore[arg-type]
        if places < 77:
            raise UserError(f"text_encoder: has {places} places for tokens, not 77; give another folder")
        self.tokens, self.network, self.skip = tokens, network, skip
        self.kept: dict[tuple[int, ...], Said] = {}

    def said(self, chunks: Sequence[Sequence[int]]) -> list[Said]:
        """What the network makes of each chunk; those that it does not remember, in one batch."""
        new = list(dict.fromkeys(tuple(chunk) for chunk in chunks if tuple(chunk) not in self.kept))
        if len(self.kept) + len(new) > KEPT:
            self.kept = {tuple(c): self.kept[tuple(c)] for c in chunks if tuple(c) in self.kept}
        if new:
            device = self.network.final_layer_norm.weight.device
            with torch.no_grad():
                told = self.network(torch.tensor(new, device=device))
            self.kept |= {chunk: Said(*(part[i] for part in told)) for i, chunk in enumerate(new)}
        return [self.kept[tuple(chunk)] for chunk in chunks]

    def encode(self, prompts: Sequence[Fragments], chunks: int) -> tuple[Tensor, Tensor]:
        """States (B, chunks·77, d) and pooled (B, e); chunks: at least as many as the longest prompt has."""
        empty = self.tokens.chunks([("", 1.0)])[0][0]
        ids, weights = [], []
        for prompt in prompts:
            own, how = self.tokens.chunks(prompt)
            left = chunks - len(own)
            ids += [*own, *([empty] * left)]
            weights += [*how, *([[1.0] * 77] * left)]
        said = self.said([*ids, empty])
        states = torch.stack([s.penultimate if self.skip else s.last for s in said])
        factor = torch.tensor(weights, dtype=states.dtype, device=states.device)[..., None]
        if bool((factor != 1.0).any()):
            states = torch.cat([states[-1:] + factor * (states[:-1] - states[-1:]), states[-1:]])
        pooled = torch.stack([s.pooled for s in said[:-1]])
        return states[:-1].reshape(len(prompts), chunks * 77, -1), pooled[::chunks]  # pooled: of a prompt's first chunk

    def longest(self, prompts: Sequence[Fragments]) -> int:
        return max(len(self.tokens.chunks(prompt)[0]) for prompt in prompts)


class LatentSpace:
    """What a folder of Stable Diffusion is asked for. size: pixels a side in training. empty_zero: guidance's other branch is
    all zeros where nothing is to be avoided (SDXL). refiner: an SDXL network that is told a score instead of a target size."""

    reads = True  # prompts are the language of unfog.prompts

    def __init__(self, codec: Autoencoder, encoders: Sequence[Encoder], size: int, micro: bool = False,
                 empty_zero: bool = False, refiner: bool = False) -> None:  # fmt: skip
        self.codec, self.encoders, self.size = codec, list(encoders), size
        self.micro, self.empty_zero, self.refiner = micro, empty_zero, refiner
        self.styles: list[str] = []
        self.guides = Guides()
        self._grey: dict[tuple[int, int], Tensor] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codec.shape(self.size, self.size)

    def card(self) -> dict[str, Any]:
        return {"size": self.size, "text": "clip", "styles": []}

    def network(self) -> dict[str, Any]:
        return {}

    def encode(self, raw: Sequence[np.ndarray], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        return self.codec.encode(np.stack(list(raw))), {}

    def decode(self, x0: Tensor, cond: Cond) -> list[np.ndarray]:
        return list(self.codec.decode(x0))

    def fits(self, text: str) -> bool:
        """Prompts of any length are read, and always were."""
        return True

    def ask(self, prompts: Sequence[Asked | None], seeds: Sequence[int]) -> Cond:
        return self._told([fragments(p or "") for p in prompts], 0, {})

    def settled(self, request: GenerateRequest) -> dict[str, Any]:
        """The size in pixels, and, of SDXL, what its network is told of it."""
        given = dict(request.settings)
        known = [*(PLACES if self.micro else ["size"]), *(["guess"] if self.guides.branches else [])]
        for name in given:
            if name not in known:
                raise unknown("setting", name, known)
        if given.get("guess", "on") not in ("on", "off"):
            raise UserError(f"guess: must be on or off, got {shown(given['guess'])}")
        if "size" in given and request.aspect is not None:
            raise UserError("size: is given together with aspect; leave one out")
        found: dict[str, Any] = {"settings": given} if given else {}
        width, height = self._size({"aspect": request.aspect, **found})
        if width % self.codec.factor or height % self.codec.factor or not 8 <= min(width, height) <= max(width, height) <= 8192:
            raise UserError(f"size: must be multiples of {self.codec.factor} up to 8192, got {width}x{height}")
        for name in ("original", "target", "crop"):
            if name in given:
                _pair(name, given[name], "," if name == "crop" else "x")
        return found

    def shaped(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        width, height = self._size(settings)
        return self.codec.shape(width, height)

    def _size(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height in pixels: as asked for, near an aspect at the usual area, or the usual square."""
        own, aspect = settings.get("settings", {}), settings.get("aspect")
        if "size" in own:
            return _pair("size", own["size"], "x")
        if aspect is None:
            return self.size, self.size
        w, h = map(int, aspect.split(":"))
        side = self.codec.factor * 8  # U-Nets halve three times
        width, height = (max(round(self.size * ratio / side), 1) * side for ratio in (math.sqrt(w / h), math.sqrt(h / w)))
        return width, height

    def both(self, prompts: Sequence[Asked], negative: Asked | None, settings: Mapping[str, Any]) -> tuple[Cond, Cond]:
        """Prompts and what to avoid, encoded together, equally long."""
        asked, avoided = [fragments(p) for p in prompts], fragments(negative or "")
        chunks = max((encoder.longest([*asked, avoided]) for encoder in self.encoders), default=1)
        told = self._told([*asked, avoided], chunks, settings)
        cond = {key: value[:-1] for key, value in told.items()}
        other = {key: value[-1:].expand(len(prompts), *value.shape[1:]) for key, value in told.items()}
        if self.refiner:
            other["time_ids"] = torch.cat([other["time_ids"][:, :-1], torch.full((len(prompts), 1), 2.5)], dim=1)
        if self.empty_zero and not negative:
            other |= {key: torch.zeros_like(other[key]) for key in ("text", "pooled")}
        return cond, other

    def _told(self, prompts: Sequence[Fragments], chunks: int, settings: Mapping[str, Any]) -> Cond:
        chunks = chunks or max(encoder.longest(prompts) for encoder in self.encoders)
        found = [encoder.encode(prompts, chunks) for encoder in self.encoders]
        cond = {"text": torch.cat([states for states, _ in found], dim=-1)}
        if self.micro:
            cond["pooled"] = found[-1][1]
            cond["time_ids"] = self._micro(settings).expand(len(prompts), -1)
        if self.guides.beside:
            own = self._beside(*self._size(settings))
            cond["beside"] = own.expand(len(prompts), *own.shape[1:])
        return cond

    def _beside(self, width: int, height: int) -> Tensor:
        """What a network of more channels reads beside latents where nobody says it: all is free, or all is equally far."""
        _, rows, columns = self.codec.shape(width, height)
        if self.guides.beside == guiding.DEPTH:
            return torch.zeros(1, 1, rows, columns)
        if self.guides.beside == guiding.MAP:
            return torch.zeros(1, self.codec.channels, rows, columns)
        if (width, height) not in self._grey:
            self._grey = {(width, height): self.around(np.zeros((height, width, 4), np.uint8), None)["beside"].cpu()}
        return self._grey[width, height]

    def around(self, raw: np.ndarray, kept: np.ndarray | None) -> Cond:
        """What a network for inpainting is told of a picture (H, W, 4) uint8, of which `kept` (H, W) stays (None: nothing):
        1 in each cell that has something free, and the latents of the picture with grey where it is free."""
        if self.guides.beside != guiding.INPAINT:
            return {}
        free = torch.ones(1, 1, *raw.shape[:2], dtype=torch.bool) if kept is None else ~torch.from_numpy(kept)[None, None]
        known = self.codec.encode(raw[None], free)
        cells = F.adaptive_max_pool2d(free.float(), known.shape[-2:]).to(known.device)
        return {"beside": torch.cat([cells, known], dim=1)}

    def hints(self, request: GenerateRequest) -> Steer | None:
        """What the request's pictures steer. Raises UserError for those that nothing here follows."""
        frame = self.frame(request.aspect, request.settings)
        rows, columns = self.codec.shape(*frame)[1:]
        return self.guides.hints(request, frame, (rows, columns))

    def hint(self, kind: str, picture: Any, frame: tuple[int, int]) -> Tensor:
        """What is followed of a picture."""
        return self.guides.hint(kind, picture, frame)

    def frame(self, aspect: str | None, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height of a picture."""
        return self._size({"aspect": aspect, "settings": settings})

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """Frames (width, height) of about the usual area, the squarest first: where pictures of other shapes are edited."""
        side = self.codec.factor * 8
        most = max(round(self.size / side), 1)
        pairs = [(w * side, max(round(most * most / w), 1) * side) for w in range(max(most // 2, 1), 2 * most + 1)]
        return sorted(pairs, key=lambda pair: (abs(math.log(pair[0] / pair[1])), pair))

    def _micro(self, settings: Mapping[str, Any]) -> Tensor:
        """SDXL's six numbers: original height and width, crop's top and left, target's height and width."""
        own = settings.get("settings", {})
        size = self._size(settings)
        width, height = _pair("original", own["original"], "x") if "original" in own else size
        left, top = _pair("crop", own["crop"], ",") if "crop" in own else (0, 0)
        to_width, to_height = _pair("target", own["target"], "x") if "target" in own else size
        if self.refiner:  # an aesthetic score, as diffusers sets it
            return torch.tensor([[height, width, top, left, 6.0]])
        return torch.tensor([[height, width, top, left, to_height, to_width]])  # whole numbers, which no half precision rounds


def _pair(name: str, text: str, mark: str) -> tuple[int, int]:
    first, found, last = text.partition(mark)
    if not (found and first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal() and len(text) < 12):
        raise UserError(f"{name}: must be {PLACES[name]} in pixels, got {shown(text)}")
    return int(first), int(last)
