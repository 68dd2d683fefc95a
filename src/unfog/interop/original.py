"""The transformers of Stable Diffusion 3 and Flux in one file, under the names of their first code, as diffusers names them.

    qkv           three weights in one, and in Flux's single blocks the first of the two dense layers as a fourth
    modulation    of the last layers (shift, scale), which diffusers has the other way round

Such a file is given beside a folder of the same family, whose network it replaces; what else it holds is not read. Weights of 8
bits may have a scale each.
Source of the names: github.com/black-forest-labs/flux and github.com/Stability-AI/sd3.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unfog.errors import UserError, shown
from unfog.interop.safe import Weights
from unfog.interop.single import Held, held

PREFIX = "model.diffusion_model."
SIGNS = {"flux": "double_blocks.0.img_attn.qkv.weight", "sd3": "joint_blocks.0.x_block.attn.qkv.weight"}
PLAIN = "transformer_blocks.0.attn.to_q.weight"  # under diffusers' own names
SCALES = (".scale_weight", ".weight_scale")  # ends of the names of what 8-bit weights are multiplied by
UNREAD = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # for computing in 8 bits, which is not done here
FAMILY = {"flux": "Flux", "sd3": "Stable Diffusion 3", "": "Stable Diffusion 3 or Flux"}
TIME, TEXT, TOLD = (f"time_text_embed.{part}_embedder.linear_" for part in ("timestep", "text", "guidance"))
OUTER = {
    "time_in.in_layer": TIME + "1", "time_in.out_layer": TIME + "2", "vector_in.in_layer": TEXT + "1",
    "vector_in.out_layer": TEXT + "2", "guidance_in.in_layer": TOLD + "1", "guidance_in.out_layer": TOLD + "2",
    "txt_in": "context_embedder", "img_in": "x_embedder", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear", "t_embedder.mlp.0": TIME + "1", "t_embedder.mlp.2": TIME + "2",
    "y_embedder.mlp.0": TEXT + "1", "y_embedder.mlp.2": TEXT + "2", "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
}  # fmt: skip
# Of a block: where its parts go. {} stands for q, k and v in turn.
DOUBLE = {
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "img_attn.qkv": "attn.to_{}",
    "txt_attn.qkv": "attn.add_{}_proj", "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
}  # fmt: skip
SINGLE = {"modulation.lin": "norm.linear", "linear1": "attn.to_{}", "linear2": "proj_out", "norm.query_norm": "attn.norm_q",
          "norm.key_norm": "attn.norm_k"}  # fmt: skip
JOINT = {
    "x_block.attn.qkv": "attn.to_{}", "context_block.attn.qkv": "attn.add_{}_proj", "x_block.attn2.qkv": "attn2.to_{}",
    "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k", "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k", "x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn.proj": "attn.to_out.0", "context_block.attn.proj": "attn.to_add_out", "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear",
    "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2", "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}  # fmt: skip
BLOCKS = {"double_blocks": ("transformer_blocks", DOUBLE), "single_blocks": ("single_transformer_blocks", SINGLE),
          "joint_blocks": ("transformer_blocks", JOINT)}  # fmt: skip


def family(names: Iterable[str]) -> str | None:
    """Whose transformer a file holds: a key of SIGNS, "" under diffusers' names, None where it holds none."""
    plain = {name.removeprefix(PREFIX) for name in names}
    return next((kind for kind, sign in SIGNS.items() if sign in plain), "" if PLAIN in plain else None)


def transformer(weights: Weights, kind: str) -> Held:
    """The weights of a file's transformer under diffusers' names. Raises UserError where it is of another family, or damaged."""
    found = family(weights.entries)
    if found not in (kind, ""):
        raise UserError(f"{weights.where}: holds a network of {FAMILY[found or '']}; give one of {FAMILY[kind]}")
    whole = any(name.startswith(PREFIX) for name in weights.entries)
    entries = {name: entry for name, entry in weights.entries.items() if name.startswith(PREFIX) or not whole}
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in Weights(weights.where, entries).load().items()}
    tensors = unscaled(weights, tensors)
    last = max((int(m[1]) for name in tensors if (m := re.match(r"joint_blocks\.(\d+)\.", name))), default=-1)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        try:
            made = {name: tensor} if found == "" else renamed(name, tensor, last)
        except (ValueError, RuntimeError, IndexError):
            raise UserError(f"{weights.where}: {shown(name, 90)} has shape {list(tensor.shape)}, which cannot be divided as it "
                            "must be; get the file again") from None  # fmt: skip
        twice = next((new for new in made if new in named), None)
        if twice is not None:
            raise UserError(f"{weights.where}: {shown(name, 90)} and another are {shown(twice, 90)}; get the file again")
        named |= made
    return held(weights.where, named)


def unscaled(weights: Weights, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 8 bits times the number that is stored beside each, in bf16. Raises UserError for scales of other kinds."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((*SCALES, *UNREAD))}
    for name, scale in tensors.items():
        if not name.endswith(SCALES):
            continue
        scaled = f"{name.rpartition('.')[0]}.weight"
        if scaled not in found or scale.numel() != 1 or found[scaled].element_size() != 1:
            raise UserError(f"{weights.where}: {shown(name, 90)} is no scale of one 8-bit weight, and no other is read; give a "
                            "file in fp8 or bf16")  # fmt: skip
        found[scaled] = (found[scaled].float() * scale.float()).bfloat16()
    return found


def stacks(transformer: nn.Module) -> dict[str, tuple[list[str], bool]]:
    """For each layer of the first code, by its name there: diffusers' layers whose rows are its own, from top to bottom, and
    whether it has shift and scale the other way round."""
    layers = {name for name, _ in transformer.named_modules()}
    found = {name: ([to], name.startswith("final_layer.adaLN")) for name, to in OUTER.items()}
    flux = "single_transformer_blocks" in layers
    for kind, (blocks, parts) in BLOCKS.items():
        numbers = [int(m[1]) for name in layers if (m := re.fullmatch(rf"{blocks}\.(\d+)", name))]
        for number in numbers if flux == (kind != "joint_blocks") else []:
            for part, to in parts.items():
                names = [f"{blocks}.{number}.{to.format(key)}" for key in ("qkv" if "{}" in to else "q")]
                names += [f"{blocks}.{number}.proj_mlp"] if part == "linear1" else []
                last = part == "context_block.adaLN_modulation.1" and number == max(numbers)
                found[f"{kind}.{number}.{part}"] = names, last
    return {name: (names, last) for name, (names, last) in found.items() if layers.issuperset(names)}


def renamed(name: str, tensor: Tensor, last: int) -> dict[str, Tensor]:
    """One weight of the first code, as the weights that diffusers makes of it; last: the number of SD 3's last block."""
    place, _, end = name.rpartition(".")
    end = "weight" if end == "scale" else end
    if name == "pos_embed":
        return {"pos_embed.pos_embed": tensor}
    if place in OUTER:
        return {f"{OUTER[place]}.{end}": turned(tensor) if place.startswith("final_layer.adaLN") else tensor}
    block = re.fullmatch(r"(double_blocks|single_blocks|joint_blocks)\.(\d+)\.(.+)", place)
    if not block or block[3] not in BLOCKS[block[1]][1]:
        return {name: tensor}  # refused as no part of the network
    to = f"{BLOCKS[block[1]][0]}.{block[2]}.{BLOCKS[block[1]][1][block[3]]}.{end}"
    if block[3] == "linear1":
        width = tensor.shape[0] // 7  # the dense layer is four times as wide as each of the three
        *three, dense = tensor.split([width, width, width, tensor.shape[0] - 3 * width])
        rest = {to.replace("attn.to_{}", "proj_mlp"): dense.contiguous()}
        return rest | {to.format(key): part.contiguous() for key, part in zip("qkv", three, strict=True)}
    if "{}" in to:
        return {to.format(key): part.contiguous() for key, part in zip("qkv", tensor.chunk(3), strict=True)}
    # the last block only reads the text: two modulations instead of six
    return {to: turned(tensor) if block[3] == "context_block.adaLN_modulation.1" and int(block[2]) == last else tensor}


def turned(tensor: Tensor) -> Tensor:
    """(shift, scale) as (scale, shift)."""
    shift, scale = tensor.chunk(2)
    return torch.cat([scale, shift])
