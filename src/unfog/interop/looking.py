"""IP-Adapter: a picture that is looked at beside the text, through CLIP's image encoder and keys and values of its own.

    y = softmax(q kᵀ/√d) v  +  w · softmax(q k′ᵀ/√d + ln ρ) v′          k′, v′ from the references' tokens

Several references stand side by side; w is the largest weight, ρ each one's share of all, as with our own (`networks/style.py`).

    plain    the picture's embedding -> a few tokens           image_proj.proj
    plus     states before the last layer -> a resampler       image_proj.latents
    full     the same states, each a token                     image_proj.proj.0, .2, .3

`joint_looking.py` has those of Flux and Stable Diffusion 3.
Source: Ye et al. 2023, arXiv:2308.06721, and the names of weights of its code, github.com/tencent-ailab/IP-Adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.clip import Layer
from unfog.interop.networks import config_of, filled
from unfog.interop.safe import Folder, Weights, check_shapes

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
T = TypeVar("T")
MOST_WIDE, MOST_LAYERS = 2**14, 256  # of an image network
HEAD = 64  # numbers of a head of the resampler


def vision_sizes(config: Mapping[str, Any], patch: int) -> tuple[int, int, int, int, int]:
    """Width, picture's side, patch (usually so many pixels), heads and layers of an image network. Raises UserError."""
    width, size, patch = config.get("hidden_size", 768), config.get("image_size", 224), config.get("patch_size", patch)
    heads, layers = config.get("num_attention_heads", 12), config.get("num_hidden_layers", 12)
    whole = all(type(n) is int and n > 0 for n in (width, size, patch, heads, layers))
    if not whole or width > MOST_WIDE or size > 2048 or layers > MOST_LAYERS or size % patch:
        raise UserError("its sizes make no network; get the folder again")
    return width, size, patch, heads, layers


def through(encoder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """States before an encoder's last layer, and after it."""
    before = x
    for layer in encoder["layers"]:
        before, x = x, layer(x)
    return before, x


class ClipVision(nn.Module):
    """CLIP's image network. forward: pictures (B, 3, S, S), normalised -> the embedding (B, d) and the states before the last
    layer (B, n + 1, e)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, size, patch, heads, layers = vision_sizes(config, 32)
        act = config.get("hidden_act", "quick_gelu")
        if act not in ("quick_gelu", "gelu") or width % heads:
            raise UserError(f"hidden_act {shown(act)} with {heads} heads of {width} is not known; give CLIP's image encoder")
        eps = config.get("layer_norm_eps", 1e-5)
        if not isinstance(eps, float) or not 0.0 < eps < 1.0:
            raise UserError(f"layer_norm_eps must be a number between 0 and 1, got {shown(eps)}; get the folder again")
        self.size = size
        inner = config.get("intermediate_size", 3072)
        self.embeddings = nn.ModuleDict({
            "patch_embedding": nn.Conv2d(3, width, patch, patch, bias=False),
            "position_embedding": nn.Embedding((size // patch) ** 2 + 1, width),
        })  # fmt: skip
        self.embeddings.register_parameter("class_embedding", nn.Parameter(torch.empty(width)))
        self.pre_layrnorm = nn.LayerNorm(width, eps=eps)  # sic
        found = [Layer(width, heads, inner, act, eps, causal=False) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(found)})
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        self.visual_projection = nn.Linear(width, config.get("projection_dim", 512), bias=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embeddings["patch_embedding"](pictures).flatten(2).transpose(1, 2)
        first = self.embeddings.class_embedding.expand(len(x), 1, -1)  # type: ignore[operator]
        x = torch.cat([first, x], dim=1) + self.embeddings["position_embedding"].weight  # type: ignore[operator]
        before, x = through(self.encoder, self.pre_layrnorm(x))
        return self.visual_projection(self.post_layernorm(x[:, 0])), before

    def prepared(self, picture: Any) -> Tensor:
        """A picture as CLIP sees it, (3, size, size): see `prepared`."""
        return prepared(picture, self.size)


def seen_by(folder: Folder, component: str, make: Callable[[Mapping[str, Any]], T]) -> T:
    """What `make` makes of a component's config on the meta device. Raises UserError naming the config where it cannot."""
    where = folder.root / component / "config.json"
    try:
        config = config_of(folder, component)
        with torch.device("meta"):
            return make(config)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise UserError(str(error) if str(where) in str(error) else f"{where}: {error}") from None
        raise UserError(f"{where}: makes no network ({str(error)[:80]}); get the folder again") from None


def image_encoder(folder: Folder, component: str, device: str) -> ClipVision:
    """The image network of a folder (CLIPVisionModelWithProjection), in float32. Raises UserError where it is damaged."""
    network = seen_by(folder, component, ClipVision)
    filled(network, folder.weights(component, "model"), torch.float32, strip="vision_model.")
    return network.to(device)


class Perceiver(nn.Module):
    """One round of the resampler: queries look at the picture's states and at themselves."""

    def __init__(self, width: int, inner: int, wide: int) -> None:
        super().__init__()
        self.heads = inner // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, wide, bias=False), nn.GELU(), nn.Linear(wide, width, bias=False)
        )

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        queries = queries + self.looked(self.norm1(x), self.norm2(queries))
        return queries + self.mlp(queries)

    def looked(self, seen: Tensor, asked: Tensor) -> Tensor:
        """What queries find, both normed."""
        k, v = self.to_kv(torch.cat([seen, asked], dim=1)).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(asked), k, v))
        found: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


class Resampler(nn.Module):
    """A few learned queries that look at a picture's states, in rounds."""

    def queries(self, shapes: Mapping[str, tuple[int, ...]], text: int, made: type[Perceiver] = Perceiver) -> None:
        """Make its layers by the shapes of a file's weights, each round a `made`. Raises KeyError where they make none."""
        _, count, width = shapes["latents"]
        inner, wide = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
        if inner % HEAD or depth > 64:
            raise KeyError("layers")
        self.latents = nn.Parameter(torch.empty(1, count, width))
        self.proj_in, self.proj_out = nn.Linear(shapes["proj_in.weight"][1], width), nn.Linear(width, text)
        self.norm_out = nn.LayerNorm(text)
        self.layers = nn.ModuleList(made(width, inner, wide) for _ in range(depth))

    def resampled(self, states: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, n, d) of states (B, m, e); time: of the noise level, (B, width), where its rounds are told it."""
        x, queries = self.proj_in(states), self.latents.expand(len(states), -1, -1)
        x = x if time is None else x + time[:, None]
        for layer in self.layers:
            queries = layer(x, queries) if time is None else layer(x, queries, time)
        made: Tensor = self.norm_out(self.proj_out(queries))
        return made


class Tokens(Resampler):
    """What the encoder says of a picture as tokens for attention; kind: plain, plus or full, by what the file holds."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], text: int) -> None:
        super().__init__()
        self.proj: nn.Module
        if "proj.weight" in shapes:
            self.kind = "plain"
            self.norm = nn.LayerNorm(text)
            self.count = max(shapes["proj.weight"][0] // text, 1)
            self.proj = nn.Linear(shapes["proj.weight"][1], self.count * text)
        elif "latents" in shapes:
            self.kind = "plus"
            self.queries(shapes, text)
        else:
            self.kind = "full"
            read, inner = shapes["proj.0.weight"][1], shapes["proj.0.weight"][0]
            self.proj = nn.Sequential(nn.Linear(read, inner), nn.GELU(), nn.Linear(inner, text), nn.LayerNorm(text))

    @property
    def reads(self) -> int:
        """Numbers of what it is told."""
        first: Any = self.proj_in if self.kind == "plus" else self.proj
        return int((first[0] if self.kind == "full" else first).in_features)

    def forward(self, embedding: Tensor, states: Tensor) -> Tensor:
        """(B, n, d)."""
        if self.kind == "plain":
            return self.norm(self.proj(embedding).unflatten(-1, (self.count, -1)))
        if self.kind == "full":
            found: Tensor = self.proj(states)
            return found
        return self.resampled(states)


Seen = tuple[Tensor, Tensor, Tensor]  # tokens (B, R·n, d), ln ρ of each (B, 1, 1, R·n), w (B, 1, 1)
SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)  # each thread has its own


class Beside:
    """Attention of diffusers' `Attention` to text, and to a picture beside it. inner: to text alone."""

    def __init__(self, inner: Any, key: Tensor, value: Tensor) -> None:
        self.inner, self.key, self.value = inner, key, value

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, temb: Tensor | None = None) -> Tensor:  # fmt: skip
        out: Tensor = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        seen = SEEN.get()
        if seen is None:
            return out
        tokens, share, weight = seen
        projected = attn.to_q(hidden_states), F.linear(tokens, self.key), F.linear(tokens, self.value)
        q, k, v = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in projected)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=share).transpose(1, 2).flatten(2)
        return out + weight * F.linear(y, attn.to_out[0].weight)  # the bias is in `out` already


class Look:
    """An IP-Adapter on a network: its encoder, its tokens, its strength. black: nothing is a black picture, not an embedding
    of zeros."""

    def __init__(self, encoder: Any, project: Any, strength: float, black: bool = False) -> None:
        self.encoder, self.project, self.strength, self.black = encoder, project, strength, black
        self.kept: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Tokens (1, R·n, d) of references, and as many of nothing at all: of an embedding of zeros, or a grey picture's states.

        Raises UserError for a picture that cannot be read.
        """
        seen = self.prepared(pictures)
        if self.kept is not None and torch.equal(self.kept[0], seen):  # a request is checked before it is made
            return self.kept[1]
        told = self.encoder(seen)
        plain = self.project.kind == "plain" and not self.black
        nobody = self.prepared([Image.new("RGB", (8, 8))]) if self.black else torch.zeros_like(seen[:1])
        nothing = (torch.zeros_like(told[0][:1]), told[1][:1]) if plain else self.encoder(nobody)
        found, empty = self.project(*told), self.project(*nothing)
        self.kept = seen, (found.flatten(0, 1)[None], empty.repeat(1, len(seen), 1))
        return self.kept[1]

    def prepared(self, pictures: Sequence[Any]) -> Tensor:
        """As the encoder sees them, (R, 3, size, size). Raises UserError for a picture that cannot be read."""
        where = next(self.encoder.parameters()).device
        return torch.stack([self.encoder.prepared(one) for one in pictures]).to(where)

    @contextmanager
    def at(self, tokens: Tensor, weights: Tensor, level: Tensor | None = None) -> Iterator[None]:
        """Attention looks at tokens (B, R·n, d) with weights (B, R) inside; level: of noise (B,), where tokens depend on it."""
        most = weights.abs().amax(dim=1)
        # in all 1: where other keys stand beside, a picture given twice is still that picture
        share = (weights.abs() / weights.abs().sum(dim=1, keepdim=True).clamp(min=1e-6)).log()
        spread = share.clamp(min=-1e4).repeat_interleave(tokens.shape[1] // weights.shape[1], dim=1)
        sign = torch.where((weights < 0).any(1), -most, most)  # an adapter's strength may be below 0, and is one for all
        before = SEEN.set((tokens, spread[:, None, None].to(tokens.dtype), sign[:, None, None]))
        try:
            yield
        finally:
            SEEN.reset(before)


def on_white(picture: Any) -> Image.Image:
    """A picture without transparency. Raises UserError where it cannot be read."""
    from unfog.modalities.image.controls import opened

    image = opened(picture)
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def prepared(picture: Any, size: int) -> Tensor:
    """A picture as CLIP sees it, (3, size, size): its middle square, clear as white, normalised."""
    image = on_white(picture)
    short = min(image.size)
    width, height = (max(size * side // short, size) for side in image.size)
    image = image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    x = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def look(path: Path, weights: Weights, strength: float, encoder: ClipVision, unet: nn.Module, device: str,
         dtype: torch.dtype) -> Look:  # fmt: skip
    """An IP-Adapter's file, set into the attention of a U-Net. Raises UserError where it fits neither network nor encoder."""
    text = int(unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]
    shapes = {name.removeprefix("image_proj."): entry.shape for name, entry in weights.entries.items()
              if name.startswith("image_proj.")}  # fmt: skip
    try:
        with torch.device("meta"):
            project = Tokens(shapes, text)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
        what = "is of a kind of IP-Adapter that unfog does not read; give a plain, plus or full-face one"
        raise UserError(f"{path}: {what}") from None
    names = {name: file_name(name) for name in project.state_dict()}
    wanted = {f"image_proj.{names[name]}": tuple(value.shape) for name, value in project.state_dict().items()}
    layers: list[Any] = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    for k, layer in enumerate(layers):
        for part in ("to_k_ip", "to_v_ip"):
            wanted[f"ip_adapter.{2 * k + 1}.{part}.weight"] = (layer.to_k.weight.shape[0], text)
    fit(path, wanted, weights, "an IP-Adapter")
    tensors = weights.load()
    project.load_state_dict({name: tensors[f"image_proj.{names[name]}"].float() for name in names}, assign=True)
    given = encoder.visual_projection.weight.shape[0 if project.kind == "plain" else 1]
    if given != project.reads:
        raise UserError(f"{path}: reads {project.reads} numbers of a picture, the image encoder gives {given}; give the encoder "
                        "that it was made for")  # fmt: skip
    for k, layer in enumerate(layers):
        key, value = (tensors[f"ip_adapter.{2 * k + 1}.{part}.weight"].to(device, dtype) for part in ("to_k_ip", "to_v_ip"))
        layer.processor = Beside(layer.processor, key, value)
    return Look(encoder, project.to(device).eval().requires_grad_(False), strength)


def fit(path: Path, wanted: Mapping[str, tuple[int, ...]], weights: Weights, what: str) -> None:
    """`check_shapes` of a file without a config, whose shapes the model decides."""
    try:
        check_shapes(wanted, weights)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ").split("; ")[0].replace("config.json wants", "this model wants")
        reason = reason.replace("no part of the network of config.json", "for no layer of this model")
        raise UserError(f"{path}: {reason}; give {what} made for this model's family") from None


def file_name(name: str) -> str:
    """The file's name of one of the weights of tokens: a round's attention and its other layers are parts of their own there."""
    name = re.sub(r"^layers\.(\d+)\.told\.", r"layers.\1.2.", name)
    name = re.sub(r"^layers\.(\d+)\.mlp\.", r"layers.\1.1.", name)
    return re.sub(r"^layers\.(\d+)\.(norm|to_)", r"layers.\1.0.\2", name)
