"""The shipped scorer, and the whole evaluation on stand-in models whose answers are known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unfog.data import path
from unfog.errors import UserError
from unfog.evaluation import Asked, Report, style_error
from unfog.evaluation.features import Lite0, SameConv, folded
from unfog.evaluation.looks import WIDTH, looks, palette
from unfog.evaluation.readers import reader
from unfog.evaluation.run import Found, differences_of, measure_model
from unfog.evaluation.scorer import FOLDER, Scorer, prepare, sized
from unfog.files import MANIFEST
from unfog.modalities.image.data import PictureSet
from unfog.networks.text import TextEncoder


class Remembering:
    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.known = encoder, {}  # type: ignore[var-annotated]

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, zip(*self.encoder(new), strict=True), strict=True))
        return tuple(torch.stack([self.known[text][k] for text in texts]) for k in (0, 1))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """The shipped encoder that remembers: every report here asks for the same captions."""
    return Remembering(TextEncoder.load())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def data() -> PictureSet:
    """Part of the shipped data: few pictures to read, all three splits."""
    whole = PictureSet.open(path("emoji-64"))
    rows = [*whole.split("train")[::60], *whole.split("heldout_pair")[::6], *whole.split("heldout_concept")[::6]]
    return PictureSet(whole.path, [whole.records[row] for row in rows], whole._read)


class Stand:
    """A model that looks its pictures up, or draws noise."""

    hash, defaults, card = (
        "0" * 16,
        {"sampler": "none", "steps": 1, "scale": 1.0},
        {"training": {"steps": 7, "recipe": {"ema": 0.1}}},
    )

    def __init__(self, data: PictureSet, kind: str) -> None:
        self.data, self.kind, self.name, self.styles = data, kind, kind, data.styles
        self.calls = []  # type: ignore[var-annotated]

    def evaluations(self, sampler: str | None = None, steps: int | None = None, scale: float | None = None) -> int:
        return 3

    def make(
        self,
        prompts: Sequence[str],
        styles: Sequence[str | None],
        seeds: Sequence[int],
        batch: int = 16,
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
    ) -> list[np.ndarray]:
        self.calls.append((list(prompts), list(styles), list(seeds)))
        if self.kind == "noise":
            return [np.random.default_rng(s).integers(0, 256, (64, 64, 4), np.uint8) for s in seeds]
        if self.kind == "thief":  # whatever is asked for, a training picture
            train = self.data.split("train")
            return [self.data.load(train[seed % len(train)]) for seed in seeds]
        place = {(r.name, r.style): i for i, r in enumerate(self.data.records)}
        return [self.data.load(place[p, s or ""]) for p, s in zip(prompts, styles, strict=True)]


def _measure(data: PictureSet, scorer: Scorer, encoder: TextEncoder, kind: str, n: int, **options: Any) -> tuple[Found, Any]:
    """By what a distance of pixels says, which is fast; the distances themselves are tested apart."""
    model = Stand(data, kind)
    options = {"reader": reader("pixels"), "scorer": scorer, "encoder": encoder, "force": True} | options
    return measure_model(model, data, Asked(n, seed=5), **options), model


@pytest.fixture(scope="module")
def oracle(data: PictureSet, scorer: Scorer, encoder: TextEncoder) -> tuple[Found, Any]:
    """What is found of a model that draws the real pictures, and that model."""
    return _measure(data, scorer, encoder, "oracle", 90)


R1 = "R@1 of 65"


def test_a_model_that_draws_the_real_pictures_reaches_them(oracle: tuple[Found, Any]) -> None:
    report, model = oracle[0].report, oracle[1]
    rows = [m for m in report.measures if m.name == R1]
    assert [m.of for m in rows] == ["train", "heldout_pair", "heldout_concept"]
    assert [m.beside[0].name for m in rows] == [
        f"real pictures ({s})" for s in ("heldout_pair", "heldout_pair", "heldout_concept")
    ]
    for row in rows[1:]:
        share = report.find("R@1 as a share of real", row.of).figure
        assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
        assert row.figure == row.beside[0].figure and row.figure.n == 30
    style = report.find("wrong style")
    assert style.figure.n == 90 and style.beside[0].figure.n == 60
    falsely = report.find("copies").against("real, unseen")
    assert falsely.low is not None and falsely.low <= 0.01
    # a detector that finds nothing that was planted says nothing by finding nothing
    planted = report.find("planted copies found")
    assert planted.figure.value is not None and planted.figure.value > 0.9 and len(planted.beside) > 5
    assert [seed for call in model.calls for seed in call[2]] == list(range(5, 95))
    # what stands beside tells what luck is: real pictures as far from the data as these real pictures
    far, real = report.find("FD-pixels").figure, report.find("FD-pixels").against("real, held out")
    assert far.low is not None and real.high is not None and far.low < real.high
    # the report is read back as it was, says how it was made, and prints every figure with its number of pictures
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.settings["weights"] == "average of width 0.1 after step 7" and report.settings["seeds"] == "5 to 94"
    assert "8x8" in report.settings["resize"] and report.find("network evaluations a picture").figure.value == 3
    said = str(report)
    assert said.count("n=") >= sum(1 + len(m.beside) for m in report.measures if m.figure.value is not None)
    with pytest.raises(UserError, match="no measure 'FID'"):
        report.find("FID")


def test_noise_is_at_chance_and_a_thief_is_caught(
    data: PictureSet, scorer: Scorer, encoder: TextEncoder, oracle: tuple[Found, Any]
) -> None:
    noise, _ = _measure(data, scorer, encoder, "noise", 90)
    for row in noise.report.measures:
        assert row.name != R1 or (row.figure.value is not None and row.figure.value <= 0.2)
        assert row.name != "copies" or row.figure.value == 0
    thief, _ = _measure(data, scorer, encoder, "thief", 15)
    assert thief.report.find("copies").figure.value == 1 and "copies its training pictures" in thief.report.warnings[-1]
    nearest = thief.report.find("distance to the likeliest original").figure.value
    assert nearest is not None and nearest < 1e-3
    # against real pictures noise is worse by every measure that can tell, and the verdicts say so; against itself by none
    worse = {(d.name, d.of): d for d in differences_of(oracle[0], noise)}
    for name in ("FD-pixels", "KD-pixels", "MIND-pixels", "coverage", R1, "wrong style"):
        for (named, _), d in worse.items():
            if named == name:
                assert d.real and d.better == "oracle" and d.paired, d
    assert not any(d.real for d in differences_of(noise, noise))


def test_too_few_samples_are_refused_unless_forced_and_then_marked(
    data: PictureSet, scorer: Scorer, encoder: TextEncoder
) -> None:
    with pytest.raises(UserError, match="15 samples tell next to nothing.*--force"):
        _measure(data, scorer, encoder, "noise", 15, force=False)
    forced = _measure(data, scorer, encoder, "noise", 15)[0].report
    assert "do not rely on it" in forced.find("FD-pixels").note and "do not rely on it" in forced.find("KD-pixels").note
    held_back = _measure(data, scorer, encoder, "noise", 90, force=False)[0].report.find("FD-pixels")
    assert held_back.figure.value is None and "257 or more" in held_back.note


def test_the_scorer_knows_real_pictures_it_has_not_seen(oracle: tuple[Found, Any]) -> None:
    real = {m.of: m.beside[0].figure.value for m in oracle[0].report.measures if m.name == R1}
    assert real["heldout_pair"] is not None and real["heldout_pair"] > 0.75
    assert real["heldout_concept"] is not None and real["heldout_concept"] > 0.35  # chance is 1/65


def test_the_style_classifier_on_every_held_out_picture(scorer: Scorer) -> None:
    whole = PictureSet.open(path("emoji-64"))
    rows = [*whole.split("heldout_pair"), *whole.split("heldout_concept")]
    found = scorer.styles(np.stack([whole.load(row) for row in rows]))
    wrong = style_error(found, [whole.records[row].style for row in rows])
    assert len(wrong) > 800 and wrong.mean() < 0.05


def test_one_picture_alone_is_judged_as_in_a_batch(data: PictureSet, scorer: Scorer) -> None:
    pictures = np.stack([data.load(i) for i in range(3)])
    together = scorer.picture_vectors(scorer.features(pictures))
    alone = scorer.picture_vectors(scorer.features(pictures[1:2]))
    assert torch.allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("file", ["scorer.safetensors", "scorer.json"])
def test_a_damaged_scorer_is_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(FOLDER, folder)
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}.*sha256"):
        Scorer.load(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="missing"):
        Scorer.load(folder)


def test_a_saved_scorer_loads_the_same(tmp_path: Path, scorer: Scorer) -> None:
    scorer.save(tmp_path / "copy", {"data": "none"})
    again = Scorer.load(tmp_path / "copy")
    for name, value in scorer.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12_000_000


def test_unusable_data_is_one_line(data: PictureSet, scorer: Scorer, encoder: TextEncoder) -> None:
    with pytest.raises(UserError, match="2 pictures cannot cover the 3 splits"):
        _measure(data, scorer, encoder, "noise", 2)


def test_own_pictures_without_splits_styles_or_captions(data: PictureSet, scorer: Scorer, encoder: TextEncoder) -> None:
    plain = [r.model_copy(update={"style": "", "concept": "", "name": "", "split": "train"}) for r in data.records[:40]]
    mine = PictureSet(data.path, plain, data._read)
    report = _measure(mine, scorer, encoder, "noise", 8)[0].report
    assert not any(m.name == "wrong style" for m in report.measures)
    assert [m.of for m in report.measures if m.name.startswith("R@1 of")] == ["train"]
    assert f"R@1 of {len({r.text for r in plain})}" in {m.name for m in report.measures}
    assert not any(b.name in ("real, held out", "real, unseen") for m in report.measures for b in m.beside)
    bare = PictureSet(data.path, [r.model_copy(update={"text": ""}) for r in plain], data._read)
    untold = _measure(bare, scorer, encoder, "noise", 8)[0].report
    assert not any(m.group == "condition" for m in untold.measures) and "is not judged" in untold.warnings[0]


def test_folding_keeps_what_the_network_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    network = Lite0()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i in range(16):
        names |= {f"blocks.{i}.expand": (f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")} if i else {}
        names[f"blocks.{i}.depthwise"] = (f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        names[f"blocks.{i}.project"] = (f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    checkpoint: dict[str, torch.Tensor] = {}
    for ours, (conv, norm) in names.items():
        width = shapes[f"{ours}.bias"][0]
        checkpoint[f"{conv}.weight"] = torch.randn(shapes[f"{ours}.weight"], generator=generator)
        for part in ("weight", "bias", "running_mean", "running_var"):
            checkpoint[f"{norm}.{part}"] = torch.rand(width, generator=generator) + 0.5
    weights = folded(checkpoint)
    network.load_state_dict(weights)  # every tensor, and no other
    # one layer against torch's own batch normalisation
    x = torch.randn(2, 3, 9, 9, generator=generator)
    convolved = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1)), checkpoint["_conv_stem.weight"], stride=2)
    statistics = (checkpoint[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    expected = torch.nn.functional.batch_norm(convolved, *statistics, eps=1e-3)
    assert torch.allclose(network.stem(x), expected, atol=1e-4)


def test_padding_is_right_and_below_where_it_is_odd() -> None:
    conv = SameConv(1, 1, 3, 2)
    torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    torch.nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = 1  # picks the first pixel of each window
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert conv(x).flatten().tolist() == [0, 2, 8, 10]


def test_looks_and_sizes(scorer: Scorer) -> None:
    pictures = np.zeros((2, 64, 64, 4), np.uint8)
    pictures[0] = [255, 0, 0, 255]  # pure red, everywhere; the second is empty
    x = sized(pictures, 64)
    assert looks(scorer.lite0, x).shape == (2, WIDTH)
    histogram = palette(x)
    assert histogram[0, 5] == pytest.approx(1.0) and histogram[0].sum() == pytest.approx(1.0)
    assert histogram[1].sum() == 0
    assert torch.allclose(prepare(pictures)[1], torch.ones(3, 96, 96))  # nothing on white is white
    # twice the size, the same picture
    assert torch.allclose(sized(pictures.repeat(2, 1).repeat(2, 2), 64), x, atol=1e-5)
