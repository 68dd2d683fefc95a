"""IP-Adapters of Flux and Stable Diffusion 3: a picture that their layers look at beside text and picture.

    Flux    a double layer's picture tokens += w · softmax(q k′ᵀ/√d + ln ρ) v′          q without places, at the layer's end
    SD 3    attention's picture tokens += w · W · softmax(q″ [k″, k′]ᵀ/√d + [0, ln ρ]) [v, v′]      norms of the adapter's own

    Flux    tokens are those of `looking.py`'s plain kind; guidance's other branch is told of a black picture
    SD 3    SigLIP's states before the last layer -> a resampler that knows the noise level, asked at every step; the other
            branch is told zeros

Sources: XLabs 2024 (x-flux) and InstantX 2024 (SD3.5-Large-IP-Adapter), whose files' names these are; Zhai et al. 2023,
arXiv:2303.15343 (SigLIP).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.clip import Layer
from unfog.interop.joint import UNIT
from unfog.interop.looking import (
    SEEN,
    ClipVision,
    Look,
    Perceiver,
    Resampler,
    Tokens,
    file_name,
    fit,
    image_encoder,
    on_white,
    seen_by,
    through,
    vision_sizes,
)
from unfog.interop.networks import filled
from unfog.interop.safe import Folder, Weights

TIMES = 320  # sines and cosines of a noise level, as all of them have it
EPS = 1e-6
ENCODERS = {"flux": "CLIPVisionModelWithProjection", "sd3": "SiglipVisionModel"}
_TIME: ContextVar[Tensor | None] = ContextVar("time", default=None)  # of the resampler, (B, d)


class SiglipVision(nn.Module):
    """SigLIP's image network. forward: pictures (B, 3, S, S), normalised -> the states before the last layer (B, n, e)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, size, patch, heads, layers = vision_sizes(config, 16)
        act, eps = config.get("hidden_act", "gelu_pytorch_tanh"), config.get("layer_norm_eps", EPS)
        if act != "gelu_pytorch_tanh" or width % heads or not isinstance(eps, float) or not 0.0 < eps < 1.0:
            raise UserError(f"hidden_act {shown(act)} with {heads} heads of {width} is not known; give SigLIP's image encoder")
        self.size, self.width = size, width
        self.embeddings = nn.ModuleDict({
            "patch_embedding": nn.Conv2d(3, width, patch, patch), "position_embedding": nn.Embedding((size // patch) ** 2, width),
        })  # fmt: skip
        inner = config.get("intermediate_size", 3072)
        found = [Layer(width, heads, inner, act, eps, causal=False) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(found)})
        self.post_layernorm = nn.LayerNorm(width, eps=eps)  # of the last states, which nobody here reads

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.embeddings["patch_embedding"](pictures).flatten(2).transpose(1, 2)
        return through(self.encoder, x + self.embeddings["position_embedding"].weight)[0]

    def prepared(self, picture: Any) -> Tensor:
        """A picture as SigLIP sees it, (3, size, size): all of it, squeezed to a square, clear as white, in [−1, 1]."""
        image = on_white(picture).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0


def siglip(folder: Folder, component: str, device: str) -> SiglipVision:
    """The image network of a folder (SiglipVisionModel, or SiglipModel, whose text is left out), in float32. UserError."""

    def make(config: Mapping[str, Any]) -> SiglipVision:
        own = config.get("vision_config", config)
        if not isinstance(own, Mapping):
            raise UserError(f"vision_config must be an object, got {shown(own)}; get the folder again")
        return SiglipVision(own)

    network = seen_by(folder, component, make)
    weights = folder.weights(component, "model")
    strip = "vision_model." if any(name.startswith("vision_model.") for name in weights.entries) else ""
    read = {name: entry for name, entry in weights.entries.items()
            if name.startswith(strip) and not name.startswith(f"{strip}head.")}  # fmt: skip
    filled(network, Weights(weights.where, read), torch.float32, strip=strip)
    return network.to(device)


class TimedPerceiver(Perceiver):
    """A round of the resampler whose norms are moved by the noise level."""

    def __init__(self, width: int, inner: int, wide: int) -> None:
        super().__init__(width, inner, wide)
        self.told = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x: Tensor, queries: Tensor, time: Tensor | None = None) -> Tensor:
        assert time is not None
        shift, scale, late_shift, late_scale = self.told(time)[:, None].chunk(4, dim=-1)
        queries = queries + self.looked(self.norm1(x), self.norm2(queries) * (1 + scale) + shift)
        made: Tensor = self.mlp[1:](self.mlp[0](queries) * (1 + late_scale) + late_shift)
        return queries + made


class TimedTokens(Resampler):
    """States of a picture (B, n, e), noise levels (B,) in thousandths -> tokens (B, m, d), and what they know of the level."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        width = shapes["latents"][2]
        self.queries(shapes, shapes["proj_out.weight"][0], TimedPerceiver)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(TIMES, width), "linear_2": nn.Linear(width, width)})

    def forward(self, states: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(TIMES // 2, device=level.device) / (TIMES // 2)
        angle = level[:, None].float() * torch.exp(-np.log(10_000) * place)
        time = self.time_embedding["linear_1"](torch.cat([angle.cos(), angle.sin()], dim=-1).to(states.dtype))
        time = self.time_embedding["linear_2"](F.silu(time))
        return self.resampled(states, time), time


class TimedLook(Look):
    """An IP-Adapter of Stable Diffusion 3: what attention looks at depends on the noise level."""

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """States (1, R·n, e) of references, and zeros. Raises UserError for a picture that cannot be read."""
        states = self.encoder(self.prepared(pictures)).flatten(0, 1)[None]
        return states, torch.zeros_like(states)

    @contextmanager
    def at(self, tokens: Tensor, weights: Tensor, level: Tensor | None = None) -> Iterator[None]:
        assert level is not None
        count = weights.shape[1]
        states = tokens.unflatten(1, (count, -1)).flatten(0, 1)
        made, time = self.project(states, UNIT * level.repeat_interleave(count))
        before = _TIME.set(time[::count])
        try:
            with super().at(made.unflatten(0, (-1, count)).flatten(1, 2), weights):
                yield
        finally:
            _TIME.reset(before)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, n, heads·d) -> (B, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class BesideFlux:
    """Attention of a double layer of Flux's, and to a picture beside it. inner: of the layer alone; given: weights by name."""

    def __init__(self, inner: Any, given: Mapping[str, Tensor]) -> None:
        self.inner, self.given = inner, given

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, image_rotary_emb: Any = None) -> Any:  # fmt: skip
        out = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        seen = SEEN.get()
        if seen is None:
            return out
        (tokens, share, weight), w = seen, self.given
        q = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))).transpose(1, 2)
        k, v = (heads_of(F.linear(tokens, w[f"{part}.weight"], w[f"{part}.bias"]), attn.heads) for part in ("to_k_ip", "to_v_ip"))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=share).transpose(1, 2).flatten(2)
        return (*out, weight * y)  # the layer adds it at its end


class BesideSD3:
    """Attention of a layer of Stable Diffusion 3's, and to a picture beside it; as BesideFlux."""

    def __init__(self, inner: Any, given: Mapping[str, Tensor]) -> None:
        self.inner, self.given = inner, given

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None) -> Any:  # fmt: skip
        out = self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        seen, time = SEEN.get(), _TIME.get()
        if seen is None or time is None:
            return out
        (tokens, share, weight), w = seen, self.given

        def normed(x: Tensor, name: str) -> Tensor:
            return F.rms_norm(heads_of(x, attn.heads), w[name].shape, w[name], EPS)

        shift, scale = F.linear(F.silu(time), w["norm_ip.linear.weight"], w["norm_ip.linear.bias"])[:, None].chunk(2, dim=-1)
        told = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS) * (1 + scale) + shift
        q, own = normed(attn.to_q(hidden_states), "norm_q.weight"), normed(attn.to_k(hidden_states), "norm_k.weight")
        k = torch.cat([own, normed(F.linear(told, w["to_k_ip.weight"]), "norm_ip_k.weight")], dim=2)
        v = torch.cat([attn.to_v(hidden_states), F.linear(told, w["to_v_ip.weight"])], dim=1)
        mask = F.pad(share, (own.shape[2], 0))
        y = F.scaled_dot_product_attention(q, k, heads_of(v, attn.heads), attn_mask=mask).transpose(1, 2).flatten(2)
        more = weight * F.linear(y, attn.to_out[0].weight)  # the bias is in `out` already
        return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more


def look(path: Path, weights: Weights, strength: float, encoder: ClipVision | SiglipVision, transformer: nn.Module, device: str,
         dtype: torch.dtype) -> Look:  # fmt: skip
    """An IP-Adapter's file, set into a transformer's attention. encoder: CLIP's for Flux, SigLIP's for Stable Diffusion 3.

    Raises UserError where it fits neither network nor encoder.
    """
    theirs: Any = transformer
    flux = isinstance(encoder, ClipVision)
    named = {name: _plainly(name) if flux else name for name in weights.entries}
    plain = Weights(weights.where, {new: weights.entries[old] for old, new in named.items()})
    shapes = {name.removeprefix("image_proj."): e.shape for name, e in plain.entries.items() if name.startswith("image_proj.")}
    inner = theirs.config.num_attention_heads * theirs.config.attention_head_dim
    layers = [module for name, module in theirs.named_modules() if re.fullmatch(r"transformer_blocks\.\d+\.attn2?", name)]
    try:
        with torch.device("meta"):
            project: Any = Tokens(shapes, theirs.config.joint_attention_dim) if flux else TimedTokens(shapes)
        if flux and project.kind != "plain":
            raise KeyError("proj")
        reads = project.reads if flux else project.proj_in.in_features
        deep = 0 if flux else project.proj_in.out_features
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError):
        raise UserError(
            f"{path}: is of a kind of IP-Adapter that unfog does not read for this family; give one made for it"
        ) from None
    names = {name: f"image_proj.{file_name(name)}" for name in project.state_dict()}
    wanted = {names[name]: tuple(value.shape) for name, value in project.state_dict().items()}
    parts = _flux(theirs.config.joint_attention_dim, inner) if flux else _sd3(inner, theirs.config.attention_head_dim, deep)
    wanted |= {f"ip_adapter.{k}.{part}": shape for k in range(len(layers)) for part, shape in parts.items()}
    fit(path, wanted, plain, "an IP-Adapter")
    gives = encoder.visual_projection.out_features if isinstance(encoder, ClipVision) else encoder.width
    if gives != reads:
        raise UserError(f"{path}: reads {reads} numbers of a picture, the image encoder gives {gives}; give the encoder "
                        "that it was made for")  # fmt: skip
    tensors = {named[name]: tensor for name, tensor in weights.load().items()}
    kind = torch.float32 if flux else dtype  # asked once, or at every step
    project.load_state_dict({name: tensors[names[name]].to(kind) for name in names}, assign=True)
    for k, layer in enumerate(layers):
        given = {part: tensors[f"ip_adapter.{k}.{part}"].to(device, dtype) for part in parts}
        made: Any = BesideFlux if flux else BesideSD3
        layer.processor = made(layer.processor, given)
    project = project.to(device).eval().requires_grad_(False)
    return Look(encoder, project, strength, black=True) if flux else TimedLook(encoder, project, strength)


def encoder_of(folder: Folder, component: str, family: str, device: str) -> ClipVision | SiglipVision:
    """The image encoder that a family's adapters read."""
    return image_encoder(folder, component, device) if family == "flux" else siglip(folder, component, device)


def _plainly(name: str) -> str:
    """A name of XLabs' file as others have it."""
    name = re.sub(r"^ip_adapter_proj_model\.", "image_proj.", name)
    return re.sub(r"^double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.", r"ip_adapter.\1.to_\2_ip.", name)


def _flux(text: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("to_k_ip", "to_v_ip"):
        shapes |= {f"{part}.weight": (inner, text), f"{part}.bias": (inner,)}
    return shapes


def _sd3(inner: int, head: int, deep: int) -> dict[str, tuple[int, ...]]:
    return {"norm_ip.linear.weight": (2 * inner, deep), "norm_ip.linear.bias": (2 * inner,), "to_k_ip.weight": (inner, inner),
            "to_v_ip.weight": (inner, inner), "norm_q.weight": (head,), "norm_k.weight": (head,),
            "norm_ip_k.weight": (head,)}  # fmt: skip
