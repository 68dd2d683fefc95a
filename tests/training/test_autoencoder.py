"""Training an autoencoder: recipes, batches by number, resuming, what is written, several processes' shares."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.errors import UserError
from unfog.evaluation.reconstruction import psnr, ssim
from unfog.modalities.image.latent import read_autoencoder
from unfog.requests import TrainRequest
from unfog.training.autoencoder import AutoencoderRecipe, Reconstruction, begun, is_autoencoder, read_autoencoder_recipe
from unfog.training.run import run_recipe

SETTINGS = {"factor": 4, "latent": 4, "width": 8, "encoder": 1, "decoder": 1, "fine_width": 8, "fine": 1}
FIELDS = {"learns": "autoencoder", "size": 16, "crop": 16, "settings": SETTINGS, "batch": 4, "steps": 6, "report_steps": 6,
          "warm_up": 1, "decay": 0, "lr": 3e-3, "snapshots": 0, "accumulate": 1}  # fmt: skip


@pytest.fixture
def pictures():
    """(12, 16, 16, 4) discs of several colours on nothing."""
    y, x = np.mgrid[:16, :16]
    out = np.zeros((12, 16, 16, 4), np.uint8)
    for i in range(12):
        inside = (x - 5 - i % 5) ** 2 + (y - 8) ** 2 < 20 + 2 * i
        out[i][inside] = [20 * i, 255 - 20 * i, 90, 255]
    return out


@pytest.fixture
def written(tmp_path, pictures):
    """A function from changes of the recipe to its file, beside a folder of pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:02}.png")

    def write(**changes):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**FIELDS, "data": str(folder), **changes}))
        return path

    return write


def test_psnr_and_ssim_are_the_textbook_s(pictures):
    assert psnr(pictures, pictures).min() == 70 and np.allclose(ssim(pictures, pictures), 1)
    opaque = np.full((1, 16, 16, 4), 255, np.uint8)
    darker = opaque.copy()
    darker[..., :3] = 204  # 0.2 in three of four channels
    assert psnr(opaque, darker)[0] == pytest.approx(-10 * np.log10(0.75 * 0.04), abs=1e-4)
    # of two flat pictures SSIM is its first factor
    flat = (2 * 0.8 + 1e-4) / (1 + 0.64 + 1e-4)
    assert ssim(opaque, darker)[0] == pytest.approx((3 * flat + 1) / 4, abs=1e-5)
    hidden = pictures.copy()
    hidden[hidden[..., 3] == 0] = [9, 9, 9, 0]  # the colour of nothing means nothing
    assert psnr(pictures, hidden).min() == 70


def test_a_batch_is_of_its_number_and_its_rows_are_its_own(pictures):
    recipe = AutoencoderRecipe.model_validate({**FIELDS, "crop": 8, "batch": 6})
    task = Reconstruction(recipe, torch.from_numpy(pictures), [str(i) for i in range(12)], begun(recipe, pictures))
    whole, odd = task.batch(3), task.batch(3, slice(1, None, 2))
    assert all(torch.equal(whole[key][1::2], odd[key]) for key in whole)
    assert not torch.equal(whole["x"], task.batch(4)["x"])
    assert sorted(np.concatenate([task.chosen(0), task.chosen(1)]).tolist()) == list(range(12))
    assert task.loss(whole).shape == (6,)


def test_the_loss_sees_what_alpha_hides(pictures):
    recipe = AutoencoderRecipe.model_validate(FIELDS)
    task = Reconstruction(recipe, torch.from_numpy(pictures), [""] * 12, begun(recipe, pictures))
    batch = task.batch(0)
    plain = float(task.loss(batch).detach().mean())
    for weight in ("edges", "square", "kl", "features"):
        more = Reconstruction(recipe.model_copy(update={weight: 2.0}), task.pictures, task.files, task.network)
        assert float(more.loss(batch).detach().mean()) > plain, weight


@pytest.mark.slow
def test_a_run_learns_resumes_to_the_bit_and_is_read_back(tmp_path, written, one_thread, pictures):
    path = written(steps=40, report_steps=40)
    assert is_autoencoder(path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_recipe(TrainRequest(source=path, out=whole))
    run_recipe(TrainRequest(source=written(steps=15, report_steps=40), out=cut))
    run_recipe(TrainRequest(source=written(steps=40, report_steps=40), out=cut, resume=True))
    for name in ("model/autoencoder.safetensors", "model/autoencoder.json"):
        a, b = (whole / name).read_bytes(), (cut / name).read_bytes()
        assert a == b, name
    codec, card = read_autoencoder(whole)
    made = codec.decode(codec.encode(pictures))
    recipe = read_autoencoder_recipe(path)
    first = begun(recipe, pictures).eval()
    with torch.no_grad():
        from unfog.modalities.image.codec import premultiply, straight

        before = straight(first(premultiply(torch.from_numpy(pictures))))
    assert psnr(pictures, made).mean() > psnr(pictures, before).mean()
    assert card["training"]["steps"] == 40 and "psnr" in card["training"]["held_out"]
    x0 = codec.encode(pictures)
    assert abs(float(x0.mean())) < 0.1 and 0.8 < float(x0.std()) < 1.1
    page = (whole / "report.html").read_text()
    assert "Held-out pictures and their reconstructions" in page and "held-out PSNR, step 40" in page and "predicts" not in page
    assert (whole / "samples" / "0000040.png").is_file()


@pytest.mark.parametrize("changes, said", [
    ({"lrr": 1}, "lrr"), ({"crop": 32}, "crop"), ({"crop": 10, "size": 18}, "multiple of factor"),
    ({"settings": {"widht": 3}}, "settings"), ({"compile": "whole"}, "compile"), ({"learns": "autoencoder", "kl": -1}, "kl"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(written, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        read_autoencoder_recipe(written(**changes))
    assert "\n" not in str(caught.value)


def test_options_of_other_runs_are_refused(written, tmp_path):
    with pytest.raises(UserError, match="budget"):
        run_recipe(TrainRequest(source=written(), out=tmp_path / "run", budget="30m"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_folder_is_refused(tmp_path, pictures):
    with pytest.raises(UserError, match=r"autoencoder\.json"):
        read_autoencoder(tmp_path)
    (tmp_path / "autoencoder.json").write_text("{}")
    with pytest.raises(UserError, match="manifest"):
        read_autoencoder(tmp_path)
