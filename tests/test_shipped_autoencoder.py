"""The shipped autoencoder of 128-pixel pictures, on held-out ones."""

import numpy as np
import pytest
import torch

import unfog.data
from unfog.errors import UserError
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.latent import read_autoencoder


def seen(pictures):
    """Straight RGBA (B, H, W, 4) uint8 -> premultiplied, in [0, 1]: what of the colours shows."""
    colour, alpha = np.split(pictures / 255.0, [3], axis=-1)
    return np.concatenate([colour * alpha, alpha], -1)


@pytest.fixture(scope="module")
def codec():
    return read_autoencoder("emoji-128-autoencoder")[0]


@pytest.fixture(scope="module")
def pictures():
    data = PictureSet.open(unfog.data.path("emoji-128-heldout"))
    return np.stack([data.load(i, 128) for i in range(0, len(data.records), len(data.records) // 24)][:24])


def test_held_out_pictures_come_back(codec, pictures):
    with torch.inference_mode():
        latents = codec.encode(pictures)
        again = codec.decode(latents)
    assert latents.shape == (24, 8, 32, 32) and 0.8 < latents.std() < 1.2
    psnr = -10 * np.log10(((seen(pictures) - seen(again)) ** 2).mean((1, 2, 3)))
    assert psnr.mean() > 37 and psnr.min() > 25


def test_a_preview_is_the_picture_made_small(codec, pictures):
    with torch.inference_mode():
        small = codec.preview(codec.encode(pictures))
    near = seen(pictures).reshape(24, 32, 4, 32, 4, 4).mean((2, 4))
    assert np.abs(seen(small) - near).mean() < 0.05 < 0.1 < np.abs(seen(small) - near[::-1]).mean()


def test_a_name_that_is_none_lists_what_is_shipped():
    with pytest.raises(UserError, match="emoji-128-autoencoder"):
        read_autoencoder("emoji-128-autoencodr")
