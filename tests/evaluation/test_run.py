"""The whole evaluation: numbers of known distributions, folders of pictures, refusals, pages, verdicts about differences."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from unfog.errors import UserError
from unfog.evaluation import Evaluation, evaluate, measure_numbers
from unfog.evaluation.document import document
from unfog.evaluation.run import differences_of
from unfog.requests import EvaluateRequest


def normal(n, seed, mean=0.0, dim=4):
    return (np.random.default_rng(seed).normal(size=(n, dim)) + mean).astype(np.float32)


def test_numbers_of_a_known_distance_and_verdicts():
    data = normal(1200, 0)
    alike, far = (measure_numbers(normal(600, seed, mean), data, f"mean {mean}", "data") for seed, mean in ((1, 0.0), (2, 0.3)))
    row = far.report.find("FD-values")  # |0.3|²·4 between the means, nothing between the covariances
    assert row.figure.low < 0.36 < row.figure.high and row.against("real, half against half").value < 0.1
    assert alike.report.find("FD-values").figure.low < 0.05 < row.figure.low
    verdicts = {d.name: d for d in differences_of(alike, far)}
    for name in ("FD-values", "KD-values", "MIND-values"):
        assert verdicts[name].real and verdicts[name].better == "mean 0.0" and "mean 0.0 is better" in str(verdicts[name])
    again = differences_of(alike, measure_numbers(normal(600, 3), data, "again", "data"))
    assert not any(d.real for d in again if d.name in verdicts) and "no real difference" in str(again[0])
    assert differences_of(far, alike)[0].better == "mean 0.0"


def saved(folder: Path, name: str, array: np.ndarray) -> str:
    np.save(folder / name, array)
    return str(folder / name)


def test_files_of_numbers_compared_and_written(tmp_path):
    ours, theirs, data = (saved(tmp_path, f"{i}.npy", normal(300, i, i / 5)) for i in range(3))
    for out in ("r.json", "r.html"):
        request = EvaluateRequest(models=[ours, theirs], against=data, n=200, out=tmp_path / out)
        found = evaluate(request)
        assert [report.samples for report in found.reports] == [200, 200] and found.differences
    read = Evaluation.model_validate_json((tmp_path / "r.json").read_text())
    assert read.differences == found.differences
    assert [report.measures for report in read.reports] == [report.measures for report in found.reports]
    root = ElementTree.fromstring((tmp_path / "r.html").read_text().split("\n", 1)[1])
    said = "".join(root.itertext())
    for words in ("FD-values", "real, half against half", "Differences", "0.npy", "200", "resize"):
        assert words in said
    assert "Differences" in str(found) and "independent samples" in str(found)


@pytest.mark.parametrize("change", ["empty", "nan", "width", "kinds", "one", "text", "out", "shape"])
def test_what_cannot_be_compared_is_one_line(tmp_path, change):
    made, data, out = normal(100, 0), normal(100, 1), None
    if change == "empty":
        made = made[:0]
    elif change == "nan":
        made[3] = np.nan
    elif change == "width":
        made = made[:, :3]
    elif change == "one":
        made = made.reshape(-1)
    elif change == "shape":
        data = data[:3]
    first, second = saved(tmp_path, "a.npy", made), saved(tmp_path, "b.npy", data)
    if change == "kinds":
        first = "emoji-64"
    elif change == "text":
        Path(first).write_text("not an array")
    elif change == "out":
        out = tmp_path / "report.txt"
    words = {"empty": "empty", "nan": "1 of 100 rows have NaN", "width": "items of one shape", "kinds": "two sets of one kind",
             "one": "rows of numbers", "text": "not readable as numbers", "out": "neither .json nor .html"}  # fmt: skip
    if change == "shape":  # three real items tell nothing, and the report says why, figure by figure
        found = evaluate(EvaluateRequest(models=[first], against=second, n=100)).reports[0]
        assert all(
            row.figure.value is None and "few" in row.note for row in found.measures if row.group in ("fidelity", "coverage")
        )
        return
    with pytest.raises(UserError, match=words[change]) as caught:
        evaluate(EvaluateRequest(models=[first], against=second, n=100, out=out))
    assert "\n" not in str(caught.value)


def test_too_few_are_refused_before_anything_is_made_or_read():
    with pytest.raises(UserError, match="49 samples tell next to nothing.*--force"):
        evaluate(EvaluateRequest(models=["emoji-64"], against="nowhere", n=49))


def drawn(folder: Path, count: int, seed: int, stripes: bool) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[..., :3], pixels[..., 3] = rng.integers(60, 200, 3), 255
        if stripes:
            pixels[:: int(rng.integers(2, 5)), :, 0] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i % 7}")
    return folder


def test_a_folder_of_pictures_against_another(tmp_path):
    data, alike, other = (drawn(tmp_path / name, 60, i, name == "other") for i, name in enumerate(("data", "alike", "other")))
    request = EvaluateRequest(
        models=[str(alike), str(other)], against=str(data), reader="pixels", force=True, out=tmp_path / "r.html"
    )
    found = evaluate(request)
    near, far = found.reports
    assert near.find("KD-pixels").figure.value < far.find("KD-pixels").figure.value
    assert near.find("R@1 of 7").of == "all" and near.settings["made"] == "elsewhere"
    assert {d.name for d in found.differences if d.real} >= {"KD-pixels", "MIND-pixels"}
    assert (tmp_path / "r.html").read_text().count("data:image/png") > 24 and document(found).count("data:image/png") == 0
