"""`unfog forecast` from the command line and from Python, with a model that has learned nothing."""

import csv
import io

import numpy as np
import pytest
import torch

from unfog.cli.app import run
from unfog.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder whose network is as it was drawn."""
    from unfog.modalities import build_network, modality
    from unfog.modalities.series.data import SeriesOptions, open_series
    from unfog.model import save_model
    from unfog.training.item_corpus import item_corpora
    from unfog.training.recipe import Recipe

    folder = tmp_path_factory.mktemp("model")
    table(folder / "t.csv", 90)
    kind = modality("series")
    items = open_series(folder / "t.csv", SeriesOptions())
    corpus, _ = item_corpora(kind, items, kind.fit(items, SeriesOptions()))
    fields = {"kind": "series", "name": "plain", "data": "t.csv", **kind.presets["tiny"]}
    recipe = Recipe.model_validate({**fields, "defaults": {"steps": 3, "scale": 1.0, "sampler": "dpmpp_2m"}})
    torch.manual_seed(0)
    network = build_network("series", recipe.network, {"dropout": 0.0, **corpus.network_settings(recipe)})
    save_model(folder / "m", recipe, corpus, network, 0, {})
    return folder / "m"


def table(path, rows, gaps=()):
    lines = ["time,x,y"]
    for t in range(rows):
        day = np.datetime64("2024-01-01") + t
        lines.append(f"{day},{'' if t in gaps else 10 + t % 7},{100 + t}")
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_quantiles_come_as_csv_and_a_plot(model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    source = table(tmp_path / "t.csv", 60)
    words = ["forecast", str(source), "--horizon", "9", "--samples", "20", "--model", str(model)]
    words += ["--plot", str(tmp_path / "p.png")]
    assert run(words) == 0
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 18 and rows[0]["time"] == "2024-03-01" and rows[0]["column"] == "x"
    levels = np.array([[float(row[q]) for q in ("q0.025", "q0.1", "q0.5", "q0.9", "q0.975")] for row in rows])
    assert (np.diff(levels, axis=1) >= 0).all() and abs(levels[9 + 8, 2] - 168) < 15
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_gaps_are_filled_and_nothing_else_changes(model, tmp_path, capsys):
    source = table(tmp_path / "t.csv", 40, gaps=(7, 8, 30))
    assert run(["forecast", str(source), "--fill", "--samples", "8", "--model", str(model)]) == 0
    rows = [row for row in rows_of(capsys.readouterr().out) if row["column"] == "x"]
    assert [i for i, row in enumerate(rows) if row["missing"] == "1"] == [7, 8, 30]
    assert all(float(row["value"]) == 10 + i % 7 for i, row in enumerate(rows) if row["missing"] == "0")


def test_scores_stand_beside_the_seasonal_naive(model, tmp_path, capsys):
    import json

    source = table(tmp_path / "t.csv", 60)
    assert run(["forecast", str(source), "--horizon", "7", "--samples", "10", "--score", "--model", str(model)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows] == ["model", "seasonal naive"] and {"crps", "mase", "inside_80"} <= set(rows[0])


def test_what_is_known_ahead_must_be_there(model, tmp_path, capsys):
    source = table(tmp_path / "t.csv", 60, gaps=range(50, 60))
    words = ["forecast", str(source), "--samples", "4", "--model", str(model), "--covariates", "y", "--horizon"]
    assert run([*words, "10"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 10 and rows[0]["time"] == "2024-02-20" and rows[0]["column"] == "x"
    assert run([*words, "12"]) == 2
    assert "covariates: the last 12 rows" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["--horizon", "0"], "horizon: 0 is less than 1"),
    (["--horizon", "90", "--limit", "48"], "more than the limit of 48"),
    (["--quantiles", "0.9,0.1"], "rising"),
    (["--quantiles", "a"], "no number"),
    (["--target", "z"], "'z' is unknown"),
    (["--samples", "1"], "samples: 1 is less than 2"),
    (["--model", "emoji-64"], "kind image"),
    (["--score", "--fill"], "leave out fill"),
    (["--plot", "x.jpg"], ".png"),
    (["--covariates", "x", "--covariates", "y"], "every column is a covariate"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(model, tmp_path, capsys, words, said):
    source = table(tmp_path / "t.csv", 60)
    given = words if "--model" in words else [*words, "--model", str(model)]
    assert run(["forecast", str(source), *given]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and len(told.splitlines()) == 1


def test_bad_tables_are_one_line(model, tmp_path, capsys):
    cases = (("nan.csv", "time,x\n1,inf\n2,3\n", "not a finite number"), ("no.csv", None, "No such file"),
             ("few.csv", "time,x\n1,2\n2,3\n", "too few"), ("empty.csv", "time,x\n1,\n2,\n3,\n4,\n", "no values"))  # fmt: skip
    for name, text, said in cases:
        if text is not None:
            (tmp_path / name).write_text(text)
        assert run(["forecast", str(tmp_path / name), "--horizon", "2", "--model", str(model)]) == 2
        told = capsys.readouterr().err.strip()
        assert said in told and len(told.splitlines()) == 1


def test_a_data_frame_goes_in_and_comes_out(model):
    pandas = pytest.importorskip("pandas")
    from unfog.forecasting import forecast

    frame = pandas.DataFrame({"x": np.arange(40) % 7 + 1.0}, index=pandas.date_range("2024-01-01", periods=40))
    found = forecast(frame, horizon=5, samples=10, model=str(model), quantiles=[0.1, 0.9]).frame()
    assert list(found.columns) == ["series", "time", "column", "0.1", "0.9"] and len(found) == 5
    frame.iloc[10:12] = np.nan
    whole = forecast(frame, fill=True, samples=10, model=str(model)).frame()
    assert whole.notna().all().all() and (whole.drop(whole.index[10:12]) == frame.drop(frame.index[10:12])).all().all()
    with pytest.raises(UserError, match="DataFrame"):
        forecast([1, 2, 3], horizon=2, model=str(model))
