"""Loss by noise level: of exact denoisers it is exact; the file is the same again, by ourselves and by matplotlib."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from unfog import plots
from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import denoising_loss
from unfog.errors import UserError
from unfog.model import Model
from unfog.plots.data import held_out, pictures_of, some_of
from unfog.plots.loss import comparable

from .conftest import write_model


@pytest.mark.parametrize("schedule", ["cosine", "linear", "edm"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
def test_losses_of_all_predictions_are_in_one_unit(schedule, prediction):
    process = Gaussian(schedule_from_config({"name": schedule}))
    denoiser = Preconditioned(lambda x, logsnr, cond: 0.3 * x + 0.1, process, prediction)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(6, 4, 8, 8, generator=generator).double(), torch.randn(6, 4, 8, 8, generator=generator).double()
    t = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    error = (denoiser(process.mix(x0, eps, t), t) - x0).square().flatten(1).mean(1)
    assert torch.allclose(denoising_loss(denoiser, x0, None, t, eps, comparable), error * (alpha**2 + sigma**2) / sigma**2)


def test_the_best_guess_of_pixels_without_structure_has_loss_one():
    from unfog.diffusion import GaussianDenoiser

    process = Gaussian(schedule_from_config({"name": "linear"}))
    exact = GaussianDenoiser(process, torch.zeros(4, 8, 8), std=1.0)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(400, 4, 8, 8, generator=generator) for _ in range(2))
    for level in (-1.0, 0.0, 2.0):
        t = float(process.schedule.time(-2 * level))
        alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
        error = (exact(process.mix(x0, eps, t), t) - x0).square().mean()
        assert float(error) * (alpha**2 + sigma**2) / sigma**2 == pytest.approx(1, abs=0.02)


def test_curves_are_of_the_splits_that_they_name(model, folder):
    drawn = plots.draw("loss", model, n=6, levels="1,-1")
    train, held = drawn.facts["curves"]
    assert (train["split"], held["split"], train["n"], held["n"]) == ("train", "heldout_pair", 6, 6)
    for curve in (train, held):
        assert [point["level"] for point in curve["levels"]] == [-1, 1]
        assert all(0 < p["low"] <= p["loss"] <= p["high"] for p in curve["levels"])
    assert train["levels"] != held["levels"] and [line.name for line in drawn.lines.series] == ["trained on", "held out"]
    again = plots.draw("loss", [folder, str(folder) + "/../tiny"], n=6, levels="1,-1", data=model.card["training"]["data"])
    assert [c["levels"] for c in again.facts["curves"]] == [train["levels"], held["levels"]] * 2
    own = plots.draw("loss", model, n=6, levels="1,-1", own=True)
    assert np.allclose([p["loss"] for p in own.facts["curves"][0]["levels"]], [p["loss"] for p in train["levels"]], rtol=1e-5)


def test_a_loss_is_computed_by_hand(model):
    (curve, _) = plots.draw("loss", model, n=4, levels=[0, 2]).facts["curves"]
    pictures = some_of(pictures_of(None, model), "train", 4)
    assert len({r.concept for r in pictures.records}) == 4
    rng = np.random.default_rng(0)
    order = rng.permutation(4)
    from unfog.modalities.image.captions import captions

    draws = np.random.default_rng([0, 2])
    lines = [captions(record, draws) for record in pictures.records]
    x0 = model.codec.encode(np.stack([pictures.load(i) for i in order]))
    eps = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    cond = model.condition([lines[i][0] for i in order], [pictures.records[i].style for i in order])
    for point in curve["levels"]:
        t = float(model.denoiser.process.schedule.time(-2 * point["level"]))
        x_t = model.denoiser.process.mix(x0, eps, t)
        sigma = model.denoiser.process.schedule.sigma(t)
        with torch.inference_mode():
            error = float((model.denoiser(x_t, t, cond) - x0).square().mean())
        assert point["loss"] == pytest.approx(error / sigma**2, rel=2e-3)  # text states are kept as float16


def test_data(model, data, tmp_path):
    pictures = pictures_of(None, model)
    assert len(pictures) == 20 and held_out(pictures) == "heldout_pair" and len(some_of(pictures, "train", 100).records) == 12
    assert held_out(some_of(pictures, "train", 5)) is None
    one = plots.draw("loss", model, data=str(data), n=4, levels="0,1")
    assert [line.name for line in one.lines.series] == ["trained on", "held out"]
    for fields, line in [({"n": 2}, "less than 4"), ({"levels": "0"}, "is empty"), ({"levels": "0,99"}, "not in [-9, 9]"),
                         ({"levels": "0,0"}, "a value twice"), ({"data": "emoji-63"}, "emoji-63")]:  # fmt: skip
        with pytest.raises(UserError) as caught:
            plots.draw("loss", model, **fields)
        assert line in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="models: is empty"):
        plots.draw("loss")


@pytest.fixture
def curve(model):
    return plots.draw("loss", model, n=4, levels="-1,0,1")


def test_svg_needs_nothing_and_is_the_same_again(curve, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = curve.save(tmp_path / "loss.svg")
    root = ElementTree.fromstring(path.read_text())
    assert (
        root.tag.endswith("svg") and path.read_bytes() == curve.data() and not re.search(r"var\(|<script|href", path.read_text())
    )
    for suffix in (".png", ".pdf"):
        with pytest.raises(UserError) as caught:
            curve.save(tmp_path / f"loss{suffix}")
        assert "unfog[plot]" in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / f"loss{suffix}").exists()
    with pytest.raises(UserError, match=".svg or .png or .pdf"):
        curve.save(tmp_path / "loss.jpg")


def test_matplotlib_files_are_the_same_again_whatever_a_user_has_set(curve, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    before = curve.save(tmp_path / "loss.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "figure.dpi": 40}):
        assert curve.data(".png") == before and matplotlib.rcParams["font.size"] == 20
    assert curve.data(".pdf") == curve.data(".pdf")
    assert curve.save(tmp_path / "loss.png").read_bytes() == before
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > 800 and '"curves"' in image.info["unfog"]


def test_many_pictures_are_measured_in_parts(model, monkeypatch):
    import unfog.training.watch as watch

    seen = []
    forward = model.denoiser.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(watch, "COUNT", 5)
    (train, _) = plots.draw("loss", model, n=12, levels="0,1").facts["curves"]
    forward.remove()
    assert train["n"] == 12 and max(seen) == 5 and sum(seen) == 2 * (12 + 8)


def test_relative_losses(model, data, tmp_path):
    worse = Model(write_model(tmp_path / "worse", data, name="worse"), dtype=torch.float32)
    with torch.no_grad():
        for parameter in worse.denoiser.network.parameters():
            parameter.mul_(1.5)
    drawn = plots.draw("loss", [model, worse], n=8, levels="-1,1", relative=True)
    plain = plots.draw("loss", [model, worse], n=8, levels="-1,1").facts["curves"]
    assert [(r["of"], r["over"], r["split"]) for r in drawn.facts["ratios"]] == [("worse", "tiny", "train"),
                                                                                ("worse", "tiny", "heldout_pair")]  # fmt: skip
    for ratio, a, b in zip(drawn.facts["ratios"], plain[:2], plain[2:], strict=True):
        for point, below, above in zip(ratio["levels"], a["levels"], b["levels"], strict=True):
            assert point["ratio"] == pytest.approx(above["loss"] / below["loss"])
            assert point["low"] < point["ratio"] < point["high"]
    # the same pictures with the same noise: of a model and itself nothing is left to chance
    itself = plots.draw("loss", [model.folder, str(model.folder) + "/."], n=8, levels="-1,1", relative=True)
    assert all((p["low"], p["ratio"], p["high"]) == (1, 1, 1) for r in itself.facts["ratios"] for p in r["levels"])
    (gap,) = plots.draw("loss", model, n=8, levels="-1,1", relative=True).facts["ratios"]
    assert (gap["split"], gap["over_split"]) == ("heldout_pair", "train") and gap["levels"][0]["low"] < gap["levels"][0]["high"]
    with pytest.raises(UserError, match="own losses of different models"):
        plots.draw("loss", [model, worse], relative=True, own=True)
