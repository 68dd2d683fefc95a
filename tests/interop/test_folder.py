"""Malicious and broken folders: one line that names the file, under a second, and nothing of theirs is executed."""

import json
import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import unfog
from unfog.errors import UserError
from unfog.interop.clip import Tokens
from unfog.interop.networks import config_of
from unfog.interop.noise import Steps
from unfog.interop.safe import Entry, Folder, Weights, check_shapes, header

BAIT = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip


class Bomb:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def safetensors(path, entries, data=b"", length=None):
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that passes all checks up to the building of networks."""
    folder = tmp_path_factory.mktemp("whole") / "sd"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(BAIT))
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    import shutil

    return shutil.copytree(whole, tmp_path / "sd")


@pytest.fixture(autouse=True)
def _quick_and_harmless(tmp_path):
    start = time.process_time()
    yield
    assert time.process_time() - start < 1.0
    assert not (tmp_path / "mark").exists(), "something was executed"


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    for word in words:
        assert word in line, line


# safetensors files


def test_a_good_file_is_read(tmp_path):
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}, tmp_path / "m.safetensors")
    found = header(tmp_path / "m.safetensors")
    assert found["a"].shape == (2, 3) and found["b"].dtype == "F16"
    assert torch.equal(Weights(tmp_path / "m.safetensors", found).load()["a"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x580])
def test_a_header_as_long_as_a_pickle_begins(tmp_path, length):
    raw = json.dumps({"a": entry(0, 4)}).encode().ljust(length)
    assert header(safetensors(tmp_path / "m.safetensors", raw, b"0" * 4))["a"].shape == (1,)


@pytest.mark.parametrize(
    "entries, data, word",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, "overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, b"0" * 8, "overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, b"0" * 16, "belong to nothing"),
        ({"a": entry(8, 16)}, b"0" * 16, "belong to nothing"),
        ({"a": entry(0, 8)}, b"0" * 4, "less than its header says"),
        ({"a": entry(0, 8)}, b"0" * 80, "more than its header says"),
        ({"a": entry(0, 2**40, [2**38])}, b"0" * 8, "less than its header says"),
        ({"a": entry(0, 2**60, [2**58])}, b"", "damaged"),
        ({"a": entry(0, 8, [3])}, b"0" * 8, "its shape"),
        ({"a": entry(0, 8, [2**30, 2**30])}, b"0" * 8, "its shape"),
        ({"a": entry(8, 0, [2])}, b"0" * 8, "its shape"),
        ({"a": entry(0, 8, [-2])}, b"0" * 8, "damaged"),
        ({"a": entry(0, 8, ["2"])}, b"0" * 8, "damaged"),
        ({"a": entry(0, 8, [True, 2])}, b"0" * 8, "damaged"),
        ({"a": entry(0, 8, dtype="PYOBJ")}, b"0" * 8, "damaged"),
        ({"a": {"dtype": "F32"}}, b"", "damaged"),
        ({"a": [1]}, b"", "damaged"),
        ({"a": entry(0, 4, [1] * 500)}, b"0" * 4, "damaged"),
        ({"n" * 5000: entry(0, 4)}, b"0" * 4, "damaged"),
        ({"__metadata__": {"run": {"a": 1}}, "a": entry(0, 4)}, b"0" * 4, "metadata"),
        ({"__metadata__": {"only": "this"}}, b"", "0 tensors"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0" * 4,
         "twice"),
        (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"0" * 4, "NaN"),
        (b'{"a": ' + b"[" * 10_000, b"", "nested too deep"),
        (b'{"a": 1', b"", "not readable as JSON"),
        (b"[1, 2]", b"", "no safetensors file"),
        (b'{"a": "\xff"}', b"", "not readable as JSON"),
    ],
)  # fmt: skip
def test_broken_safetensors(tmp_path, entries, data, word):
    refused(lambda: header(safetensors(tmp_path / "m.safetensors", entries, data)), "m.safetensors", word)


def test_a_config_that_is_deep_far_behind(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": 1,' + b" " * 70_000 + b'"b": ' + b"[" * 60 + b"]" * 60 + b"}")
    refused(lambda: Folder(tmp_path).json("config.json"), "config.json", "nested too deep")


@pytest.mark.parametrize("length", [2**63, 10**9, 5_000])
def test_a_header_that_claims_too_much(tmp_path, length):
    refused(lambda: header(safetensors(tmp_path / "m.safetensors", {"a": entry(0, 4)}, b"0" * 4, length)), "header claims")


@pytest.mark.parametrize("bytes_", [b"", b"\x01", b"\x00" * 8, b"\x00" * 9])
def test_a_file_of_almost_nothing(tmp_path, bytes_):
    (tmp_path / "m.safetensors").write_bytes(bytes_)
    refused(lambda: header(tmp_path / "m.safetensors"), "no safetensors file")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    save_file({"a": torch.tensor([1.0, value, 2.0]).half()}, tmp_path / "m.safetensors")
    refused(Weights(tmp_path, header(tmp_path / "m.safetensors")).load, "not finite")


# Pickles


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pth", "model.safetensors", "model"])
def test_pickles_under_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark"), protocol=2))
    refused(lambda: unfog.load(tmp_path / name), name, "pickle", "convert it")


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_torch_archives_under_any_name(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(tmp_path / "mark")))
    refused(lambda: unfog.load(tmp_path / name), name, "pickle", "convert it")


def test_a_folder_with_pickled_weights_only(folder, tmp_path):
    (folder / "text_encoder/pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(lambda: unfog.load(folder, "cpu"), "pytorch_model.bin", "pickle")


def test_a_pickle_in_the_place_of_a_folders_weights(folder, tmp_path):
    (folder / "text_encoder/model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(lambda: unfog.load(folder, "cpu"), "text_encoder/model.safetensors", "pickle")


def test_a_shard_that_is_a_pickle(folder, tmp_path):
    (folder / "unet/part.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    shards(folder, {"a": "part.bin"})
    refused(lambda: Folder(folder).weights("unet", "diffusion_pytorch_model"), "part.bin", "pickle")


# model_index.json


@pytest.mark.parametrize(
    "change, word",
    [
        ({"unet": ["os", "system"]}, "os.system"),
        ({"unet": ["subprocess", "Popen"]}, "which unfog does not run"),
        ({"unet": ["my_pipeline", "UNet2DConditionModel"]}, "my_pipeline"),
        ({"unet": ["diffusers", "UNet2DConditionModel", "x"]}, "a library and a class"),
        ({"unet": {"library": "diffusers"}}, "a library and a class"),
        ({"vae": ["transformers", "AutoModel"]}, "AutoModel"),
        ({"extra": ["builtins", "eval"]}, "builtins.eval"),
        ({"text_encoder": ["..", "evil"]}, "which unfog does not run"),
        ({"_class_name": "MyPipeline"}, "unknown"),
        ({"_class_name": ["pipeline.py", "MyPipeline"]}, "unknown"),
        ({"_class_name": None}, "unknown"),
        ({"custom_pipeline": "evil/repo"}, "asks for code"),
        ({"trust_remote_code": True}, "asks for code"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for code"),
        ({"vae": [None, None]}, "names no vae"),
        ({"scheduler": ["diffusers", "EvilScheduler"]}, "which unfog does not run"),
    ],
)
def test_an_index_that_names_what_is_not_run(folder, change, word):
    (folder / "model_index.json").write_text(json.dumps({**BAIT, **change}))
    refused(lambda: unfog.load(folder, "cpu"), "model_index.json", word)


@pytest.mark.parametrize(
    "text, word",
    [("{", "JSON"), ("[]", "object"), ("[" * 100_000, "nested"), ('{"a":' * 60 + "1" + "}" * 60, "nested"),
     ('{"_class_name": "A", "_class_name": "B"}', "twice"), ('{"a": 1e999}', "beyond"), ('{"a": NaN}', "NaN"),
     ('{"a": ' + "9" * 5000 + "}", "JSON"), (" " * 2_000_000, "bytes"), ('{"a": "' + "x" * 20_000 + '"}', "characters"),
     ("\udcff", "JSON")],
)  # fmt: skip
def test_an_index_that_is_no_index(folder, text, word):
    (folder / "model_index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: unfog.load(folder, "cpu"), "model_index.json", word)


# Links, shards, configs


def test_links_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "unet/config.json").unlink()
    (folder / "unet/config.json").symlink_to(tmp_path / "secret.json")
    refused(lambda: Folder(folder).json("unet/config.json"), "unet/config.json", "link out of the folder")


def test_a_linked_part(folder, tmp_path):
    (tmp_path / "other").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "other/diffusion_pytorch_model.safetensors")
    os.rename(folder / "vae", folder / "old")
    (folder / "vae").symlink_to(tmp_path / "other")
    refused(lambda: Folder(folder).weights("vae", "diffusion_pytorch_model"), "link out of the folder")


def test_links_in_a_circle(folder):
    (folder / "unet/config.json").unlink()
    (folder / "unet/config.json").symlink_to("config.json")
    refused(lambda: Folder(folder).json("unet/config.json"), "missing")


def test_links_into_the_hubs_blobs_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "models--a/blobs", tmp_path / "models--a/snapshots/main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert Folder(snapshot).json("config.json") == {"a": 1}


def test_a_pipe_in_the_place_of_a_file(folder):
    (folder / "unet/config.json").unlink()
    os.mkfifo(folder / "unet/config.json")
    refused(lambda: Folder(folder).json("unet/config.json"), "is no file")


def shards(folder, told, tensors=None):
    for name in sorted(set(told.values())):
        own = {key: torch.ones(2) for key, file in (tensors or told).items() if file == name}
        if own and name.endswith(".safetensors") and "/" not in name:
            save_file(own, folder / "unet" / name)
    index = {"metadata": {"total_size": 8}, "weight_map": told}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_put_together(folder):
    shards(folder, {"a": "1.safetensors", "b": "2.safetensors"})
    assert set(Folder(folder).weights("unet", "diffusion_pytorch_model").load()) == {"a", "b"}


@pytest.mark.parametrize(
    "told, held, word",
    [
        ({"a": "../../outside.safetensors"}, {}, "outside of its folder"),
        ({"a": "/etc/passwd"}, {}, "outside of its folder"),
        ({"a": "1.safetensors", "b": "gone.safetensors"}, {"a": "1.safetensors"}, "missing"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"a": "1.safetensors"}, "in none of its shards"),
        ({"a": "1.safetensors"}, {"a": "1.safetensors", "b": "1.safetensors"}, "does not place there"),
        ({"a": 7}, {}, "weight_map"),
        ({}, {}, "weight_map"),
    ],
)
def test_an_index_of_shards_that_is_wrong(folder, told, held, word):
    for name in sorted(set(held.values())):
        save_file({key: torch.ones(2) for key, file in held.items() if file == name}, folder / "unet" / name)
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    refused(lambda: Folder(folder).weights("unet", "diffusion_pytorch_model"), word)


def test_no_weights_at_all(folder):
    refused(lambda: Folder(folder).weights("unet", "diffusion_pytorch_model"), "missing", "get the whole folder")


@pytest.mark.parametrize(
    "wanted, word",
    [({"a": (3,)}, "[3]"), ({"a": (2,), "b": (1,)}, "'b' is missing"), ({}, "no part of the network"), ({"a": (2, 1)}, "[2, 1]")],
)
def test_tensors_that_do_not_fit(tmp_path, wanted, word):
    weights = Weights(tmp_path, {"a": Entry("F32", (2,), tmp_path / "m.safetensors")})
    refused(lambda: check_shapes(wanted, weights), word)


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": [2**40, 2**40]},
        {"layers_per_block": 10**6},
        {"num_hidden_layers": 10**9},
        {"hidden_size": -1},
        {"vocab_size": 1.5},
        {"in_channels": "4"},
        {"block_out_channels": [32] * 1000},
        {"down_block_types": ["DownBlock2D"] * 100},
        {"transformer_layers_per_block": [[10**7]]},
        {"auto_map": {"AutoModel": "modeling_evil.Model"}},
        {"cross_attention_dim": True},
        {"sample_size": 10**30},
    ],
)
def test_configs_of_absurd_size(folder, config):
    (folder / "unet/config.json").write_text(json.dumps(config))
    refused(lambda: config_of(Folder(folder), "unet"), "unet/config.json", next(iter(config)))


# Tokens and noise


@pytest.mark.parametrize(
    "vocab, merges, word",
    [
        ("{}", "", "no list of words"),
        ('{"a": "b"}', "", "no list of words"),
        ('{"a": -1}', "", "no list of words"),
        ('{"a": 99999999}', "", "no list of words"),
        ('{"a": 1}', "", "lacks the token"),
        ('{"<|startoftext|>": 0, "<|endoftext|>": 1}', "a b c", "no list of pairs"),
        ('{"<|startoftext|>": 0, "<|endoftext|>": 1}', "x y", "do not fit"),
        ("x" * 9_000_000, "", "bytes"),
        ('{"<|startoftext|>": 0, "<|endoftext|>": 1}', "\udcff", "UTF-8"),
    ],
)
def test_tokenizers_that_are_none(folder, vocab, merges, word):
    (folder / "tokenizer/vocab.json").write_text(vocab)
    (folder / "tokenizer/merges.txt").write_bytes(merges.encode("utf-8", "surrogateescape"))
    refused(lambda: Tokens.read(Folder(folder), "tokenizer"), "tokenizer", word)


@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": "Evil"}, {"beta_start": -1.0}, {"beta_end": "0.02"}, {"beta_schedule": "own"}, {"num_train_timesteps": 0},
        {"num_train_timesteps": 10**9}, {"trained_betas": [2.0, 3.0, 4.0]}, {"trained_betas": "x"},
    ],
)  # fmt: skip
def test_noise_that_is_none(tmp_path, fields):
    refused(lambda: Steps(tmp_path / "s.json", {"_class_name": "DDIMScheduler", **fields}).schedule(), "s.json")


def test_unknown_settings_of_noise(tmp_path):
    steps = Steps(tmp_path / "s.json", {"_class_name": "DDIMScheduler", "prediction_type": "vee", "timestep_spacing": "odd"})
    refused(steps.prediction, "prediction_type", "vee")
    refused(lambda: steps.grid(steps.schedule())("ddim", 20), "timestep_spacing", "odd")
