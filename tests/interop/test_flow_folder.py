"""Stable Diffusion 3 and Flux: broken folders, settings, saving, what is added, the command line."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_flow
from test_folder import Bomb, refused

import unfog
from unfog.interop import load, save
from unfog.interop.flows import FlowSteps
from unfog.interop.safe import Folder
from unfog.interop.t5 import T5Tokens

NOISE = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("flow")
    return {"sd3": tiny_flow.sd3(place / "sd3"), "flux": tiny_flow.flux(place / "flux")}


@pytest.fixture(params=["sd3", "flux"])
def folder(request, made, tmp_path):
    return shutil.copytree(made[request.param], tmp_path / request.param)


@pytest.fixture(scope="module")
def models(made):
    return {name: load(path, "cpu", dtype=torch.float32) for name, path in made.items()}


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def opened(folder):
    return lambda: unfog.load(folder, "cpu")


# Broken and malicious folders


@pytest.mark.parametrize(
    "told, word",
    [
        ({"transformer": ["diffusers", "UNet2DConditionModel"]}, "which unfog does not run"),
        ({"transformer": ["my_code", "SD3Transformer2DModel"]}, "which unfog does not run"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "which unfog does not run"),
        ({"transformer": [None, None]}, "names no transformer"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "which unfog does not run"),
        ({"text_encoder": [None, None], "text_encoder_2": [None, None], "text_encoder_3": [None, None]}, "names no text_encoder"),
        ({"tokenizer": [None, None]}, "no tokenizer"),
        ({"tokenizer_2": ["transformers", "AutoTokenizer"]}, "which unfog does not run"),
    ],
)
def test_an_index_that_names_what_is_not_run(folder, told, word):
    index = json.loads((folder / "model_index.json").read_text())
    change(folder / "model_index.json", **{key: value for key, value in told.items() if key in index or len(told) == 1})
    refused(opened(folder), "model_index.json", word)


def test_pickles_in_place_of_weights(folder, tmp_path):
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(opened(folder), "transformer", "pickle")
    weights.unlink()
    (folder / "transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(opened(folder), "diffusion_pytorch_model.bin", "pickle")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("part", ["transformer/diffusion_pytorch_model", "T5/model"])
@pytest.mark.parametrize("wrong", ["missing", "shape", "many", "nan"])
def test_tensors_that_do_not_fit(made, tmp_path, part, wrong):
    folder = shutil.copytree(made["flux"], tmp_path / "flux")
    path = folder / f"{part.replace('T5', 'text_encoder_2')}.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if wrong == "missing":
        del tensors[name]
    elif wrong == "many":
        tensors["beyond"] = torch.ones(2)
    else:
        tensors[name] = torch.ones(3) if wrong == "shape" else tensors[name] * torch.nan
    save_file(tensors, path)
    said = {"missing": "is missing", "shape": "has shape", "many": "no part of the network", "nan": "not finite"}[wrong]
    refused(opened(folder), str(path.name), said)


def test_a_shard_that_is_missing(folder):
    place = folder / "transformer"
    tensors = load_file(place / "diffusion_pytorch_model.safetensors")
    (place / "diffusion_pytorch_model.safetensors").unlink()
    first, last = dict(list(tensors.items())[:3]), dict(list(tensors.items())[3:])
    told = {name: f"{1 if name in first else 2}.safetensors" for name in tensors}
    save_file(first, place / "1.safetensors")
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    refused(opened(folder), "2.safetensors", "is missing")
    save_file(last, place / "2.safetensors")
    assert load(folder, "cpu", dtype=torch.float32).name == folder.name


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"joint_attention_dim": 90}, "has shape"),
        ({"num_layers": 10**6}, "num_layers"),
        ({"out_channels": 30}, "out_channels"),
        ({"attention_head_dim": 7}, "transformer/config.json"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for code"),
        ({"evil": 3}, "not known to this diffusers"),
    ],
)
def test_configs_that_do_not_fit(folder, fields, word):
    change(folder / "transformer/config.json", **fields)
    refused(opened(folder), word)


def test_rows_and_columns_that_do_not_fill_a_head(made, tmp_path):
    folder = shutil.copytree(made["flux"], tmp_path / "flux")
    for axes in ([4, 4, 4], [4, 6, []], 0.5):
        change(folder / "transformer/config.json", axes_dims_rope=axes)
        refused(opened(folder), "axes_dims_rope", str(axes))


@pytest.mark.parametrize("part, fields, word", [
    ("vae", {"scaling_factor": [0, 1]}, "scaling_factor must be a number"),
    ("vae", {"shift_factor": "x"}, "shift_factor must be a number"),
    ("text_encoder", {"layer_norm_eps": [[1]]}, "makes no network"),
    ("text_encoder", {"eos_token_id": [2]}, "eos_token_id must be"),
    ("text_encoder_2", {"layer_norm_epsilon": {}}, "makes no network"),
    ("text_encoder_2", {"feed_forward_proj": "evil"}, "feed_forward_proj"),
    ("text_encoder_2", {"relative_attention_num_buckets": 0}, "make no network"),
    ("text_encoder_2", {"num_heads": 2}, "has shape"),
])  # fmt: skip
def test_numbers_that_are_none(made, tmp_path, part, fields, word):
    folder = shutil.copytree(made["flux"], tmp_path / "flux")
    change(folder / part / "config.json", **fields)
    refused(opened(folder), word)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_parts_of_different_models(made, tmp_path, kind):
    folder = shutil.copytree(made[kind], tmp_path / kind)
    shutil.rmtree(folder / "vae")
    tiny.vae(0, channels=4).save_pretrained(folder / "vae")
    refused(opened(folder), "takes 8 channels, the autoencoder gives 4")
    folder = shutil.copytree(made[kind], tmp_path / "other")
    shutil.rmtree(folder / "text_encoder")
    tiny.clip(0, width=16, projected=kind == "sd3").save_pretrained(folder / "text_encoder")
    refused(opened(folder), "pooled numbers, the encoders give")
    folder = shutil.copytree(made[kind], tmp_path / "words")
    place = "text_encoder_3" if kind == "sd3" else "text_encoder_2"
    shutil.rmtree(folder / place)
    tiny_flow.t5(width=48).save_pretrained(folder / place)
    refused(opened(folder), "reads text of 96 numbers, the encoders give 48")


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"shift": -1.0}, "shift"), ({"shift": "3"}, "shift"), ({"base_shift": True}, "base_shift"),
        ({"max_image_seq_len": 256}, "max_image_seq_len"), ({"time_shift_type": "odd"}, "time_shift_type"),
        ({"invert_sigmas": True}, "invert_sigmas"), ({"use_beta_sigmas": True}, "use_beta_sigmas"),
        ({"shift_terminal": 1.0}, "shift_terminal"), ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"_class_name": "EvilScheduler"}, "EvilScheduler"), ({"_class_name": ["a.py", "B"]}, "_class_name"),
    ],
)  # fmt: skip
def test_noise_that_is_none(tmp_path, fields, word):
    settings = {"_class_name": "FlowMatchEulerDiscreteScheduler", **fields}
    refused(FlowSteps(tmp_path / "s.json", settings).check, "s.json", word)


# T5's tokens


def test_tokens_are_those_of_transformers(made):
    from transformers import T5TokenizerFast

    theirs = T5TokenizerFast.from_pretrained(made["flux"] / "tokenizer_2")
    ours = T5Tokens.read(Folder(made["flux"]), "tokenizer_2")
    for text in ("a red apple on the moon", "", "  a\tCAT,  über  </s> cats ", "aaaa" * 40):
        assert [n for n, _ in ours.pairs([(text, 1.0)])] == theirs(text).input_ids


@pytest.mark.parametrize(
    "told, word",
    [
        (None, "is missing; write it with transformers"),
        ("{", "JSON"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "no list of SentencePiece"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "no list of SentencePiece"),
        ({"model": {"type": "Unigram", "vocab": []}}, "no list of SentencePiece"),
        ({"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}}, "unk_id"),
        ({"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}, "unk_id"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, "pattern"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "makes no tokenizer"),
        ({"normalizer": {"type": "Evil"}}, "Evil"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}]}}, "Split"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [[]]}}, "which T5 has not"),
    ],
)
def test_tokenizers_that_are_none(made, tmp_path, told, word):
    folder = shutil.copytree(made["flux"] / "tokenizer_2", tmp_path / "sd/tokenizer_2").parent
    path = folder / "tokenizer_2/tokenizer.json"
    if told is None:
        path.unlink()
    elif isinstance(told, str):
        path.write_text(told)
    else:
        change(path, **told)
    refused(lambda: T5Tokens.read(Folder(folder), "tokenizer_2"), "tokenizer.json", word)


def test_more_words_than_the_encoder_has(made, tmp_path):
    folder = shutil.copytree(made["flux"], tmp_path / "flux")
    words = [[f"▁w{i}", -1.0] for i in range(100)]
    told = json.loads((folder / "tokenizer_2/tokenizer.json").read_text())
    told["model"]["vocab"] += words
    (folder / "tokenizer_2/tokenizer.json").write_text(json.dumps(told))
    refused(opened(folder), "the text encoder only 64 vectors")


@pytest.mark.parametrize("act", ["relu", "gated-gelu"])
def test_t5_of_both_kinds(tmp_path, act):
    from unfog.interop.t5 import t5

    theirs = tiny_flow.t5(3, act=act)
    theirs.save_pretrained(tmp_path / "text_encoder_2")
    tiny_flow.t5_tokens(tmp_path / "tokenizer_2")
    path = tmp_path / "text_encoder_2/model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone()}, path)  # as many files have it
    ours = t5(Folder(tmp_path), "text_encoder_2", "tokenizer_2", torch.float32, "cpu")
    ids = torch.randint(0, 29, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(ids)[0]
        assert float((ours.network(ids) - wanted).norm() / wanted.norm()) < 1e-5


def test_weights_of_words_and_long_prompts(models):
    space = models["flux"].space
    plain, heavy, empty = (space.t5.encode([said], 16)[0] for said in ([("a", 1.0), ("red cat", 1.0)],
                           [("a", 1.0), ("red cat", 1.5)], [("", 1.0)]))  # fmt: skip
    assert torch.allclose(heavy[0], plain[0]) and torch.allclose(heavy[1], empty[1] + 1.5 * (plain[1] - empty[1]), atol=1e-5)
    cond, other = space.both([" ".join(["a red apple"] * 40)], None, {"settings": {"tokens": "64"}})
    assert cond["text"].shape == other["text"].shape == (1, 2 * 64, 96) and cond["pooled"].shape == (1, 32)


# What may be asked


def test_settings(models):
    sd3, flux = models["sd3"], models["flux"]
    assert sd3.generate("a cat", seed=1, steps=1)[0].size == (32, 32)
    assert sd3.generate("a cat", seed=1, steps=1, aspect="2:1")[0].size == (48, 16)
    one, two = (flux.generate("a cat", seed=1, steps=1, settings={"size": "16x12", "tokens": "8", "guidance": g})[0]
                for g in ("1", "9.5"))  # fmt: skip
    assert one.tobytes() != two.tobytes()
    for model, settings, word in (
        (sd3, {"guidance": "3"}, "told none"),
        (sd3, {"size": "30x32"}, "multiples of 4"),
        (sd3, {"size": "52x32"}, "at most 48 a side"),
        (sd3, {"tokens": "0"}, "whole number"),
        (sd3, {"tokens": "99999"}, "whole number"),
        (flux, {"guidance": "nan"}, "0 to 100"),
        (flux, {"guidance": "x"}, "0 to 100"),
        (flux, {"sise": "16x16"}, "unknown"),
        (flux, {"size": "18x16"}, "multiples of 4"),
    ):
        with pytest.raises(ValueError, match=word):
            model.generate("a cat", seed=1, steps=1, settings=settings)


def test_what_nobody_asks_for_is_not_read(models, monkeypatch):
    space, read = models["flux"].space, []
    network = space.t5.network.forward
    monkeypatch.setattr(space.t5.network, "forward", lambda ids: read.append(len(ids)) or network(ids))
    for scale, count in (("1", 1), ("2", 2)):
        space.t5.kept.clear()
        read.clear()
        settings = {"size": "16x12", "tokens": "8"}
        models["flux"].generate("a cat", negative="a moon", seed=1, steps=1, scale=float(scale), settings=settings)
        assert sum(read) == count


def test_the_shift_goes_with_the_size(models):
    flux = models["flux"]
    small, large = (flux.plan("euler", 4, shape=(8, side, side)).t for side in (16, 64))
    assert (large[1:] > small[1:]).all()
    assert (flux.plan("auto", 4).t == flux.plan("auto", 4, shape=(8, 64, 64)).t).all()


def test_a_prediction_that_is_not_flow(made):
    refused(lambda: load(made["sd3"], "cpu", prediction="eps"), "sd3", "predicts flow, not 'eps'; leave it out")


def test_generate_is_a_function_of_the_seed(models):
    first, second, other = (models["sd3"].generate("a red apple", seed=s, steps=2)[0] for s in (1, 1, 2))
    assert first.tobytes() == second.tobytes() != other.tobytes()


# What is added, and saving


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_saved_back_it_is_what_diffusers_reads(made, models, tmp_path, kind):
    import diffusers

    layer = "transformer_blocks.0.attn.to_q"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    save_file({f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}, tmp_path / "l.safetensors")
    model = load(made[kind], "cpu", [tmp_path / "l.safetensors"], dtype=torch.float32)
    before, after = (dict(m.denoiser.network.transformer.named_modules())[layer].weight for m in (models[kind], model))
    assert torch.allclose(after, before + up @ down, atol=1e-5)
    save(model, tmp_path / "out", half=False)
    pipe = getattr(diffusers, {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[kind]).from_pretrained(tmp_path / "out")
    theirs = dict(pipe.transformer.named_parameters())
    assert all(torch.equal(theirs[name], value) for name, value in model.denoiser.network.transformer.named_parameters())
    long = pipe.text_encoder_3 if kind == "sd3" else pipe.text_encoder_2
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(long(ids)[0], model.space.t5.network(ids), atol=1e-4)
    again = load(tmp_path / "out", "cpu", dtype=torch.float32)
    settings = {"size": "16x12", "tokens": "8"}
    first, second = (m.generate("a cat", seed=1, steps=2, settings=settings)[0].tobytes() for m in (model, again))
    assert first == second


def test_the_command_line(made, tmp_path, capfd, monkeypatch):
    from PIL import Image

    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red apple", "--model", str(made["flux"]), "--steps", "2", "--seed", "7", "--set", "size=16x12",
             "--set", "tokens=16"]  # fmt: skip
    assert main([*words, "--set", "guidance=2", "--sampler", "euler", "--scale", "2", "--negative", "blue"]) == 0
    (path,) = capfd.readouterr().out.splitlines()
    with Image.open(path) as picture:
        assert picture.size == (16, 12)
    before = Path(path).read_bytes()
    assert main(["generate", "--like", path, "--model", str(made["flux"])]) == 0
    assert Path(path).read_bytes() == before
