"""Single checkpoints under the first code's names: the same model as the folder that they were made of."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny

from unfog.errors import UserError
from unfog.interop import load
from unfog.interop.single import unet_name, vae_name

LAYERS, LEVELS = 2, 2
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
         "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip


def old_unet(name, crossed):
    """The first code's name of a weight of diffusers'; crossed: levels of the upward path with attention."""
    for new, old in OUTER.items():
        if name.startswith(new + "."):
            return old + name.removeprefix(new)
    side, level, kind, number, rest = re.fullmatch(r"(down|up|mid)_blocks?\.?(\d*)\.(\w+?)\.(\d+)\.(.+)", name).groups()
    number = int(number)
    if kind == "resnets":
        part, _, last = rest.partition(".")
        rest = f"{RESNET[part]}.{last}"
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    start = int(level) * (LAYERS + 1)
    if kind == "downsamplers":
        return f"input_blocks.{start + LAYERS + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{start + LAYERS}.{2 if int(level) in crossed else 1}.{rest}"
    place = start + number + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{0 if kind == 'resnets' else 1}.{rest}"


def old_vae(name):
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{LEVELS - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{LEVELS - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace("mid_block.attentions.0." + new, "mid.attn_1." + old)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("single")
    folder = tiny.stable_diffusion(place / "sd")
    network = tiny.unet(0, text=64, attention_head_dim=8, norm_num_groups=32)  # as all of the real ones have it
    text, vae = tiny.clip(0, width=64, heads=1), tiny.vae(0, norm_num_groups=32)
    network.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    vae.save_pretrained(folder / "vae")
    tensors = {"model.diffusion_model." + old_unet(name, {0}): t for name, t in network.state_dict().items()}
    for name, t in vae.state_dict().items():
        flat = ".attentions." in name and t.ndim == 2
        tensors["first_stage_model." + old_vae(name)] = t[..., None, None] if flat else t
    own = {name.removeprefix("text_model."): t for name, t in text.state_dict().items()}
    tensors |= {"cond_stage_model.transformer.text_model." + name: t for name, t in own.items()}
    tensors["model_ema.decay"], tensors["betas"] = torch.tensor(0.99), torch.ones(1000)
    save_file({name: t.contiguous() for name, t in tensors.items()}, place / "model.safetensors")
    return folder, place / "model.safetensors", tensors


def test_names_are_those_of_diffusers_own_conversion(made):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    _, _, tensors = made
    old = {name.removeprefix("model.diffusion_model."): t for name, t in tensors.items() if "diffusion_model" in name}
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    theirs = convert_ldm_unet_checkpoint({"model.diffusion_model." + name: t for name, t in old.items()}, config)
    assert {unet_name(name, LAYERS) for name in old} == set(theirs)
    assert all(torch.equal(theirs[unet_name(name, LAYERS)], t) for name, t in old.items())
    first = {name.removeprefix("first_stage_model."): t for name, t in tensors.items() if name.startswith("first_stage")}
    theirs = convert_ldm_vae_checkpoint({"first_stage_model." + n: t for n, t in first.items()},
                                        {"down_block_types": [0] * LEVELS, "up_block_types": [0] * LEVELS})  # fmt: skip
    assert {vae_name(name, LEVELS) for name in first} == set(theirs)


def test_a_file_is_the_model_of_its_folder(made):
    folder, file, _ = made
    one, two = load(folder, "cpu", dtype=torch.float32), load(file, "cpu", [folder / "tokenizer"], dtype=torch.float32)
    theirs = dict(one.denoiser.network.unet.named_parameters())
    assert all(torch.equal(theirs[name], p) for name, p in two.denoiser.network.unet.named_parameters())
    first, second = (m.generate("a red apple", seed=1, steps=2, sampler="ddim", settings={"size": "32x32"}) for m in (one, two))
    assert first[0].tobytes() == second[0].tobytes()


def test_a_file_without_its_tokenizer_or_parts(made, tmp_path):
    _, file, tensors = made
    with pytest.raises(UserError, match="has no tokenizer; give one with --adapter"):
        load(file, "cpu")
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no U-Net"):
        load(tmp_path / "x.safetensors", "cpu", [made[0] / "tokenizer"])
    some = {name: t.contiguous() for name, t in tensors.items() if "middle_block.1" not in name}
    save_file(some, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="laid out as no known checkpoint"):
        load(tmp_path / "y.safetensors", "cpu", [made[0] / "tokenizer"])


def test_open_clip_is_clip_under_other_names():
    from unfog.interop.single import open_clip

    text = tiny.clip(1, act="gelu", projected=True).state_dict()
    text = {name.removeprefix("text_model."): t for name, t in text.items()}
    old = {"positional_embedding": text["embeddings.position_embedding.weight"], "logit_scale": torch.ones(()),
           "token_embedding.weight": text["embeddings.token_embedding.weight"],
           "ln_final.weight": text["final_layer_norm.weight"], "ln_final.bias": text["final_layer_norm.bias"],
           "text_projection": text["text_projection.weight"].T}  # fmt: skip
    for i in range(3):
        here, there = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for part in ("weight", "bias"):
            old[f"{here}attn.in_proj_{part}"] = torch.cat([text[f"{there}self_attn.{k}_proj.{part}"] for k in "qkv"])
            for a, b in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                         ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                old[f"{here}{a}.{part}"] = text[f"{there}{b}.{part}"]
    found = open_clip(old)
    assert set(found) == set(text) and all(torch.equal(found[name], t) for name, t in text.items())
