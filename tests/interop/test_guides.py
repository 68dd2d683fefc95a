"""ControlNets and T2I-Adapters of others: the same latents as diffusers' pipelines, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
from guided import LATENTS, PROMPT, apart, noise, picture, theirs, walked

from unfog.errors import UserError
from unfog.interop import load, save
from unfog.requests import GenerateRequest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, and what was made for them."""
    place = tmp_path_factory.mktemp("guides")
    tiny.stable_diffusion(place / "sd", name="DDIMScheduler")
    tiny.stable_diffusion_xl(place / "xl")
    tiny.controlnet(1).save_pretrained(place / "my-canny")
    tiny.controlnet(2, global_pool_conditions=True).save_pretrained(place / "my-pooled")
    picture(1).save(place / "edges.png")
    picture(2).save(place / "other.png")
    return place


def test_a_controlnet(place):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    net = ControlNetModel.from_pretrained(place / "my-canny")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(place / "sd", controlnet=net)
    model = load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32)
    x, hint = noise(), place / "edges.png"
    plain = walked(model, x)
    for strength, interval in ((1.0, (0.0, 1.0)), (0.7, (0.2, 0.6))):
        wanted = theirs(pipe, x, image=picture(1), controlnet_conditioning_scale=strength,
                        control_guidance_start=interval[0], control_guidance_end=interval[1])  # fmt: skip
        asked = [{"kind": "canny", "picture": hint, "strength": strength, "interval": interval}]
        ours = walked(model, x, control=asked)
        assert apart(ours, wanted) < LATENTS < apart(ours, plain)


def test_two_controlnets_one_of_which_says_nothing_of_places(place):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    nets = [ControlNetModel.from_pretrained(place / name) for name in ("my-canny", "my-pooled")]
    model = load(place / "sd", "cpu", [f"{place / 'my-canny'}:0.5", place / "my-pooled"], dtype=torch.float32)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(place / "sd", controlnet=nets[1])
    x = noise()
    pooled = [{"kind": "pooled", "picture": place / "other.png"}]
    assert apart(walked(model, x, control=pooled), theirs(pipe, x, image=picture(2))) < LATENTS
    net = ControlNetModel.from_pretrained(place / "my-canny")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(place / "sd", controlnet=[nets[0], net])
    twice = load(place / "sd", "cpu", [f"{place / 'my-canny'}:0.5", _copy(place / "my-canny", "second")], dtype=torch.float32)
    wanted = theirs(pipe, x, image=[picture(1), picture(2)], controlnet_conditioning_scale=[0.4, 0.3])
    asked = [{"kind": "second", "picture": place / "other.png", "strength": 0.3},
             {"kind": "my-canny", "picture": place / "edges.png", "strength": 0.8}]  # fmt: skip
    assert apart(walked(twice, x, control=asked), wanted) < LATENTS


def _copy(folder, name, **changes):
    """The same folder under another name; changes: of its config."""
    import shutil

    made = folder.parent / name
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(folder, made)
    if (made / "config.json").is_file():
        told = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**told, "made_by": None, **changes}))
    return made


def old_control(name, last):
    """The first code's name of a ControlNet's weight."""
    from test_single import old_unet

    kind, _, rest = name.partition(".")
    if kind == "controlnet_cond_embedding":
        part, _, end = rest.partition(".")
        place, end = {"conv_in": (0, end), "conv_out": (last, end)}.get(part) or (int(end[0]) + 1, end[2:])
        return f"input_hint_block.{2 * place}.{end}"
    if kind == "controlnet_down_blocks":
        number, _, end = rest.partition(".")
        return f"zero_convs.{number}.0.{end}"
    return f"middle_block_out.0.{rest}" if kind == "controlnet_mid_block" else old_unet(name, {0})


def test_a_controlnet_in_a_single_file(place, tmp_path):
    whole = load_file(place / "my-canny/diffusion_pytorch_model.safetensors")
    old = {f"control_model.{old_control(name, 3)}": tensor for name, tensor in whole.items()}
    assert len(old) == len(whole) and "control_model.input_hint_block.6.weight" in old
    save_file(old, tmp_path / "canny-old.safetensors")
    save_file(whole, tmp_path / "canny-new.safetensors")
    wanted = load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32).space.guides.branches[0].network.state_dict()
    for name in ("canny-old", "canny-new"):
        model = load(place / "sd", "cpu", [tmp_path / f"{name}.safetensors"], dtype=torch.float32)
        (found,) = model.space.guides.branches
        assert found.name == name
        assert all(torch.equal(value, wanted[key]) for key, value in found.network.state_dict().items())
    hint = f"canny-new={place / 'edges.png'}"
    first, second = (m.generate(PROMPT, control=[w], seed=1, steps=2)[0].tobytes()
                     for m, w in ((model, hint), (load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32),
                                                  hint.replace("canny-new", "my-canny"))))  # fmt: skip
    assert first == second

    def refused(tensors, word):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=word) as caught:
            load(place / "sd", "cpu", [tmp_path / "x.safetensors"], dtype=torch.float32)
        assert "\n" not in str(caught.value) and "x.safetensors" in str(caught.value)

    middle = "control_model.middle_block_out.0.bias"
    refused({name: t for name, t in old.items() if name != middle}, "is missing; give a ControlNet made for this model's family")
    refused({**old, middle: torch.ones(63)}, "this model wants")
    refused({**old, "beyond.weight": torch.ones(6, 32)}, "for no layer of this model")
    refused({**old, "task_embedding": torch.ones(6, 32)}, "laid out as no known ControlNet")
    refused({**old, middle: torch.full((64,), torch.inf)}, "not finite")
    refused({**old, middle.removeprefix("control_model."): torch.ones(64)}, "under two names")
    refused({"input_hint_block.0.bias": torch.ones(3)}, "laid out as no known ControlNet")
    refused({"controlnet_cond_embedding.conv_in.weight": torch.ones(3)}, "laid out as no known ControlNet")
    with pytest.raises(UserError, match="made for this model's family"):
        load(place / "xl", "cpu", [tmp_path / "canny-old.safetensors"], dtype=torch.float32)


def test_a_guess(place):
    """Without a word of where it is heeded less; guidance's other branch does not see it."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    net = ControlNetModel.from_pretrained(place / "my-canny")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(place / "sd", controlnet=net)
    model = load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32)
    x = noise()
    asked = [{"kind": "canny", "picture": place / "edges.png", "strength": 0.8}]
    wanted = theirs(pipe, x, image=picture(1), controlnet_conditioning_scale=0.8, guess_mode=True)
    ours = walked(model, x, control=asked, settings={"guess": "on"})
    assert apart(ours, wanted) < LATENTS < apart(ours, walked(model, x, control=asked))
    for fields, word in (
        ({"settings": {"guess": "on"}}, "guess: is a way to heed a ControlNet"),
        ({"settings": {"guess": "yes"}, "control": asked}, "guess: must be on or off"),
    ):
        with pytest.raises(UserError, match=word):
            model.generate(PROMPT, seed=1, steps=1, **fields)
    with pytest.raises(UserError, match="setting: 'guess' is unknown"):
        load(place / "sd", "cpu", dtype=torch.float32).generate(PROMPT, seed=1, steps=1, settings={"guess": "on"})


def test_strength_zero_is_as_if_it_were_not_there(place):
    plain = load(place / "sd", "cpu", dtype=torch.float32)
    model = load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32)
    off = load(place / "sd", "cpu", [f"{place / 'my-canny'}:0"], dtype=torch.float32)
    fields = {"seed": 1, "steps": 2}
    wanted = plain.generate(PROMPT, **fields)[0].tobytes()
    hint = f"canny={place / 'edges.png'}"
    assert model.generate(PROMPT, **fields)[0].tobytes() == wanted  # nothing is asked for
    assert model.generate(PROMPT, control=[hint + ":0"], **fields)[0].tobytes() == wanted
    assert off.generate(PROMPT, control=[hint], **fields)[0].tobytes() == wanted
    assert model.generate(PROMPT, control=[hint], **fields)[0].tobytes() != wanted
    # pictures made together are the ones made alone
    both = model.generate(GenerateRequest(prompts=[PROMPT], control=[hint], n=2, batch=2, **fields))
    alone = model.generate(PROMPT, control=[hint], seed=2, steps=2)[0]
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone, int)).max() <= 1


@pytest.fixture(scope="module")
def adapters(place):
    """A model of the layout of Stable Diffusion 1 (attention first) and T2I-Adapters for it."""
    from diffusers import T2IAdapter

    folder = tiny.stable_diffusion(place / "first", name="DDIMScheduler")
    network = tiny.unet(0, block_out_channels=(32, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    network.save_pretrained(folder / "unet")
    torch.manual_seed(5)
    T2IAdapter(3, [32, 32], 1, 2, "full_adapter").save_pretrained(place / "t2i-sketch")
    T2IAdapter(1, [32], 1, 2, "light_adapter").save_pretrained(place / "t2i-light")
    return place


def test_t2i_adapters(adapters):
    from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

    x = noise()
    model = load(adapters / "first", "cpu", [adapters / "t2i-sketch"], dtype=torch.float32)
    net = T2IAdapter.from_pretrained(adapters / "t2i-sketch")
    pipe = StableDiffusionAdapterPipeline.from_pretrained(adapters / "first", adapter=net)
    wanted = theirs(pipe, x, image=picture(1), adapter_conditioning_scale=0.6)
    asked = [{"kind": "sketch", "picture": adapters / "edges.png", "strength": 0.6}]
    ours = walked(model, x, control=asked)
    assert apart(ours, wanted) < LATENTS < apart(ours, walked(model, x))


def test_what_a_branch_reads_is_the_picture_in_the_frame(adapters):
    model = load(adapters / "first", "cpu", [adapters / "t2i-light"], dtype=torch.float32)
    guides = model.space.guides
    grey = guides.hint("light", picture(1).convert("L"), (32, 32))
    assert torch.allclose(grey[0] * 255, torch.from_numpy(np.asarray(picture(1).convert("L"))).float(), atol=1e-3)
    wide = guides.hint("light", Image.new("RGB", (64, 32), (255, 255, 255)), (32, 32))
    assert wide.shape == (1, 32, 32) and float(wide[0, 16].min()) > 0.99 and float(wide[0, 2].max()) == 0.0
    clear = guides.hint("light", Image.new("RGBA", (32, 32), (255, 255, 255, 0)), (32, 32))
    assert float(clear.max()) == 0.0
    assert model.generate(PROMPT, control=[{"kind": "light", "picture": picture(1)}], seed=1, steps=2, aspect="2:1")


@pytest.mark.parametrize(
    "control, word",
    [
        (["pose=edges.png"], "unknown"),
        (["my=edges.png"], "write more of the folder's name"),
        (["my-canny=edges.png", "canny=other.png"], "given twice"),
        (["canny=nowhere.png"], "cannot be read"),
    ],
)
def test_controls_that_nothing_follows(place, control, word):
    model = load(place / "sd", "cpu", [place / "my-canny", place / "my-pooled"], dtype=torch.float32)
    wishes = [wish.replace("=", f"={place}/") for wish in control]
    with pytest.raises(UserError, match=word) as caught:
        model.generate(PROMPT, control=wishes, seed=1, steps=2)
    assert "\n" not in str(caught.value)


def test_without_a_branch_it_is_said_what_to_give(place):
    model = load(place / "sd", "cpu", dtype=torch.float32)
    with pytest.raises(UserError, match="follows no picture yet; give a ControlNet's"):
        model.generate(PROMPT, control=[f"canny={place / 'edges.png'}"], seed=1, steps=2)
    with pytest.raises(UserError, match="looks at no picture; give an IP-Adapter's"):
        model.generate(PROMPT, style_image=[str(place / "edges.png")], seed=1, steps=2)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"_class_name": "ControlNetUnionModel"}, "mid_block_type. is not known"),
        ({"_class_name": "ControlNetUnionModel", "num_control_type": 9}, "from 2 to 8, got 9"),
        ({"_class_name": "ControlNetUnionModel", "num_trans_layer": 10**6}, "num_trans_layer"),
        ({"_class_name": "ControlNetOther"}, "class"),
        ({"_class_name": ["ControlNetModel"]}, "class"),
        ({"auto_map": {"x": "y"}}, "asks for code"),
        ({"cross_attention_dim": 33}, "cross_attention_dim is 33, the model's 32"),
        ({"block_out_channels": [32, 32]}, "block_out_channels"),
        ({"layers_per_block": 1}, "layers_per_block"),
        ({"in_channels": 5}, "in_channels is 5, the model's 4"),
        ({"conditioning_embedding_out_channels": [16, 32, 96]}, "shrinks its picture 4 times"),
        ({"conditioning_embedding_out_channels": [10**9]}, "list of whole numbers"),
        ({"conditioning_embedding_out_channels": []}, "list of whole numbers"),
        ({"conditioning_channels": 10**9}, "conditioning_channels"),
        ({"conditioning_channels": 4}, "reads 4 channels, which no picture has"),
        ({"conditioning_channels": 1}, "has shape"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "gbr"),
        ({"down_block_types": ["Nonsense", "DownBlock2D"]}, "makes no network"),
    ],
)
def test_broken_controlnets(place, changes, word):
    folder = _copy(place / "my-canny", "broken", **changes)
    with pytest.raises(UserError, match=word) as caught:
        load(place / "sd", "cpu", [folder], dtype=torch.float32)
    assert "\n" not in str(caught.value) and "broken" in str(caught.value)


def test_damaged_weights_of_a_controlnet(place):
    folder = _copy(place / "my-canny", "damaged")
    file = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)

    def refused(word):
        with pytest.raises(UserError, match=word) as caught:
            load(place / "sd", "cpu", [folder], dtype=torch.float32)
        assert "\n" not in str(caught.value)

    save_file({k: v for k, v in whole.items() if k != "controlnet_mid_block.bias"}, file)
    refused("controlnet_mid_block.bias' is missing")
    save_file({**whole, "extra": torch.ones(1)}, file)
    refused("is no part of the network")
    save_file({**whole, "controlnet_mid_block.bias": torch.full((64,), torch.nan)}, file)
    refused("not finite")
    file.write_bytes(b"\x80\x04bomb")
    refused("is a pickle")
    file.rename(folder / "diffusion_pytorch_model.bin")
    refused("is a pickle")
    (folder / "diffusion_pytorch_model.bin").unlink()
    refused("is missing")
    names = sorted(whole)
    half = {name: whole[name] for name in names[: len(names) // 2]}
    save_file(half, folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    places = {name: f"diffusion_pytorch_model-0000{1 if name in half else 2}-of-00002.safetensors" for name in names}
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    refused("00002-of-00002.safetensors: is missing")
    save_file({name: whole[name] for name in names if name not in half},
              folder / "diffusion_pytorch_model-00002-of-00002.safetensors")  # fmt: skip
    load(place / "sd", "cpu", [folder], dtype=torch.float32)
    (folder / "config.json").unlink()
    refused("no config.json there")


def test_broken_t2i_adapters(adapters):
    for changes, word in (
        ({"adapter_type": "odd"}, "makes no network"),
        ({"channels": [32, 64]}, "channels is"),
        ({"channels": [10**9, 64]}, "list of whole numbers"),
        ({"downscale_factor": 8}, "downscale_factor is 8, the model's 2"),
        ({"downscale_factor": 10**6}, "downscale_factor"),
        ({"num_res_blocks": 10**6}, "num_res_blocks"),
        ({"in_channels": 1}, "has shape"),
    ):
        folder = _copy(adapters / "t2i-sketch", "broken-t2i", **changes)
        with pytest.raises(UserError, match=word) as caught:
            load(adapters / "first", "cpu", [folder], dtype=torch.float32)
        assert "\n" not in str(caught.value)
    # of another layout: its features have no layer of their size
    folder = _copy(adapters / "first", "last")
    tiny.unet(0, block_out_channels=(32, 32)).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="t2i-sketch does not fit this model's network"):
        load(folder, "cpu", [adapters / "t2i-sketch"], dtype=torch.float32)


def test_a_folder_of_the_hubs_cache(place, tmp_path):
    """Its files are links into blobs/ beside its snapshots, which are named by a hash; the repository's name is the branch's."""
    own = tmp_path / "models--someone--sd-controlnet-canny"
    snapshot = own / "snapshots/0123abcd"
    snapshot.mkdir(parents=True)
    (own / "blobs").mkdir()
    for file in (place / "my-canny").iterdir():
        (own / "blobs" / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    model = load(place / "sd", "cpu", [snapshot], dtype=torch.float32)
    assert [branch.name for branch in model.space.guides.branches] == ["sd-controlnet-canny"]
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(place / "my-canny/config.json")
    with pytest.raises(UserError, match="is a link out of the folder"):
        load(place / "sd", "cpu", [snapshot], dtype=torch.float32)


def test_with_a_guide_nothing_is_saved(place, tmp_path):
    model = load(place / "sd", "cpu", [place / "my-canny"], dtype=torch.float32)
    with pytest.raises(UserError, match="my-canny has no place in the layout"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(place, tmp_path, capfd, monkeypatch):
    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red apple", "--model", str(place / "sd"), "--steps", "2", "--seed", "7"]
    assert main(words) == 0
    (plain,) = capfd.readouterr().out.splitlines()
    steer = ["--adapter", str(place / "my-canny"), "--control", f"canny={place / 'edges.png'}:0.8", "--control-interval", "0,0.6"]
    assert main([*words, *steer]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    assert Path(path).read_bytes() != Path(plain).read_bytes()
    from unfog.modalities.image.show import read_recipe

    recipe = read_recipe(Path(path))
    assert recipe["control"][0]["strength"] == 0.8 and recipe["control"][0]["interval"] == [0.0, 0.6]
    assert [one["name"] for one in recipe["adapters"]] == ["my-canny"]
    before = Path(path).read_bytes()
    like = ["generate", "--like", path, "--model", str(place / "sd"), "--adapter", str(place / "my-canny")]
    assert main([*like, "--control", f"canny={place / 'edges.png'}"]) == 0
    assert Path(path).read_bytes() == before
    for wrong, word in (
        (["--control", f"canny={place / 'other.png'}"], "another canny"),
        ([], "give its picture with --control canny=PICTURE"),
    ):
        capfd.readouterr()
        assert main([*like, *wrong]) == 2
        error = capfd.readouterr().err.strip()
        assert word in error and len(error.splitlines()) == 1
