"""Reliability of a detector of copies: exact shares, and a detector measured among pictures that have nothing in common."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from unfog import plots
from unfog.errors import UserError
from unfog.evaluation.plants import KINDS
from unfog.plots.copies import Reliability, curve, wilson

from .conftest import write_model


def test_shares_of_known_distributions():
    rng = np.random.default_rng(0)
    n = 40_000
    found = Reliability.of(rng.normal(size=n), {"easy": rng.normal(3, 1, n), "hard": rng.normal(1, 1, n)}, used=2.0)

    def above(s, mean):
        return 0.5 * math.erfc((s - mean) / math.sqrt(2))

    for shares, mean in ((found.false_positives, 0), (found.recall["easy"], 3), (found.recall["hard"], 1)):
        assert np.allclose(shares, [above(s, mean) for s in found.thresholds], atol=0.012)
        assert all(a >= b for a, b in zip(shares, shares[1:], strict=False))
    drawn = curve(found)
    at = drawn.facts["at_used"]
    assert at["false_positives"] == pytest.approx(above(2, 0), abs=0.004)
    assert at["recall"]["easy"] == pytest.approx(above(2, 3), abs=0.01) and json.dumps(drawn.facts, allow_nan=False)
    assert [line.name for line in drawn.lines.series][:2] == ["easy (40,000)", "hard (40,000)"] and len(drawn.lines.series) == 3
    assert b"<polygon" in drawn.data() and b'class="mark"' in drawn.data()


def test_recall_over_false_positives_takes_the_best_threshold():
    found = Reliability([0.0, 1, 2, 3], [0.5, 0.5, 0.01, 0.0], {"k": [1.0, 0.9, 0.8, 0.1]}, 100, {"k": 50})
    (line,) = curve(found, roc=True).lines.series
    assert (line.x, line.y) == ([0.005, 0.01, 0.5], [0.1, 0.8, 1.0])
    assert all(low <= y <= high for y, low, high in zip(line.y, line.low, line.high, strict=True))


@pytest.mark.parametrize("share, n, low, high", [(0.0, 10, 0.0, 0.27753), (0.5, 10, 0.23659, 0.76341), (1.0, 10, 0.72247, 1.0)])
def test_intervals_of_shares(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-5)


def test_scores_that_say_nothing_are_refused():
    for unseen, planted in (([], {"k": [1.0]}), ([1.0], {}), ([1.0], {"k": []}), ([math.nan], {"k": [1.0]})):
        with pytest.raises(UserError, match="finite numbers"):
            Reliability.of(unseen, planted)


def test_a_detector_is_measured(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(60):  # blocks of colour: no two are alike
        pixels = np.kron(rng.integers(0, 256, (8, 8, 4)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": f"t{i}", "split": "train" if i < 35 else "heldout_pair"})
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = write_model(tmp_path / "m", tmp_path / "data")
    few = {kind: KINDS[kind] for kind in ("noisy", "encoded")}  # each look takes some 20 ms
    monkeypatch.setattr("unfog.plots.copies.KINDS", few)
    facts = plots.draw("copies", model, n=20, unseen=20).facts
    at = facts["at_used"]
    assert facts["unseen"] == 20 and at["false_positives"] <= 0.05 and facts["split"] == "heldout_pair"
    assert at["recall"] == {"noisy": 1.0, "encoded": 1.0} and facts["planted"] == {"noisy": 20, "encoded": 20}
    monkeypatch.setattr("unfog.plots.copies.KINDS", {"noisy": KINDS["noisy"]})
    alone = plots.draw("copies", model, n=20, unseen=20, data=_all_seen(tmp_path / "data")).facts  # each against all others
    assert (alone["split"], alone["unseen"]) == ("train", 20) and alone["at_used"]["false_positives"] <= 0.05
    with pytest.raises(UserError, match="n: 5 is less than 20"):
        plots.draw("copies", model, n=5)


def _all_seen(folder):
    """The same data with nothing held out."""
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines.replace("heldout_pair", "train"))
    return str(folder)


def test_too_few_pictures(model):
    with pytest.raises(UserError, match="12 training pictures"):
        plots.draw("copies", model)
