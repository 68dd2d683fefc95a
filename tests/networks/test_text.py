"""The frozen text encoder: meaning, independence of the batch, padding, damaged files."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import unfog.networks.text
from unfog.errors import UserError
from unfog.networks.text import TextEncoder, quantise

FOLDER = Path(unfog.networks.text.__file__).parent.parent / "pretrained" / "minilm-l6"
APPLE, FRUIT, CAR = "a red apple", "a crimson fruit", "a fast car"


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load()


def sentence(encoder, prompts):
    """Unit vectors as the model's authors make them: the mean of the real tokens' states."""
    states, mask = encoder(prompts)
    return F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def test_meaning_as_in_the_reference(encoder):
    # cosine similarities of sentence-transformers/all-MiniLM-L6-v2 in float32
    apple, fruit, car = sentence(encoder, [APPLE, FRUIT, CAR])
    assert abs(float(apple @ fruit) - 0.591) < 0.02
    assert abs(float(apple @ car) - 0.26) < 0.02


def test_shapes_and_padding(encoder):
    states, mask = encoder([APPLE, "", "word " * 200])
    assert states.shape == (3, 32, 384) and states.dtype == torch.float32 and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [5, 2, 32]  # with the two tokens that mark start and end
    assert torch.equal(states[~mask], torch.zeros_like(states[~mask]))
    assert (states[mask].abs().sum(-1) > 0).all()


def test_states_do_not_depend_on_the_batch(encoder):
    prompts = [APPLE, "an owl that reads a thick old book by candle light", CAR, ""]
    together, _ = encoder(prompts)
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(encoder([prompt])[0][0], together[i], atol=1e-5, rtol=1e-5)


def test_case_does_not_count_and_order_does(encoder):
    a, b, c = encoder(["a Red apple", APPLE, "apple red a"])[0]
    assert torch.equal(a, b) and not torch.allclose(b, c, atol=0.1)


def test_a_damaged_byte_is_noticed(tmp_path):
    folder = tmp_path / "minilm"
    shutil.copytree(FOLDER, folder)
    weights = folder / "minilm-l6.safetensors"
    with open(weights, "r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(UserError, match=r"minilm-l6\.safetensors: the file is damaged"):
        TextEncoder.load(folder)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        TextEncoder.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json: missing"):
        TextEncoder.load(tmp_path / "empty")


def test_rounding_to_bytes_is_within_half_a_step():
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 6)[:, None]
    rounded, scale = quantise(weight)
    assert rounded.dtype == torch.int8 and scale.shape == (6, 1)
    assert ((rounded * scale.float() - weight).abs() <= scale.float() * 0.51).all()
