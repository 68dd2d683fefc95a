"""Stable Diffusion 3's and Flux's: transformers that attend to text and picture jointly, and the space they work in.

    SD 3    text = [CLIP-L | CLIP-G | 0] then T5, side by side in length;  pooled = CLIP-L, CLIP-G;  an encoder left out is zeros
    Flux    text = T5;  pooled = CLIP-L;  four latents a token, each with its row and column;  guidance told as a number
    Kontext Flux that sees a picture's latents as tokens behind those that it makes, at the same places of another plane
    Fill    Flux that reads, beside each latent, that of the picture with grey where it is free, and which of its pixels are free
    Canny, Depth    Flux that reads, beside each latent, that of a map which it follows

Sources: Esser et al. 2024, arXiv:2403.03206, §4; Black Forest Labs 2024 (Flux).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle

from unfog.errors import UserError, shown, unknown
from unfog.interop.clip import Fragments
from unfog.interop.networks import Autoencoder, built, config_of, filled, package
from unfog.interop.safe import Folder, Weights
from unfog.interop.space import Encoder, LatentSpace
from unfog.interop.t5 import LONGEST, T5Encoder
from unfog.modalities.contract import Cond
from unfog.requests import GenerateRequest

CLASSES = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}
MODULES = {"sd3": "diffusers.models.transformers.transformer_sd3", "flux": "diffusers.models.transformers.transformer_flux"}
TOKENS = {"sd3": 256, "flux": 512}  # of T5, usually
GUIDANCE, FILLING, MAPPED = 3.5, 30.0, 10.0  # usually told to Flux, to its network that fills in, to those that follow a map
UNIT = 1000.0  # the networks know σ in thousandths


@dataclass(frozen=True)
class Sizes:
    """What a network takes: numbers of a text state and of the pooled one, latent channels, latents a side of a patch, patches
    a side at most (None: any), latents a side in training, whether it is told a guidance, and channels beside the latents."""

    text: int
    pooled: int
    channels: int
    patch: int
    furthest: int | None
    side: int
    guided: bool
    beside: int = 0


class SD3(nn.Module):
    """network(x_t (B, C, h, w), σ (B,), cond: text (B, n, d), pooled (B, e); "extra": what is added to each layer)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Any]) -> Tensor:
        added, _ = cond.get("extra", (None, None))
        out: Tensor = self.transformer(hidden_states=x, encoder_hidden_states=cond["text"], pooled_projections=cond["pooled"],
                                       timestep=level * UNIT, block_controlnet_hidden_states=added,
                                       return_dict=False)[0]  # fmt: skip
        return out


class Places(nn.Module):
    """Flux's sines of rows and columns, made once for as long as the size stays."""

    def __init__(self, made: nn.Module) -> None:
        super().__init__()
        self.made = made
        self.kept: tuple[Tensor, Any] | None = None  # replaced whole, as two threads may ask

    def forward(self, ids: Tensor) -> Any:
        kept = self.kept
        if kept is None or kept[0].shape != ids.shape or not torch.equal(kept[0], ids):
            self.kept = kept = ids, self.made(ids)
        return kept[1]


def packed(x: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, C, h, w) as tokens (B, h·w/4, 4·C) of two by two, and the places of tokens and of words, as Flux has them."""
    b, c, h, w = x.shape
    places = torch.zeros(h // 2, w // 2, 3, device=x.device)
    places[..., 1] = torch.arange(h // 2, device=x.device)[:, None]
    places[..., 2] = torch.arange(w // 2, device=x.device)
    tokens = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
    return tokens, places.reshape(-1, 3), torch.zeros(text.shape[1], 3, device=x.device)


class Flux(nn.Module):
    """network(x_t (B, C, h, w), σ (B,), cond: text, pooled; guidance (B,) where it is told one; "beside" (B, c, h, w) where it
    reads more than latents; "context" (B, C, h', w') of a picture that it sees; "extra": what is added to each layer of its two
    rows). h and w even."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.pos_embed = Places(transformer.pos_embed)  # type: ignore[arg-type]  # which has no weights

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Any]) -> Tensor:
        b, c, h, w = x.shape
        seen = torch.cat([x, cond["beside"].to(x.dtype)], dim=1) if "beside" in cond else x
        tokens, places, words = packed(seen, cond["text"])
        double, single = cond.get("extra", (None, None))
        own = tokens.shape[1]
        if "context" in cond:
            more, beyond, _ = packed(cond["context"].to(x.dtype), cond["text"])
            beyond[:, 0] = 1.0
            tokens, places = torch.cat([tokens, more], dim=1), torch.cat([places, beyond])
            double, single = ([pad(one, (0, 0, 0, more.shape[1])) for one in row] if row else row for row in (double, single))
        out: Tensor = self.transformer(
            hidden_states=tokens, encoder_hidden_states=cond["text"], pooled_projections=cond["pooled"], timestep=level,
            guidance=cond.get("guidance"), img_ids=places, txt_ids=words, controlnet_block_samples=double,
            controlnet_single_block_samples=single, return_dict=False,
        )[0]  # fmt: skip
        return out[:, :own].reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def joint(folder: Folder, component: str, family: str, dtype: torch.dtype,
          weights: Weights | None = None) -> tuple[SD3 | Flux, Sizes]:  # fmt: skip
    """The denoising network of a folder of SD 3 or Flux; weights: instead of the folder's own.

    Raises UserError for a config or weights that do not fit together.
    """
    where = folder.root / component / "config.json"
    config = config_of(folder, component)
    made = built(where, package(MODULES[family], CLASSES[family]), config)
    own: Any = made.config
    inner = own.num_attention_heads * own.attention_head_dim
    if family == "sd3":
        odd = own.out_channels not in (None, own.in_channels) and "out_channels"
        odd = odd or (own.caption_projection_dim != inner and "caption_projection_dim")
        sizes = Sizes(own.joint_attention_dim, own.pooled_projection_dim, own.in_channels, own.patch_size,
                      own.pos_embed_max_size, own.sample_size, False)  # fmt: skip
    else:
        made_of = own.in_channels if own.out_channels is None else own.out_channels
        odd = (made_of % 4 or not 0 < made_of <= own.in_channels) and "out_channels"
        odd = odd or ((own.patch_size != 1 or own.in_channels % 4) and "in_channels")
        axes = own.axes_dims_rope if isinstance(own.axes_dims_rope, (list, tuple)) else ()
        whole = len(axes) == 3 and all(type(n) is int and n > 0 for n in axes) and sum(axes) == own.attention_head_dim
        odd = odd or (not whole and "axes_dims_rope")
        sizes = Sizes(own.joint_attention_dim, own.pooled_projection_dim, made_of // 4, 2, None, 128,
                      bool(own.guidance_embeds), (own.in_channels - made_of) // 4)  # fmt: skip
    if odd:
        raise UserError(
            f"{where}: {odd} {shown(str(getattr(own, odd)))} makes no network of {CLASSES[family]} that unfog reads; "
            "give another folder"
        )
    filled(made, weights or folder.weights(component, "diffusion_pytorch_model"), dtype)
    return (SD3(made) if family == "sd3" else Flux(made)), sizes


def nothing(sizes: Sizes, like: Tensor, words: int, side: int) -> dict[str, Tensor]:
    """Zeros for all that a network is told, of so many words and latents a side, in the number format of `like`."""
    cond = {"text": torch.zeros(1, words, sizes.text).to(like), "pooled": torch.zeros(1, sizes.pooled).to(like)}
    cond |= {"guidance": torch.ones(1).to(like)} if sizes.guided else {}
    return cond | ({"beside": torch.zeros(1, sizes.beside, side, side).to(like)} if sizes.beside else {})


@torch.no_grad()
def tried(where: Any, network: SD3 | Flux, sizes: Sizes) -> None:
    """Ask the network once, for one patch and one word, so that what does not work together is said as it is loaded."""
    weight = next(network.parameters())
    cond, x = nothing(sizes, weight, 1, sizes.patch), torch.zeros(1, sizes.channels, sizes.patch, sizes.patch).to(weight)
    try:
        fits = network(x, torch.ones(1, device=weight.device), cond).shape == x.shape
        reason = "another shape comes out than goes in"
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        fits, reason = False, " ".join(str(error).split())[:100]
    if not fits:
        raise UserError(f"{where}: its parts do not work together ({reason}); get the folder again")


class JointSpace(LatentSpace):
    """What a folder of SD 3 or Flux is asked for. clips: CLIP-L, and of SD 3 CLIP-G; an encoder that is None says zeros.

    usual: tokens of T5. joint: CLIP's states are read, too. edits: the network sees the picture that it is to change.
    """

    def __init__(self, codec: Autoencoder, clips: Sequence[Encoder | None], t5: T5Encoder | None, sizes: Sizes, usual: int,
                 joint: bool, edits: bool = False) -> None:  # fmt: skip
        super().__init__(codec, [clip for clip in clips if clip is not None], sizes.side * codec.factor)
        self.clips, self.t5, self.sizes, self.usual, self.joint = list(clips), t5, sizes, usual, joint
        self.edits = edits
        if edits:
            self.anew = 1.0  # the usual strength of an edit of all of a picture

    def card(self) -> dict[str, Any]:
        return {**super().card(), "text": "clip, t5" if self.t5 else "clip"}

    def settled(self, request: GenerateRequest) -> dict[str, Any]:
        """The size, the tokens of T5, and the guidance of networks that are told one."""
        given, known = dict(request.settings), ["size", "tokens", *(["guidance"] if self.sizes.guided else [])]
        if "guidance" in given and not self.sizes.guided:
            raise UserError("guidance: this network is told none; give --scale, or leave it out")
        for name in given:
            if name not in known:
                raise unknown("setting", name, known)
        self._tokens({"settings": given})
        self._guidance({"settings": given})
        width, height = self._size({"aspect": request.aspect, "settings": given})
        step = self.codec.factor * self.sizes.patch
        if width % step or height % step:
            raise UserError(f"size: must be multiples of {step}, got {width}x{height}")
        most = self.sizes.furthest
        if most is not None and max(width, height) > most * step:
            raise UserError(f"size: at most {most * step} a side, as many places as this network knows, got {width}x{height}")
        super().settled(request.model_copy(update={"settings": {k: v for k, v in given.items() if k == "size"}}))
        return {"settings": given} if given else {}

    def patches(self, shape: Sequence[int]) -> int:
        """Of x0 of this shape."""
        return (shape[-2] // self.sizes.patch) * (shape[-1] // self.sizes.patch)

    def _tokens(self, settings: Mapping[str, Any]) -> int | None:
        text = settings.get("settings", {}).get("tokens")
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= LONGEST):
            raise UserError(f"tokens: must be a whole number up to {LONGEST}, got {shown(text)}")
        return int(text)

    def _guidance(self, settings: Mapping[str, Any]) -> float:
        usual = {0: GUIDANCE, self.sizes.channels: MAPPED}.get(self.sizes.beside, FILLING)
        text = settings.get("settings", {}).get("guidance", str(usual))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 100.0:
            raise UserError(f"guidance: must be a number from 0 to 100, got {shown(text)}")
        return value

    def both(self, prompts: Sequence[Any], negative: Any, settings: Mapping[str, Any]) -> tuple[Cond, Cond]:
        """Prompts and what to avoid; without guidance nobody asks for that, and T5 need not read it."""
        return super().both(prompts, prompts[0] if settings.get("scale") == 1.0 else negative, settings)

    def _told(self, prompts: Sequence[Fragments], chunks: int, settings: Mapping[str, Any]) -> Cond:
        chunks = max([chunks, 1, *(clip.longest(prompts) for clip in self.encoders)])
        found = [clip.encode(prompts, chunks) for clip in self.encoders]
        states, pooled = (torch.cat([pair[i] for pair in found], dim=-1) if found else self._zeros(prompts, i) for i in (0, 1))
        # what the encoders left out would have said of the pooled numbers; of its states CLIP-L would have said as many
        gap = (self.sizes.pooled - pooled.shape[-1], 0) if self.clips[0] is None else (0, self.sizes.pooled - pooled.shape[-1])
        text = [self._long(prompts, settings)]
        if self.joint:
            before = gap[0] if found else 0
            text.insert(0, pad(states, (before, self.sizes.text - before - states.shape[-1])))
        cond = {"text": torch.cat([part.float() for part in text], dim=1), "pooled": pad(pooled, gap)}
        if self.sizes.guided:
            cond["guidance"] = torch.full((len(prompts),), self._guidance(settings))
        if self.sizes.beside:
            own = self._beside(*self._size(settings))
            cond["beside"] = own.expand(len(prompts), *own.shape[1:])
        return cond

    def around(self, raw: np.ndarray, kept: np.ndarray | None) -> Cond:
        """The picture itself, where it is seen; else as a U-Net for inpainting is told it, but in another order, and each pixel
        of a cell by itself."""
        if self.edits:
            return {"context": self.codec.encode(raw[None])}
        if self.sizes.beside in (0, self.sizes.channels):
            return {}
        free = torch.ones(1, 1, *raw.shape[:2], dtype=torch.bool) if kept is None else ~torch.from_numpy(kept)[None, None]
        known = self.codec.encode(raw[None], free)
        return {"beside": torch.cat([known, pixel_unshuffle(free.float(), self.codec.factor).to(known)], dim=1)}

    def _zeros(self, prompts: Sequence[Fragments], pooled: int) -> Tensor:
        return torch.zeros((len(prompts), 0) if pooled else (len(prompts), 77, 0), device=self.codec.device)

    def _long(self, prompts: Sequence[Fragments], settings: Mapping[str, Any]) -> Tensor:
        """T5's states; its zeros, where it is left out."""
        usual = self._tokens(settings) or self.usual
        if self.t5 is None:
            return torch.zeros(len(prompts), usual, self.sizes.text, device=self.codec.device)
        return self.t5.encode(prompts, self.t5.length(prompts, usual))


def fitting(where: Any, space: JointSpace) -> None:
    """The parts must be made for one another. Raises UserError."""
    sizes, clips = space.sizes, [clip.network for clip in space.encoders]
    pooled = sum(clip.width if clip.text_projection is None else clip.text_projection.weight.shape[0] for clip in clips)
    whole = None not in space.clips
    if pooled != sizes.pooled if whole else pooled > sizes.pooled:
        raise UserError(f"{where}: the network reads {sizes.pooled} pooled numbers, the encoders give {pooled}; "
                        "get the folder again")  # fmt: skip
    width = sum(clip.width for clip in clips) if space.joint else 0
    said = space.t5.network.width if space.t5 else sizes.text
    if width > sizes.text or said != sizes.text:
        raise UserError(f"{where}: the network reads text of {sizes.text} numbers, the encoders give "
                        f"{said if said != sizes.text else width}; get the folder again")  # fmt: skip
    pixels = space.codec.factor**2
    if sizes.beside not in (0, sizes.channels, sizes.channels + pixels):
        raise UserError(f"{where}: the network reads {sizes.beside} channels beside latents, not 0, a map's {sizes.channels} or "
                        f"a masked picture's ({sizes.channels} and {pixels}); give another folder")  # fmt: skip
    if sizes.channels != space.codec.channels:
        raise UserError(f"{where}: the network takes {sizes.channels} channels, the autoencoder gives {space.codec.channels}; "
                        "get the folder again")  # fmt: skip
