"""Networks of diffusers, made from a folder's own config and weights, called as all of ours: network(x_t, level, cond).

Built on the meta device (no memory, no first values), filled by our own checked reading, strictly; what they compute, lean.py
computes in fewer steps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.clip import ClipText
from unfog.interop.lean import known, lean
from unfog.interop.safe import Folder, Weights, check_shapes

Config = Mapping[str, Any]
MISSING = "needs the packages diffusers and transformers; install them with: pip install 'unfog[interop]'"
# Names that old files have for the same weights, or beside them.
RENAMED = {"attentions.0.query.": "attentions.0.to_q.", "attentions.0.key.": "attentions.0.to_k.",
           "attentions.0.value.": "attentions.0.to_v.", "attentions.0.proj_attn.": "attentions.0.to_out.0."}  # fmt: skip
BESIDE = ("embeddings.position_ids", "logit_scale")
# The most that a config may ask for; the largest published network has about a tenth.
MOST = {"layers_per_block": 16, "transformer_layers_per_block": 32, "num_layers": 128, "num_single_layers": 128,
        "num_hidden_layers": 128, "block_out_channels": 32_768, "cross_attention_dim": 32_768, "hidden_size": 32_768,
        "intermediate_size": 131_072, "vocab_size": 1_000_000, "max_position_embeddings": 4_096, "in_channels": 1_024,
        "out_channels": 1_024, "latent_channels": 256, "sample_size": 4_096, "attention_head_dim": 4_096,
        "projection_class_embeddings_input_dim": 65_536, "addition_time_embed_dim": 8_192, "joint_attention_dim": 65_536,
        "num_attention_heads": 1_024, "projection_dim": 32_768, "pooled_projection_dim": 65_536, "pos_embed_max_size": 1_024,
        "caption_projection_dim": 65_536, "num_decoder_layers": 128, "d_model": 32_768, "d_ff": 131_072,
        "d_kv": 1_024}  # fmt: skip
MOST_BLOCKS = 12


def package(module: str, name: str) -> Any:
    """A class of an optional package; UserError naming the extra where it is not installed."""
    import importlib
    import logging

    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError:
        raise UserError(f"model: a folder of Stable Diffusion's {MISSING}") from None
    for library in ("diffusers", "transformers"):  # their warnings are about defaults that we do not use
        logging.getLogger(library).setLevel(logging.ERROR)
    return found


def config_of(folder: Folder, component: str) -> dict[str, Any]:
    """A component's config.json, within what a network can be. Raises UserError naming the field."""
    found, where = folder.json(f"{component}/config.json"), folder.root / component / "config.json"
    for key, most in MOST.items():
        values, deep = [found.get(key)], 0
        while any(isinstance(v, list) for v in values) and deep < 4:
            if any(isinstance(v, list) and len(v) > MOST_BLOCKS * 2 for v in values):
                raise UserError(f"{where}: {key} is a list of more than {MOST_BLOCKS * 2}; no network has that")
            values, deep = [w for v in values for w in (v if isinstance(v, list) else [v])], deep + 1
        for value in values:
            if value is not None and (type(value) is not int or not 0 <= value <= most):
                raise UserError(f"{where}: {key} must be whole numbers up to {most:,}, got {shown(value)}")
    for key, value in found.items():
        if isinstance(value, list) and key.endswith("_types") and len(value) > MOST_BLOCKS:
            raise UserError(f"{where}: {key} is a list of {len(value)}; no network has that")
    return found


def built(where: Path, make: Any, config: Config, extra: tuple[str, ...] = ()) -> nn.Module:
    """make(**config) on the meta device. Raises UserError for a field that it does not know, or what does not fit together."""
    known = inspect.signature(make.__init__).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in extra}
    for key, value in given.items():
        if key not in known and value not in (None, False):
            raise UserError(f"{where}: {shown(key)} is not known to this diffusers; update it, or remove the field")
    try:
        with torch.device("meta"):
            network: nn.Module = make(**{key: value for key, value in given.items() if key in known})
    except Exception as error:  # of whatever kind the library raises for numbers that do not fit
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{where}: makes no network ({type(error).__name__}: {reason}); get the folder again") from None
    return network


def named(weights: Weights, rename: Mapping[str, str], strip: str = "") -> tuple[Weights, dict[str, str]]:
    """The same weights under the network's names, and each new name's old one."""
    old: dict[str, str] = {}
    for name in weights.entries:
        new = name.removeprefix(strip)
        for before, after in rename.items():
            new = new.replace(before, after)
        if new in old:
            raise UserError(f"{weights.where}: {shown(name)} and {shown(old[new])} are the same weight; get the folder again")
        old[new] = name
    return Weights(weights.where, {new: weights.entries[name] for new, name in old.items()}), old


def filled(network: nn.Module, weights: Weights, dtype: torch.dtype, rename: Mapping[str, str] | None = None,
           strip: str = "") -> nn.Module:  # fmt: skip
    """The network with the weights of its files, in `dtype`, every one of them checked for name, shape and finite values."""
    renamed, old = named(weights, rename or {}, strip)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # attention of old autoencoders is stored as 1×1 convolutions
    flat = {name for name, shape in wanted.items() if name in renamed.entries and renamed.entries[name].shape == (*shape, 1, 1)}
    check_shapes({n: (*s, 1, 1) if n in flat else s for n, s in wanted.items()}, renamed, BESIDE)
    found = weights.load()
    state = {}
    for name in wanted:
        tensor = found[old[name]]
        tensor = tensor[..., 0, 0] if name in flat else tensor
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    network.load_state_dict(state, strict=True, assign=True)
    left = [name for name, t in [*network.named_parameters(), *network.named_buffers()] if t.is_meta]
    if left:
        raise UserError(f"{weights.where}: leaves {shown(left[0])} without a value; this version of diffusers is not supported")
    return network.eval().requires_grad_(False)


def clip_text(folder: Folder, component: str, projected: bool, dtype: torch.dtype) -> ClipText:
    """The text network of a folder."""
    where = folder.root / component / "config.json"
    try:
        config = config_of(folder, component)
        with torch.device("meta"):
            network = ClipText(config, projected)
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"{where}: makes no network ({str(error)[:80]}); get the folder again") from None
    except UserError as error:
        raise UserError(str(error) if str(where) in str(error) else f"{where}: {error}") from None
    weights = folder.weights(component, "model")
    strip = "text_model." if any(name.startswith("text_model.") for name in weights.entries) else ""
    filled(network, weights, dtype, strip=strip)
    return network


def added(cond: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """What SDXL's networks are told beside the text, in diffusers' words; None for other networks."""
    return {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]} if "pooled" in cond else None


class UNet(nn.Module):
    """diffusers' conditional U-Net as a network of ours. cond: "text" (B, n, d); of SDXL "pooled", "time_ids" too."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = lean(unet)
        self.text: Tensor | None = None

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        self.text = text = known(self.text, cond["text"])
        x = x.contiguous(memory_format=torch.channels_last)
        extra: Any = cond.get("extra", {})  # what guides.py adds
        out: Tensor = self.unet(x, level, text, added_cond_kwargs=added(cond), return_dict=False, **extra)[0]
        return out.contiguous()


def unet(folder: Folder, component: str, dtype: torch.dtype) -> UNet:
    """The denoising network of a folder of Stable Diffusion 1, 2 or XL."""
    make = package("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel")
    network = built(folder.root / component / "config.json", make, config_of(folder, component))
    filled(network, folder.weights(component, "diffusion_pytorch_model"), dtype)
    return UNet(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


class Autoencoder:
    """Pictures <-> latents by diffusers' AutoencoderKL: x0 = (z − shift)·scale, z the mean of what its encoder says."""

    def __init__(self, vae: Any, device: str) -> None:
        self.vae, self.device = lean(vae).to(device), device
        config = vae.config
        for name in ("scaling_factor", "shift_factor"):
            if type(getattr(config, name)) not in (int, float, type(None)):
                raise UserError(f"vae/config.json: {name} must be a number, got {shown(getattr(config, name))}")
        self.scale = float(config.scaling_factor or 0.0)
        self.offset = float(config.shift_factor or 0.0)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = int(config.latent_channels)
        if not (math.isfinite(self.scale) and self.scale > 0.0):
            raise UserError(f"vae/config.json: scaling_factor must be above 0, got {self.scale}")

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Of x0, for a picture of so many pixels."""
        return (self.channels, height // self.factor, width // self.factor)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def encode(self, pictures: Any, gone: Tensor | None = None) -> Tensor:
        """Straight RGBA (B, H, W, 4) uint8 -> x0; transparency becomes white, and what is `gone` (B, 1, H, W) bool, grey."""
        planes = torch.as_tensor(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        seen = planes[:, :3] * planes[:, 3:] + (1.0 - planes[:, 3:])
        seen = seen if gone is None else torch.where(gone.to(self.device), 0.5, seen)
        with torch.no_grad():
            mean = self.vae.encode((2.0 * seen - 1.0).to(self.dtype)).latent_dist.mean
        return (mean.float() - self.offset) * self.scale

    def pixels(self, x0: Tensor) -> Tensor:
        """x0 -> RGB (B, 3, H, W) about [−1, 1], as the decoder says it."""
        z = (x0.to(self.device, torch.float32) / self.scale + self.offset).to(self.dtype)
        with torch.no_grad():
            out: Tensor = self.vae.decode(z.contiguous(memory_format=torch.channels_last), return_dict=False)[0]
        return out.float()

    def decode(self, x0: Tensor) -> Any:
        """x0 -> straight RGBA (B, H, W, 4) uint8 on the host, opaque."""
        import numpy as np

        planes = (self.pixels(x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        colour = (planes * 255).round().astype(np.uint8)
        return np.concatenate([colour, np.full_like(colour[..., :1], 255)], axis=-1)


def autoencoder(folder: Folder, component: str, device: str, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder of a folder, or one given beside it."""
    where = folder.root / component / "config.json"
    make = package("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL")
    network = built(where, make, config_of(folder, component))
    filled(network, folder.weights(component, "diffusion_pytorch_model"), dtype, RENAMED)
    return Autoencoder(network.to(memory_format=torch.channels_last), device)  # type: ignore[call-overload]
