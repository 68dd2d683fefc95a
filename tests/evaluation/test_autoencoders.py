"""`unfog evaluate` of an autoencoder: against exact figures, on what is held out, with a noise floor."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.errors import UserError
from unfog.evaluation import evaluate
from unfog.evaluation.autoencoders import FLOOR, OTHER, OWN
from unfog.modalities.image.latent import LatentCodec, write_autoencoder
from unfog.networks.autoencoder import Autoencoder
from unfog.requests import EvaluateRequest

SETTINGS = {"factor": 2, "latent": 16, "width": 8, "encoder": 1, "decoder": 1, "fine": 0}


@pytest.fixture
def data(tmp_path):
    """60 soft pictures of 16 px, 30 of them held out, in two styles."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(60):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
        pixels = np.asarray(small).copy()
        pixels[..., 3] = 255
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": f"thing {i}", "style": ("round", "flat")[i // 2 % 2],
                      "split": ("train", "heldout_concept")[i % 2]})  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def written(tmp_path, data):
    """A function from how many of 16 axes are kept to a folder: 16 lose nothing but rounding."""

    def write(kept):
        torch.manual_seed(0)
        network = Autoencoder(**SETTINGS)
        network.begin(torch.rand(2000, 16))
        with torch.no_grad():
            network.decoder.straight["head"].weight[:, kept:] = 0
        card = {"settings": SETTINGS, "mean": [0.0] * 16, "std": [1.0] * 16}
        told = {"name": f"of-{kept}", "kind": "autoencoder", "training": {"data": str(data), "steps": 0, "recipe": {"size": 16}}}
        write_autoencoder(tmp_path / f"ae{kept}", network, {**LatentCodec(card).card(), **told})
        return tmp_path / f"ae{kept}"

    return write


def test_what_is_kept_and_what_is_lost(tmp_path, written, data):
    request = EvaluateRequest(models=[str(written(16)), str(written(4))], n=30, reader="pixels", force=True,
                              out=tmp_path / "report.html")  # fmt: skip
    found = evaluate(request)
    whole, lossy = found.reports
    assert whole.samples == 30 and whole.data == "pictures"
    assert whole.find("PSNR", "all").figure.value > 45 > lossy.find("PSNR", "all").figure.value
    assert whole.find("SSIM", "all").figure.value > 0.99 > lossy.find("SSIM", "all").figure.value
    parts = [whole.find("PSNR", style).figure for style in ("flat", "round")]
    together = sum(part.value * part.n for part in parts) / 30
    assert together == pytest.approx(whole.find("PSNR", "all").figure.value, abs=1e-6)
    near, far = (report.find("FD-pixels", OTHER) for report in (whole, lossy))
    assert near.figure.value == pytest.approx(near.against(FLOOR).value, rel=0.05)
    assert far.figure.value > 1.2 * far.against(FLOOR).value and "times the noise floor" in far.note
    assert whole.find("FD-pixels", OWN).figure.value < 1e-3 < 0.1 < lossy.find("FD-pixels", OWN).figure.value
    assert (tmp_path / "report.html").stat().st_size > 5_000


def test_it_is_compared_with_its_like_alone(written):
    with pytest.raises(UserError, match="autoencoder"):
        evaluate(EvaluateRequest(models=[str(written(16)), "emoji-64"], n=30, force=True))
    with pytest.raises(UserError, match="30"):
        evaluate(EvaluateRequest(models=[str(written(16))], n=30, reader="pixels"))
