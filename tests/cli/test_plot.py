"""`unfog plot`: options reach the request, one line on errors, and no model is needed where none is asked for."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unfog import plots
from unfog.cli import plot as cli
from unfog.modalities.image.show import read_recipe
from unfog.page import Lines, Series
from unfog.plots import Curve, Sheet


@pytest.fixture
def asked(monkeypatch):
    """What was asked of `plots.stream`, which draws a small sheet or curve instead."""
    found = []

    def stream(kind, request):
        found.append((kind, request))
        if kind in ("loss", "copies"):
            yield Curve(Lines("t", [Series("s", [0, 1], [1.0, 2.0])]), {"plot": kind})
        else:
            yield Sheet(Image.new("RGB", (4, 4)), {"plot": kind}, [])

    monkeypatch.setattr(plots, "stream", stream)
    return found


def test_options_reach_the_request(unfog_command, asked, tmp_path):
    words = [
        "plot",
        "grid",
        "m",
        "a cat",
        "--x",
        "steps=5,10",
        "--y",
        "scale=1,3",
        "--z",
        "sampler=ddim",
        "-n",
        "2",
        "--seed",
        "7",
    ]
    words += ["--style", "noto", "--negative", "blue", "--untimed"]
    assert unfog_command(*words) == (0, ["grid.png"], [])
    (kind, request) = asked[-1]
    assert (kind, request.x, request.y, request.z) == ("grid", ("steps", (5, 10)), ("scale", (1.0, 3.0)), ("sampler", ("ddim",)))
    assert (request.n, request.seed, request.style, request.negative, request.timed) == (2, 7, "noto", "blue", False)
    assert read_recipe(tmp_path / "grid.png")["plot"] == "grid"
    code, out, _ = unfog_command("plot", "film", "m", "a cat", "--at", "0,3", "--steps", "9", "--out", "f/film.png", "--json")
    assert code == 0 and json.loads(out[0]) == {"path": "f/film.png", "plot": "film"} and asked[-1][1].at == [0, 3]
    assert unfog_command("plot", "forward", "--logsnr", "-3,3", "--schedule", "vp")[:2] == (0, ["forward.png"])
    assert asked[-1][1].logsnr == [-3, 3] and asked[-1][1].model is None
    assert unfog_command("plot", "loss", "a", "b", "--levels", "-1,2", "-n", "8", "--own")[:2] == (0, ["loss.svg"])
    assert asked[-1][1].models == ["a", "b"] and asked[-1][1].levels == [-1, 2] and asked[-1][1].own


@pytest.mark.parametrize("words, line", [
    (["grid", "m", "x"], "--x"), (["grid", "m", "x", "--x", "stepz=1"], "did you mean steps?"),
    (["grid", "m", "x", "--x", "steps=1", "--out", "a.jpg"], "--out: a.jpg does not end in .png"),
    (["grid", "m", "x", "--x", "steps=1", "--seed", "1.5"], "whole number"), (["film", "m"], "--help"),
    (["film", "m", "x", "--frames", "1"], "frames: 1 is less than 2"), (["nope"], "--help"),
    (["loss"], "models: is empty"), (["film", "no-such-model", "x"], "no-such-model"),
    (["loss", "m", "--out", "mine.svg"], "mine.svg exists and is no plot"),
])  # fmt: skip
def test_errors_are_one_line(words, line, unfog_command, tmp_path):
    (tmp_path / "mine.svg").write_text("<svg/>")
    code, out, err = unfog_command("plot", *words)
    assert (code, out, len(err)) == (2, [], 1) and line in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.svg"]


def test_missing_matplotlib_is_one_line_before_any_work(unfog_command, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = unfog_command("plot", "loss", "m", "--out", "loss.png")
    assert (code, out, len(err)) == (2, [], 1) and "pip install 'unfog[plot]'" in err[0] and not asked


def test_forward_without_a_model(unfog_command, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    words = ["plot", "forward", "--picture", "photo.jpg", "--t", "0,0.5", "--schedule", "linear", "--size", "16", "--json"]
    code, out, err = unfog_command(*words)
    assert (code, err) == (0, []) and [level["alpha"] for level in json.loads(out[0])["levels"]] == [1.0, 0.5]
    first = (tmp_path / "forward.png").read_bytes()
    assert unfog_command(*words)[0] == 0 and (tmp_path / "forward.png").read_bytes() == first


def commands():
    """Every `unfog plot` of the documentation and of the help."""
    page = (Path(__file__).parents[2] / "docs" / "plots.md").read_text(encoding="utf-8")
    texts = [page, *(function.__doc__ or "" for function in (cli.grid, cli.film, cli.forward, cli.loss, cli.copies))]
    found = [line.strip() for text in texts for line in text.splitlines() if line.strip().startswith("unfog plot ")]
    assert len(found) > 12
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_documentation_are_asked_as_they_are_meant(line, unfog_command, asked):
    kind = line.split()[2]
    if kind in ("loss", "copies") and ".png" in line:
        pytest.importorskip("matplotlib")
    code, out, err = unfog_command(*shlex.split(line)[1:])
    assert (code, err) == (0, []) and asked[-1][0] == kind and out[0].endswith((".png", ".svg"))


def test_help_names_every_plot(unfog_command):
    code, out, err = unfog_command("plot", "--help")
    assert (code, err) == (0, []) and all(any(f" {kind} " in line for line in out) for kind in plots.PLOTS)
    for kind in plots.PLOTS:
        code, out, _ = unfog_command("plot", kind, "--help")
        assert code == 0 and any(line.lstrip().startswith("unfog plot " + kind) for line in out)
