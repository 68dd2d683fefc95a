"""Transformers of SD 3 and Flux in one file, under their first names: the same network as the folder that they were made of."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_flow
from test_folder import refused

from unfog.interop import load
from unfog.interop.original import family, renamed

STREAM = {"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.norm_q": "img_attn.norm.query_norm",
          "attn.norm_k": "img_attn.norm.key_norm", "attn.norm_added_q": "txt_attn.norm.query_norm",
          "attn.norm_added_k": "txt_attn.norm.key_norm", "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
          "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2", "ff_context.net.0.proj": "txt_mlp.0",
          "ff_context.net.2": "txt_mlp.2"}  # fmt: skip
ALONE = {"norm.linear": "modulation.lin", "proj_out": "linear2", "attn.norm_q": "norm.query_norm",
         "attn.norm_k": "norm.key_norm"}  # fmt: skip
OUTER = {"context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
         "time_text_embed.timestep_embedder.linear_": "time_in.", "time_text_embed.text_embedder.linear_": "vector_in.",
         "time_text_embed.guidance_embedder.linear_": "guidance_in."}  # fmt: skip


def swapped(tensor):
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def old_flux(state):
    """Flux's first names of a network of diffusers'."""
    found = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)\.(weight|bias)", name)
        if name.startswith("norm_out"):
            found[name.replace("norm_out.linear", "final_layer.adaLN_modulation.1")] = swapped(tensor)
        elif not block:
            for new, old in OUTER.items():
                if name.startswith(new):
                    rest = name.removeprefix(new).replace("1.", "in_layer.").replace("2.", "out_layer.")
                    found[old + rest] = tensor
        else:
            side, i, part, end = block.groups()
            place = f"{'double' if side == 'transformer_blocks' else 'single'}_blocks.{i}."
            old = (STREAM if side == "transformer_blocks" else ALONE).get(part)
            if old:
                found[place + old + (".scale" if old.endswith("_norm") else f".{end}")] = tensor
            elif part in ("attn.to_q", "attn.add_q_proj"):
                three = [state[name.replace("_q", f"_{key}")] for key in "qkv"]
                if place.startswith("single"):
                    found[f"{place}linear1.{end}"] = torch.cat([*three, state[f"{side}.{i}.proj_mlp.{end}"]])
                else:
                    found[f"{place}{'img' if 'to_q' in part else 'txt'}_attn.qkv.{end}"] = torch.cat(three)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, and the file of another network of its kind."""
    place = tmp_path_factory.mktemp("original")
    network = tiny_flow.flux_network(7)
    tensors = old_flux(network.state_dict())
    save_file({name: t.contiguous() for name, t in tensors.items()}, place / "tune.safetensors")
    return tiny_flow.flux(place / "flux"), place / "tune.safetensors", network, tensors


def test_flux(made):
    folder, file, network, tensors = made
    assert "single_blocks.0.linear1.weight" in tensors and "double_blocks.0.txt_attn.norm.key_norm.scale" in tensors
    model = load(folder, "cpu", [file], dtype=torch.float32)
    ours = model.denoiser.network.transformer.state_dict()
    assert set(ours) == set(network.state_dict())
    assert all(torch.equal(ours[name], t) for name, t in network.state_dict().items())
    assert [(one.card.name, one.card.kind) for one in model.adapters] == [("tune", "network")]


def old_sd3(state):
    """Stable Diffusion 3's first names of a network of diffusers'."""
    old = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if not found:
            table = {"pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "proj_out": "final_layer.linear",
                     "norm_out.linear": "final_layer.adaLN_modulation.1", "context_embedder": "context_embedder",
                     "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
                     "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
                     "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
                     "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2"}  # fmt: skip
            stem = next(key for key in table if name.startswith(key))
            old[table[stem] + name.removeprefix(stem)] = tensor
            continue
        i, part, end = found.groups()
        side = "context_block" if "add" in part or "context" in part else "x_block"
        attn = "attn2" if part.startswith("attn2") else "attn"
        if re.search(r"to_[kv]$|add_[kv]_proj", part):
            continue
        if part.endswith(("to_q", "add_q_proj")):
            three = [state[name.replace("_q", f"_{key}")] for key in "qkv"]
            old[f"joint_blocks.{i}.{side}.{attn}.qkv.{end}"] = torch.cat(three)
            continue
        part = re.sub(r"^(ff|ff_context)\.net\.0\.proj", "mlp.fc1", part)
        part = re.sub(r"^(ff|ff_context)\.net\.2", "mlp.fc2", part)
        part = re.sub(r"^norm1(_context)?\.linear", "adaLN_modulation.1", part)
        part = re.sub(r"norm_(added_)?([qk])$", r"ln_\2", part).replace("to_out.0", "proj").replace("to_add_out", "proj")
        old[f"joint_blocks.{i}.{side}.{part}.{end}"] = tensor
    return old


@pytest.mark.parametrize("fields", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}])
def test_names_of_sd3_are_those_of_diffusers_own_conversion(fields):
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as theirs

    network = tiny_flow.sd3_network(3, num_layers=3, **fields)
    old = old_sd3(network.state_dict())
    wanted = theirs(dict(old))
    assert set(wanted) == set(network.state_dict()) and family(old) == "sd3"
    ours = {key: value for name, tensor in old.items() for key, value in renamed(name, tensor, 2).items()}
    assert set(ours) == set(wanted) and all(torch.equal(ours[name], t) for name, t in wanted.items())


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_lora_under_the_first_names(tmp_path, name):
    """kohya's of every layer, and another program's of one: as if the first code's own weights had been changed."""
    fields = (
        {"num_layers": 3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"} if name == "sd3" else {"num_single_layers": 2}
    )
    make, old = (tiny_flow.sd3_network, old_sd3) if name == "sd3" else (tiny_flow.flux_network, old_flux)
    folder = getattr(tiny_flow, name)(tmp_path / name, network=fields)
    before = old(make(3, **fields).state_dict())
    lora, after = {}, dict(before)
    for key, tensor in before.items():
        if key.endswith(".weight") and tensor.ndim == 2:
            down, up = torch.randn(2, tensor.shape[1]), torch.randn(len(tensor), 2)
            stem = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(3.0)}
            after[key] = tensor + 0.5 * 3.0 / 2 * up @ down
    assert len(lora) > 3 * 20
    for file, tensors in (("before", before), ("after", after), ("lora", lora)):
        save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / f"{file}.safetensors")
    files = [[tmp_path / "after.safetensors"], [tmp_path / "before.safetensors", f"{tmp_path / 'lora.safetensors'}:0.5"]]
    wanted, found = (load(folder, "cpu", given, dtype=torch.float32).denoiser.network.transformer.state_dict() for given in files)
    assert all(torch.allclose(found[key], tensor, atol=1e-5) for key, tensor in wanted.items())
    part = "joint_blocks.2.context_block.attn.qkv" if name == "sd3" else "double_blocks.0.txt_attn.qkv"
    down, up = torch.randn(2, before[f"{part}.weight"].shape[1]), torch.randn(len(before[f"{part}.weight"]), 2)
    pair = {f"diffusion_model.{part}.lora_A.weight": down, f"diffusion_model.{part}.lora_B.weight": up}
    save_file(pair, tmp_path / "one.safetensors")
    own = load(folder, "cpu", [tmp_path / "one.safetensors"], dtype=torch.float32).denoiser.network.transformer
    usual = load(folder, "cpu", dtype=torch.float32).denoiser.network.transformer
    layers = [f"transformer_blocks.{2 if name == 'sd3' else 0}.attn.add_{key}_proj" for key in "qkv"]
    change = torch.cat([own.get_submodule(one).weight - usual.get_submodule(one).weight for one in layers])
    assert torch.allclose(change, up @ down, atol=1e-5)
    save_file({key: tensor[:, :-1].contiguous() for key, tensor in pair.items()}, tmp_path / "two.safetensors")
    refused(lambda: load(folder, "cpu", [tmp_path / "two.safetensors"]), "give a LoRA of this model's family")


def test_a_file_under_diffusers_names_and_a_whole_file(made, tmp_path):
    folder, _, network, tensors = made
    save_file(network.state_dict(), tmp_path / "new.safetensors")
    whole = {f"model.diffusion_model.{name}": t.contiguous() for name, t in tensors.items()}
    save_file({**whole, "vae.decoder.conv_in.weight": torch.full((3,), torch.nan)}, tmp_path / "whole.safetensors")
    for name in ("new", "whole"):
        found = load(folder, "cpu", [tmp_path / f"{name}.safetensors"], dtype=torch.float32).denoiser.network.transformer
        assert all(torch.equal(found.state_dict()[key], t) for key, t in network.state_dict().items())


@pytest.mark.parametrize(("scale", "beside"), [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
def test_weights_of_8_bits_with_a_scale_each(made, tmp_path, scale, beside):
    folder, _, network, tensors = made
    small, wanted = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or tensor.ndim != 2:
            small[name] = wanted[name] = tensor.contiguous()
            continue
        size = tensor.abs().max() / 448.0  # the largest number of the format
        small[name] = (tensor / size).to(torch.float8_e4m3fn)
        small |= {name.replace("weight", scale): size, name.replace("weight", beside): torch.ones(1)}
        wanted[name] = (small[name].float() * size).bfloat16().contiguous()
    for kind, file in (("scaled", small), ("wanted", wanted)):
        save_file({f"model.diffusion_model.{name}": t for name, t in file.items()}, tmp_path / f"{kind}.safetensors")
    scaled, meant = (load(folder, "cpu", [tmp_path / f"{kind}.safetensors"], dtype=torch.float32).denoiser.network.transformer
                     for kind in ("scaled", "wanted"))  # fmt: skip
    for name, tensor in network.state_dict().items():
        assert torch.equal(scaled.state_dict()[name], meant.state_dict()[name])
        assert float((scaled.state_dict()[name] - tensor).norm() / tensor.norm()) < 0.05
    changed = {**small, f"img_in.{scale}": torch.ones(4)}
    save_file({f"model.diffusion_model.{name}": t for name, t in changed.items()}, tmp_path / "blocks.safetensors")
    refused(lambda: load(folder, "cpu", [tmp_path / "blocks.safetensors"]), f"img_in.{scale}", "no scale of one 8-bit weight")


def test_what_does_not_fit(made, tmp_path):
    folder, file, _, tensors = made
    refused(lambda: load(file, "cpu"), "the network of Flux", "give a folder of it as the model")
    refused(lambda: load(tiny_flow.sd3(tmp_path / "sd3"), "cpu", [file]), "a network of Flux; give one of Stable Diffusion 3")
    refused(lambda: load(tiny.stable_diffusion(tmp_path / "sd"), "cpu", [file]), "which sd is not")
    refused(lambda: load(folder, "cpu", [file, shutil.copy(file, tmp_path / "two.safetensors")]), "two networks are given")
    for change, word in (
        ({"single_blocks.0.linear1.weight": torch.ones(3)}, "has shape"),
        ({"double_blocks.0.img_attn.qkv.bias": torch.ones(5)}, "has shape"),
        ({"context_embedder.bias": torch.ones(32)}, "and another are"),
        ({"double_blocks.0.beyond.weight": torch.ones(2)}, "no part of the network"),
        ({"txt_in.bias": torch.full((32,), torch.inf)}, "not finite"),
    ):
        save_file({**{name: t.contiguous() for name, t in tensors.items()}, **change}, tmp_path / "bad.safetensors")
        refused(lambda: load(folder, "cpu", [tmp_path / "bad.safetensors"]), "bad.safetensors", word)
    del tensors["txt_in.bias"]
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "bad.safetensors")
    refused(lambda: load(folder, "cpu", [tmp_path / "bad.safetensors"]), "context_embedder.bias", "missing")
