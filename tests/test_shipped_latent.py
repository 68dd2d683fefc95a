"""The shipped latent model: pictures of 128x128 through its own autoencoder, by measures that were not trained on."""

import numpy as np
import pytest
from PIL import Image

import unfog
from unfog.editing import EditRequest, edit
from unfog.errors import UserError
from unfog.requests import Result

FIELDS = {"style": "twemoji", "seed": 1, "n": 4, "steps": 12}


@pytest.fixture(scope="module")
def model():
    return unfog.load("emoji-128")


def opaque(picture):
    """Alpha (H, W) in [0, 1] and the mean colour of what is seen, (3,)."""
    pixels = np.asarray(picture) / 255
    alpha = pixels[..., 3]
    return alpha, (pixels[..., :3] * alpha[..., None]).sum((0, 1)) / max(alpha.sum(), 1.0)


def test_pictures_are_large_and_transparent_and_take_the_colour_that_was_asked(model):
    made = {colour: model.generate(f"{colour} heart", **FIELDS) for colour in ("red", "blue")}
    assert all(p.size == (128, 128) and p.mode == "RGBA" for p in made["red"])
    alphas, reds = zip(*map(opaque, made["red"]), strict=True)
    assert all(0.2 < a.mean() < 0.95 and (a < 0.05).mean() > 0.05 < (a > 0.95).mean() for a in alphas)
    blues = [opaque(p)[1] for p in made["blue"]]
    assert np.mean([c[0] - c[2] for c in reds]) > 0.3 and np.mean([c[2] - c[0] for c in blues]) > 0.15


def test_a_seed_is_a_picture_and_a_mask_keeps_every_bit(model, tmp_path):
    first = model.generate("a dog", **FIELDS)[0]
    assert model.generate("a dog", **{**FIELDS, "n": 1})[0].tobytes() == first.tobytes()
    mask = np.zeros((128, 128), np.uint8)
    mask[30:70, 41:90] = 255  # not along the cells of 4x4
    Image.fromarray(mask).save(tmp_path / "mask.png")
    request = EditRequest(item="dog.png", prompt="a cat", mask=str(tmp_path / "mask.png"), seed=2, steps=8)
    changed = [event for event in edit(model, np.asarray(first), request) if isinstance(event, Result)][0]
    before, after = np.asarray(first), np.asarray(changed.item)
    assert (before[mask == 0] == after[mask == 0]).all() and (before[mask > 0] != after[mask > 0]).any()


def test_what_no_branch_ships_for_is_refused(model):
    picture = Image.new("RGBA", (16, 16), "red")
    for kind, wish in (("style", {"style_image": [{"picture": picture}]}),
                       ("control", {"control": [{"kind": "lineart", "picture": picture}]})):  # fmt: skip
        with pytest.raises(UserError) as caught:
            model.generate("a dog", **FIELDS | wish)
        assert str(caught.value).startswith(f"{kind}: emoji-128 has no branch for it") and "\n" not in str(caught.value)
