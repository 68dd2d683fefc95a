"""A model of latents: made once, trained, resumed, sampled, edited, read back; nothing but the codec differs from pixels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import unfog
from unfog.editing import edit
from unfog.edits import EditRequest
from unfog.errors import UserError
from unfog.modalities.image.latent import WEIGHTS, LatentCodec, read_autoencoder, write_autoencoder
from unfog.modalities.image.space import PictureSpace
from unfog.requests import AverageRequest, Result, TrainRequest
from unfog.training.autoencoder import AutoencoderRecipe, begun, codec_of
from unfog.training.averages import average
from unfog.training.run import run_recipe

AUTOENCODER = {"factor": 4, "latent": 6, "width": 8, "encoder": 1, "decoder": 1, "fine_width": 8, "fine": 1}
UNET = {"unshuffle": 2, "widths": [8, 8], "blocks": [1, 1], "attention": [False, True], "embedding": 8, "text_dim": 384}


@pytest.fixture
def pictures():
    """(12, 32, 32, 4) coloured blocks on nothing."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 4, 4, 4), dtype=np.uint8)
    small[..., 3] = np.where(small[..., 3] > 128, 255, 0)
    small[small[..., 3] == 0] = 0
    return small.repeat(8, 1).repeat(8, 2)


@pytest.fixture
def autoencoder(tmp_path, pictures):
    """A folder of one that is a transform of patches, which is enough for blocks; 4·16 numbers in 6."""
    recipe = AutoencoderRecipe(learns="autoencoder", size=32, crop=16, settings=AUTOENCODER)
    network = begun(recipe, pictures)
    codec = codec_of(recipe, network, pictures)
    write_autoencoder(tmp_path / "ae", network, {**codec.card(), "name": "ae", "kind": "autoencoder", "training": {}})
    return tmp_path / "ae"


@pytest.fixture
def recipe(tmp_path, pictures, autoencoder):
    """A function from changes to a recipe file of latents."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"thing number {i}\n", encoding="utf-8")

    def write(**changes):
        fields = {
            "name": "latents",
            "data": str(folder),
            "size": 32,
            "autoencoder": str(autoencoder),
            "settings": UNET,
            "batch": 4,
            "steps": 4,
            "report_steps": 4,
            "decay": 0,
            "warm_up": 1,
            "recolour": 0.0,
            "snapshots": 0,
        }
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**fields, **changes}))
        return path

    return write


def test_latents_have_unit_scale_and_come_back(autoencoder, pictures):
    codec, card = read_autoencoder(autoencoder)
    x0 = codec.encode(pictures)
    assert tuple(x0.shape[1:]) == codec.shape(32, 32) == (6, 8, 8) and card["name"] == "ae"
    assert abs(float(x0.mean())) < 0.1 and 0.8 < float(x0.std()) < 1.1
    made = codec.decode(x0)
    assert made.shape == pictures.shape and made.dtype == np.uint8
    assert np.abs(made.astype(int) - pictures)[pictures[..., 3] > 0].mean() < 12  # flat blocks are few axes
    assert codec.preview(x0).shape == (12, 8, 8, 4)
    with pytest.raises(UserError, match="multiple of 4"):
        codec.shape(30, 32)


def test_a_large_picture_is_worked_through_in_tiles(autoencoder):
    codec, _ = read_autoencoder(autoencoder)
    large = np.random.default_rng(1).integers(0, 256, (1, 4 * 66, 4 * 70, 4), dtype=np.uint8)  # TILE is 64 latents
    x0 = codec.encode(large)
    with torch.no_grad():
        from unfog.modalities.image.codec import premultiply, straight

        mean = codec.network.encode(premultiply(torch.from_numpy(large)))[0]
        column = torch.tensor(codec.mean)[:, None, None], torch.tensor(codec.std)[:, None, None]
        assert torch.allclose(x0, (mean - column[0]) / column[1], atol=1e-4)
        whole = straight(codec.network.decode(mean))
    assert np.abs(codec.decode(x0).astype(int) - whole).max() <= 1  # to rounding


@pytest.mark.slow
def test_a_run_is_sampled_edited_resumed_and_checked(tmp_path, recipe, autoencoder, pictures, one_thread):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_recipe(TrainRequest(source=recipe(), out=whole))
    run_recipe(TrainRequest(source=recipe(steps=2), out=cut))
    (autoencoder / WEIGHTS).unlink()  # a run keeps its own
    run_recipe(TrainRequest(source=recipe(), out=cut, resume=True))
    for name in ("network.safetensors", WEIGHTS):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes(), name
    model = unfog.load(whole)
    assert isinstance(model.codec, LatentCodec) and model.space.shape == (6, 8, 8) and model.size == 32
    made = model.generate("a thing", seed=1, steps=2)[0]
    assert made.size == (32, 32) and made.mode == "RGBA"
    assert made.tobytes() == unfog.load(cut).generate("a thing", seed=1, steps=2)[0].tobytes()
    assert PictureSpace(model.card).card() == model.space.card()

    mask = np.zeros((32, 32), np.uint8)
    mask[9:20, 5:30] = 255  # not along the cells
    Image.fromarray(mask).save(tmp_path / "mask.png")
    kept = model.kind.keep(model.space, pictures[0], str(tmp_path / "mask.png"))
    assert kept.shape == (6, 8, 8) and not kept[:, 2:5, 1:8].any() and kept.sum() == 6 * (64 - 21)
    request = EditRequest(item="x.png", prompt="another", keep=str(tmp_path / "mask.png"), seed=3, steps=2)
    events = [e for e in edit(model, pictures[0], request) if isinstance(e, Result)]
    assert np.array_equal(events[0].item[mask < 128], pictures[0][mask < 128])
    assert not np.array_equal(events[0].item, pictures[0])

    (whole / "model" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=WEIGHTS):
        unfog.load(whole)


def test_an_average_keeps_the_autoencoder(tmp_path, recipe, autoencoder):
    run_recipe(TrainRequest(source=recipe(steps=2, snapshots=1, average_steps=0), out=tmp_path / "run"))
    average(AverageRequest(run=tmp_path / "run", ema=0.1, out=tmp_path / "average"))
    assert (tmp_path / "average" / WEIGHTS).read_bytes() == (tmp_path / "run" / "model" / WEIGHTS).read_bytes()
    assert unfog.load(tmp_path / "average").generate("a thing", seed=1, steps=1)[0].size == (32, 32)


@pytest.mark.parametrize("changes, said", [({"augment": 0.1}, "augment"), ({"buckets": True}, "buckets"),
                                           ({"autoencoder": "nowhere"}, "autoencoder.json")])  # fmt: skip
def test_what_latents_cannot_do_is_refused(tmp_path, recipe, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        run_recipe(TrainRequest(source=recipe(**changes), out=tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_an_unknown_codec_is_refused():
    with pytest.raises(UserError, match="codec"):
        PictureSpace({"size": 8, "styles": [], "codec": {"name": "wavelets"}})
