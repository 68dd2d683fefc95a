"""Modes are counted right on exact, collapsed and broken samples; the claims' verdicts follow from rows; the recipe runs."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unfog.claims import gan, gan_pictures
from unfog.claims.claim import decide
from unfog.claims.modes import COUNTABLE, WITHIN, draw, modes
from unfog.modalities.image.codec import RGBACodec

RECIPE = Path(__file__).parents[2] / "recipes" / "baselines" / "gan.py"


@pytest.mark.parametrize("name, count", [("ring", 8), ("grid", 25)])
def test_exact_samples_have_all_modes(name, count):
    mixture = COUNTABLE[name]()
    for x in (mixture.draw(20_000, 3), draw(mixture, 20_000, torch.Generator().manual_seed(3))):
        found = modes(mixture, x.numpy())
        assert found.modes == found.recovered == found.found == count
        assert found.quality == pytest.approx(WITHIN, abs=0.003) and found.overlap > 0.97
        assert found.divergence < 0.002 and found.spread == pytest.approx(1.0, abs=0.02)
        assert float(x.double().mean(0).abs().max()) < 0.03 and float(x.double().square().mean()) == pytest.approx(1, abs=0.03)


def test_a_collapsed_sampler():
    mixture = COUNTABLE["grid"]()
    x = mixture.means[torch.arange(1000) % 3]  # three modes, points
    found = modes(mixture, x.numpy())
    assert (found.recovered, found.found, found.quality, found.spread) == (3, 3, 1.0, 0.0)
    assert found.overlap == pytest.approx(3 / 25, rel=1e-6) and found.divergence == pytest.approx(math.log(25 / 3), abs=1e-4)


def test_one_stray_sample_is_found_but_not_recovered():
    mixture = COUNTABLE["ring"]()
    x = mixture.means[torch.zeros(1000, dtype=torch.long)].numpy()
    x[0] = mixture.means[5].numpy()
    found = modes(mixture, x)
    assert (found.recovered, found.found) == (1, 2)
    x[: int(0.25 / 8 * WITHIN * 1000) + 1] = mixture.means[5].numpy()  # a quarter of its fair share
    assert modes(mixture, x).recovered == 2


def test_samples_between_modes_and_broken_ones_count_for_none():
    mixture = COUNTABLE["ring"]()
    between = (mixture.means[:1] + mixture.means[1:2]).repeat(50, 1).numpy() / 2
    between[0] = np.nan
    between[1] = np.inf
    found = modes(mixture, between)
    assert (found.n, found.recovered, found.found, found.quality, found.overlap, found.spread) == (50, 0, 0, 0.0, 0.0, 0.0)
    assert found.divergence == pytest.approx(math.log(8))


def test_samples_of_another_shape():
    with pytest.raises(ValueError, match="not \\(3, 4\\)"):
        modes(COUNTABLE["ring"](), np.zeros((3, 4)))


def row(side, mixture, seed, rate, recovered, quality, count):
    bad = recovered < gan.RECOVERED * count or quality < gan.QUALITY
    return {"side": side, "mixture": mixture, "seed": seed, "rate": rate, "n": 100, "modes": count, "recovered": recovered,
            "found": recovered, "quality": quality, "overlap": quality, "divergence": 0.1, "spread": 1.0, "distance": 0.1,
            "floor": 0.05, "bad": bad, "steps": 3, "seconds": 1.0, "weights": 10, "kept": 5, "nfe": 1,
            "curve": [[0, 1.0], [1, 0.5]], "points": [[0.0, 1.0]] if seed == 0 and rate == 1 else None}  # fmt: skip


def rows(shares):
    """Diffusion recovers all; the GAN these shares of the modes, one a seed, at its tuned learning rate, and none at others."""
    found = []
    for name, count in (("ring", 8), ("grid", 25)):
        for rate in gan.RATES:
            for seed, share in enumerate(shares):
                found += [row("diffusion", name, seed, rate, count, 0.97, count),
                          row("gan", name, seed, rate, round(share * count) if rate == 1 else 0, 0.8, count)]  # fmt: skip
    return found


@pytest.mark.parametrize(
    "shares, passed, verdict",
    [
        ((1.0, 1.0, 0.5), [True, True, False, True, True, True], "holds in part"),  # seeds differ too much for an interval
        ((1.0, 0.5) * 4, [True, True, True, True, True, True], "holds"),
        ((0.4, 0.5, 0.5), [True, True, True, True, False, True], "holds in part"),  # never well: no measure of stability
        ((1.0, 1.0, 1.0), [True, False, False, True, True, True], "holds in part"),
    ],
)
def test_the_verdict_follows_from_the_rows(shares, passed, verdict):
    found = gan.found_of(rows(shares))
    checks, said = decide(gan.STATEMENT.tests, found.values)
    assert [check.passed for check in checks] == passed and said == verdict
    assert found.values["ours"] == 1.0 and found.values["theirs"] == pytest.approx(np.mean(shares), abs=0.04)


def test_outcomes_of_a_few_steps(monkeypatch):
    monkeypatch.setattr(gan, "SAMPLES", 60)
    monkeypatch.setattr(gan, "WIDTH", 8)
    for side in gan.SIDES:
        tuned = gan.Tuned(4, 16, 1e-3, gan.TUNED[side].other, gan.TUNED[side].kind)
        found = gan.outcomes(side, "ring", tuned, [0, 1], [0])
        assert [(r["rate"], r["seed"]) for r in found] == [(1 / 3, 0), (1.0, 0), (1.0, 1), (3.0, 0)]
        assert all(r["n"] == 60 and r["bad"] for r in found) and len(found[1]["points"]) == 60
        assert found == [{**r, "seconds": s["seconds"]} for r, s in zip(gan.outcomes(side, "ring", tuned, [0, 1], [0]), found,
                                                                        strict=True)]  # fmt: skip


def test_pictures_of_a_few_steps(tmp_path, monkeypatch):
    some = np.random.default_rng(0).integers(0, 256, (12, gan_pictures.SIDE, gan_pictures.SIDE, 4), dtype=np.uint8)
    monkeypatch.setattr(gan_pictures, "faces", lambda: some)
    monkeypatch.setattr(gan_pictures, "codec", lambda: RGBACodec.fit(some))
    for side in gan.SIDES:
        tuned = gan_pictures.Tuned(8, 4, 1e-3, 0.5, gan_pictures.TUNED[side].kind)
        run = gan_pictures.trained(side, 0, tuned)
        pictures = run.draw(9, 5)
        assert pictures.shape == (9, gan_pictures.SIDE, gan_pictures.SIDE, 4) and pictures.dtype == np.uint8
        assert np.array_equal(pictures, gan_pictures.trained(side, 0, tuned).draw(9, 5))
        assert not np.array_equal(pictures, run.draw(9, 50))
        gan_pictures.sheet(pictures, tmp_path / f"{side}.png")
        assert (tmp_path / f"{side}.png").stat().st_size > 100


def test_the_recipe_runs(monkeypatch, capsys):
    for more in ([], ["--beside"], ["--loss", "non-saturating"]):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), "--data", "grid", "--steps", "3", *more])
        runpy.run_path(str(RECIPE), run_name="__main__")
        assert "3 steps" in (said := capsys.readouterr().out) and "recovered=" in said
