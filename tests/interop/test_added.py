"""LoRA, learned words and autoencoders in every dialect of names, held against the layers changed by hand."""

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
from unfog.interop import load, save

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "encoder.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("added") / "sd")


@pytest.fixture(scope="module")
def plain(folder):
    return load(folder, "cpu", dtype=torch.float32)


def layer(model, name=LAYER):
    return dict(model.denoiser.network.unet.named_modules())[name].weight


def text(model):
    return dict(model.space.encoders[0].network.named_modules())[TEXT].weight


def low_rank(rank=2, wide=64, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rank, wide), torch.randn(wide, rank)


DIALECTS = {
    "peft": ("unet." + LAYER + ".lora_A.weight", "unet." + LAYER + ".lora_B.weight", None),
    "diffusers": ("unet." + LAYER + ".lora.down.weight", "unet." + LAYER + ".lora.up.weight", None),
    "processor": ("unet." + LAYER.replace("attn1.to_out.0", "attn1.processor.to_out_lora.down.weight"),
                  "unet." + LAYER.replace("attn1.to_out.0", "attn1.processor.to_out_lora.up.weight"), None),
    "kohya": ("lora_unet_" + LAYER.replace(".", "_") + ".lora_down.weight",
              "lora_unet_" + LAYER.replace(".", "_") + ".lora_up.weight", "lora_unet_" + LAYER.replace(".", "_") + ".alpha"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_lora_in_each_dialect(folder, plain, tmp_path, dialect):
    down, up = low_rank()
    names = DIALECTS[dialect]
    tensors = {names[0]: down, names[1]: up} | ({names[2]: torch.tensor(1.0)} if names[2] else {})
    save_file(tensors, tmp_path / "style.safetensors")
    model = load(folder, "cpu", [f"{tmp_path / 'style.safetensors'}:0.5"], dtype=torch.float32)
    scale = 0.5 * (0.5 if names[2] else 1.0)
    assert torch.allclose(layer(model), layer(plain) + scale * up @ down, atol=1e-6)
    picture = model.generate("a cat", seed=1, steps=2)[0]
    assert picture.tobytes() != plain.generate("a cat", seed=1, steps=2)[0].tobytes()


def test_lora_of_the_text_encoder_and_of_a_convolution(folder, plain, tmp_path):
    down, up = low_rank(wide=32)
    kernel, mix = torch.randn(2, 32, 3, 3), torch.randn(32, 2, 1, 1)
    place = "lora_unet_down_blocks_0_resnets_0_conv1"
    name = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
    save_file({name + ".lora_down.weight": down, name + ".lora_up.weight": up, place + ".lora_down.weight": kernel,
               place + ".lora_up.weight": mix}, tmp_path / "l.safetensors")  # fmt: skip
    model = load(folder, "cpu", [tmp_path / "l.safetensors"], dtype=torch.float32)
    assert torch.allclose(text(model), text(plain) + up @ down, atol=1e-6)
    wanted = layer(plain, "down_blocks.0.resnets.0.conv1") + torch.einsum("or,rihw->oihw", mix[..., 0, 0], kernel)
    assert torch.allclose(layer(model, "down_blocks.0.resnets.0.conv1"), wanted, atol=1e-5)


def test_strength_zero_is_as_if_it_were_not_there(folder, plain, tmp_path):
    down, up = low_rank()
    save_file(dict(zip(DIALECTS["peft"][:2], (down, up), strict=True)), tmp_path / "l.safetensors")
    model = load(folder, "cpu", [f"{tmp_path / 'l.safetensors'}:0"], dtype=torch.float32)
    assert torch.equal(layer(model), layer(plain)) and not model.adapters


@pytest.mark.parametrize(
    "tensors, word",
    [
        ({"unet.nowhere.lora_A.weight": torch.ones(2, 64), "unet.nowhere.lora_B.weight": torch.ones(64, 2)}, "no layer"),
        ({DIALECTS["peft"][0]: torch.ones(2, 64)}, "missing"),
        ({DIALECTS["peft"][0]: torch.ones(2, 63), DIALECTS["peft"][1]: torch.ones(64, 2)}, "family"),
        ({DIALECTS["peft"][0]: torch.ones(2, 64), DIALECTS["peft"][1]: torch.ones(64, 3)}, "family"),
        ({DIALECTS["peft"][0]: torch.full((2, 64), torch.nan), DIALECTS["peft"][1]: torch.ones(64, 2)}, "not finite"),
        ({"<word>": torch.ones(2, 31)}, "32 numbers"),
        ({"a": torch.ones(2, 32), "b": torch.ones(2, 32)}, "family"),
    ],
)
def test_what_does_not_fit(folder, tmp_path, tensors, word):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=word) as caught:
        load(folder, "cpu", [tmp_path / "x.safetensors"], dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_learned_word(folder, plain, tmp_path):
    vectors = torch.randn(2, 32)
    save_file({"<my-cat>": vectors}, tmp_path / "word.safetensors")
    model = load(folder, "cpu", [tmp_path / "word.safetensors"], dtype=torch.float32)
    encoder, rows = model.space.encoders[0], len(plain.space.encoders[0].network.embeddings["token_embedding"].weight)
    ids = encoder.tokens.numbers("a <my-cat> on the moon")
    assert ids[1:3] == [rows, rows + 1] and ids[0] == encoder.tokens.numbers("a")[0]
    assert torch.equal(encoder.network.embeddings["token_embedding"].weight[rows:], vectors)
    without = plain.space.encoders[0].tokens.numbers("a cat")
    assert encoder.tokens.numbers("a cat") == without


def test_another_autoencoder(folder, plain, tmp_path):
    tiny.vae(7).save_pretrained(tmp_path / "vae")
    model = load(folder, "cpu", [tmp_path / "vae"], dtype=torch.float32)
    x0 = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(model.space.codec.pixels(x0), plain.space.codec.pixels(x0))
    assert torch.equal(layer(model), layer(plain))


def test_saved_back_it_is_what_diffusers_reads(folder, plain, tmp_path):
    from diffusers import StableDiffusionPipeline

    down, up = low_rank()
    save_file(dict(zip(DIALECTS["peft"][:2], (down, up), strict=True)), tmp_path / "l.safetensors")
    model = load(folder, "cpu", [tmp_path / "l.safetensors"], dtype=torch.float32)
    save(model, tmp_path / "out", half=False)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    theirs = dict(pipe.unet.named_parameters())
    assert all(torch.equal(theirs[name], value) for name, value in model.denoiser.network.unet.named_parameters())
    with torch.no_grad():
        told = pipe.encode_prompt("a red apple", "cpu", 1, False)[0]
    assert torch.allclose(told, model.space.both(["a red apple"], None, {})[0]["text"], atol=1e-6)
    again = load(tmp_path / "out", "cpu", dtype=torch.float32)
    assert torch.equal(layer(again), layer(model))
    first, second = (m.generate("a cat", seed=1, steps=2)[0].tobytes() for m in (model, again))
    assert first == second
