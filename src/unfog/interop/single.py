"""One checkpoint in one safetensors file, under the names of the first latent diffusion code (SD 1, 2, XL), as parts of ours.

    model.diffusion_model.*                     the U-Net: input_blocks, middle_block, output_blocks
    first_stage_model.*                         the autoencoder: down, mid, up
    cond_stage_model.*, conditioner.embedders.* the text encoders: CLIP as transformers names it, or OpenCLIP's resblocks

Such a file has no config: widths, depths and attention are read off the tensors' shapes; heads are 8 for SD 1 and 64 numbers wide
for 2 and XL, as all of them are. It has no tokenizer either; that of any Stable Diffusion folder is given beside it.
Source of the names: github.com/CompVis/latent-diffusion and github.com/Stability-AI/generative-models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unfog.errors import UserError
from unfog.interop.clip import ClipText
from unfog.interop.networks import Autoencoder, UNet, built, filled, package
from unfog.interop.safe import Entry, Weights, header

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIPS = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN = ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
          "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
FIXED = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "out.0": "conv_norm_out",
         "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2", "out.2": "conv_out",
         "input_blocks.0.0": "conv_in"}  # fmt: skip


@dataclass(frozen=True)
class Held(Weights):
    """Weights that are read and renamed."""

    tensors: Mapping[str, Tensor]

    def load(self) -> dict[str, Tensor]:
        return dict(self.tensors)


def held(path: Path, tensors: Mapping[str, Tensor]) -> Held:
    return Held(path, {name: Entry("", tuple(tensor.shape), path) for name, tensor in tensors.items()}, tensors)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def unet_name(name: str, layers: int) -> str:
    """diffusers' name of a U-Net's weight; layers: residual blocks of a level."""
    for old, new in FIXED.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    place = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)", name)
    if place:
        side, number, part, rest = place[1], int(place[2]), int(place[3]), place[4]
        number -= side == "input_blocks"
        level, layer = divmod(number, layers + 1)
        level_name = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{level}"
        if rest.startswith("op."):
            return f"{level_name}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if rest.startswith("conv."):
            return f"{level_name}.upsamplers.0.{rest}"
        return _block(f"{level_name}.resnets.{layer}" if part == 0 else f"{level_name}.attentions.{layer}", part == 0, rest)
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", name)
    if middle:
        number = int(middle[1])
        return _block("mid_block.attentions.0" if number == 1 else f"mid_block.resnets.{number // 2}", number != 1, middle[2])
    return name


def _block(place: str, resnet: bool, rest: str) -> str:
    for old, new in RESNET.items() if resnet else ():
        if rest.startswith(old + "."):
            return f"{place}.{new}{rest.removeprefix(old)}"
    return f"{place}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """diffusers' name of an autoencoder's weight."""
    name = re.sub(r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"decoder\.up\.(\d+)\.block\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.resnets.", name)
    name = re.sub(r"decoder\.up\.(\d+)\.upsample\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", name)
    name = re.sub(r"mid\.block_([12])\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", name)
    for old, new in (("mid.attn_1.norm.", "group_norm."), ("mid.attn_1.q.", "to_q."), ("mid.attn_1.k.", "to_k."),
                     ("mid.attn_1.v.", "to_v."), ("mid.attn_1.proj_out.", "to_out.0.")):  # fmt: skip
        name = name.replace(old, "mid_block.attentions.0." + new)
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out.", "conv_norm_out.")


def open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text network under CLIP's names; its queries, keys and values lie in one tensor."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if inner:
            place, rest = f"encoder.layers.{inner[1]}.", inner[2]
            joint = re.fullmatch(r"attn\.in_proj_(weight|bias)", rest)
            if joint:
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{place}self_attn.{part}_proj.{joint[1]}"] = piece.clone()
                continue
            for old, new in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                rest = new + rest.removeprefix(old) if rest.startswith(old + ".") else rest
            found[place + rest] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif name != "logit_scale":
            found[{"positional_embedding": "embeddings.position_embedding.weight",
                   "token_embedding.weight": "embeddings.token_embedding.weight", "ln_final.weight": "final_layer_norm.weight",
                   "ln_final.bias": "final_layer_norm.bias"}.get(name, name)] = tensor  # fmt: skip
    return found


def _count(names: Any, pattern: str) -> int:
    """How many numbers follow one another from 0 where `pattern` has its group."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=-1)


def unet_config(tensors: Mapping[str, Tensor], layers: int, where: Path) -> dict[str, Any]:
    """The config that tensors under diffusers' names have."""
    levels = _count(tensors, r"down_blocks\.(\d+)\.")
    widths = [tensors[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)]

    def depth(place: str) -> int:
        return _count(tensors, re.escape(place) + r"\.attentions\.0\.transformer_blocks\.(\d+)\.")

    downs = [depth(f"down_blocks.{i}") for i in range(levels)]
    ups = [depth(f"up_blocks.{i}") for i in range(levels)]
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    text = tensors[middle].shape[1]
    flat = tensors["mid_block.attentions.0.proj_in.weight"].ndim == 2
    large = "add_embedding.linear_1.weight" in tensors
    added: dict[str, Any] = {}
    if large:
        told = tensors["add_embedding.linear_1.weight"].shape[1]
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": told,
        }
    return {
        "sample_size": 128 if large else 64, "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0], "block_out_channels": widths, "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in downs],
        "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in ups], "cross_attention_dim": text,
        "transformer_layers_per_block": [max(n, 1) for n in downs[:-1]] + [depth("mid_block")],
        "use_linear_projection": flat, "attention_head_dim": [max(w // 64, 1) for w in widths] if flat else 8, **added,
    }  # fmt: skip


def vae_config(tensors: Mapping[str, Tensor], large: bool) -> dict[str, Any]:
    levels = _count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    widths = [tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)]
    return {"block_out_channels": widths, "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "layers_per_block": _count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
            "scaling_factor": 0.13025 if large else 0.18215}  # fmt: skip


def clip_config(tensors: Mapping[str, Tensor], act: str) -> dict[str, Any]:
    width = tensors["embeddings.token_embedding.weight"].shape[1]
    projection = tensors.get("text_projection.weight")
    return {"hidden_size": width, "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": _count(tensors, r"encoder\.layers\.(\d+)\."), "num_attention_heads": max(width // 64, 1),
            "vocab_size": len(tensors["embeddings.token_embedding.weight"]), "hidden_act": act, "eos_token_id": 2,
            "max_position_embeddings": len(tensors["embeddings.position_embedding.weight"]),
            "projection_dim": width if projection is None else len(projection)}  # fmt: skip


def read(path: Path, device: str, dtype: torch.dtype) -> tuple[UNet, Autoencoder, list[tuple[ClipText, str]], str]:
    """U-Net, autoencoder, text networks with their padding, and the family. Raises UserError where a part is missing or odd."""
    entries = header(path)
    for what, prefixes in (("U-Net", (UNET,)), ("autoencoder", (VAE,)), ("text encoder", CLIPS + OPEN)):
        if not any(name.startswith(prefix) for name in entries for prefix in prefixes):
            raise UserError(f"{path}: holds no {what} of Stable Diffusion 1, 2 or XL; give a whole checkpoint, or a folder")
    package("diffusers.models", "UNet2DConditionModel")
    tensors = Weights(path, entries).load()
    try:
        return _parts(path, tensors, device, dtype)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:90]
        raise UserError(
            f"{path}: is laid out as no known checkpoint ({reason}); give a folder in the layout of diffusers"
        ) from None


def _parts(path: Path, tensors: dict[str, Tensor], device: str,
           dtype: torch.dtype) -> tuple[UNet, Autoencoder, list[tuple[ClipText, str]], str]:  # fmt: skip
    old = under(tensors, UNET)
    stops = sorted(int(m[1]) for name in old if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    layers = (stops[0] if stops else _count(old, r"input_blocks\.(\d+)\.")) - 1
    main = {unet_name(name, layers): tensor for name, tensor in old.items()}
    unet_class = package("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel")
    network = filled(built(path, unet_class, unet_config(main, layers, path)), held(path, main), dtype)
    large = "add_embedding.linear_1.weight" in main
    first = under(tensors, VAE)
    levels = _count(first, r"encoder\.down\.(\d+)\.")
    outer = {vae_name(name, levels): tensor for name, tensor in first.items()}
    outer = {name: t[..., 0, 0] if ".attentions." in name and t.ndim == 4 else t for name, t in outer.items()}
    vae_class = package("diffusers.models.autoencoders.autoencoder_kl", "AutoencoderKL")
    vae = filled(built(path, vae_class, vae_config(outer, large)), held(path, outer), torch.float32)
    texts = []
    for prefix in (*CLIPS, *OPEN):
        own = under(tensors, prefix)
        if not own:
            continue
        is_open = prefix in OPEN
        named = open_clip(own) if is_open else {name.removeprefix("text_model."): tensor for name, tensor in own.items()}
        if is_open and not large:  # SD 2 reads the states before the last layer, which its folders leave out
            last = _count(named, r"encoder\.layers\.(\d+)\.") - 1
            named = {name: t for name, t in named.items() if not name.startswith(f"encoder.layers.{last}.")
                     and not name.startswith("text_projection")}  # fmt: skip
        with torch.device("meta"):
            text = ClipText(clip_config(named, "gelu" if is_open else "quick_gelu"), "text_projection.weight" in named)
        filled(text, held(path, named), torch.float32)
        texts.append((text.to(device), "!" if is_open else "<|endoftext|>"))
    network, vae = (part.to(memory_format=torch.channels_last) for part in (network, vae))  # type: ignore[call-overload]
    return UNet(network).to(device), Autoencoder(vae, device), texts, "sdxl" if large else "sd"
