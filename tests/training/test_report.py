"""The page of a run: plots that show the data, warnings that are true, HTML that is whole and needs nothing else."""

import base64
import json
import math
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from unfog.errors import UserError
from unfog.page.plot import MOST, Series, label, line_plot, linear_ticks, log_ticks
from unfog.requests import ReportRequest
from unfog.training.report import make_report, write_report
from unfog.training.report.page import spread
from unfog.training.report.read import read_run
from unfog.training.report.words import copies_by_chance, smoothed, warnings

SVG = "{http://www.w3.org/2000/svg}"


def shown(text):
    """A tick's number."""
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    return float(text.rstrip("kMG")) * unit


def read_back(svg, log=False):
    """The points of each line of a plot, in the data's units: pixels are read off the labelled ticks, as a person would."""
    root = ElementTree.fromstring(svg)
    texts = root.findall(f"{SVG}text")
    across = [(float(t.get("x")), shown(t.text)) for t in texts if t.get("class") == "tick x" and re.match(r"[-\d]", t.text)]
    up = [(float(t.get("y")) - 4, shown(t.text)) for t in texts if t.get("class") == "tick y"]
    value = (lambda v: math.log(v)) if log else (lambda v: v)
    a, b = np.polyfit([p for p, _ in across], [v for _, v in across], 1)
    c, d = np.polyfit([p for p, _ in up], [value(v) for _, v in up], 1)
    found = []
    for line in root.findall(f"{SVG}polyline"):
        points = np.array([[float(n) for n in pair.split(",")] for pair in line.get("points").split()])
        ys = c * points[:, 1] + d
        found.append((line.find(f"{SVG}title").text, a * points[:, 0] + b, np.exp(ys) if log else ys))
    return found


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("x", [np.arange(10, 260, 10), np.arange(0, 90_000, 3_000)])
def test_points_stand_where_the_ticks_say(x, log):
    y, z = 0.05 + 3 * np.exp(-x / x.max() * 4), np.linspace(0.1, 2, len(x))
    svg = line_plot("t", [Series("a & b", x.tolist(), y.tolist()), Series("z", x.tolist(), z.tolist())], "loss", log=log)
    (name, x1, y1), (_, x2, z2) = read_back(svg, log)
    assert name == "a & b"
    for found, true in ((x1, x), (x2, x), (y1, y), (z2, z)):
        assert np.allclose(found, true, rtol=0.01 if log else 0, atol=0.005 * true.max())


def test_gaps_single_points_marks_and_long_lines():
    svg = line_plot("t", [Series("", range(6), [1, 2, None, 4, math.nan, 6])], marks=[3, 99])
    root = ElementTree.fromstring(svg)
    assert len(root.findall(f"{SVG}polyline")) == 1 and len(root.findall(f"{SVG}circle")) == 2
    assert len([e for e in root.findall(f"{SVG}line") if e.get("class") == "mark"]) == 1
    long = line_plot("t", [Series("long", range(100_000), np.linspace(5, 1, 100_000).tolist())])
    ((_, x, y),) = read_back(long)
    assert MOST / 2 < len(x) <= MOST and np.allclose(y, 5 - 4 * x / 1e5, atol=0.02)
    nothing = [line_plot("t", []), line_plot("t", [Series("a", [1], [None])]), line_plot("t", [Series("a", [1], [-1])], log=True)]
    assert nothing == ["", "", ""]
    assert "<svg" in line_plot("t", [Series("a", [5], [0.0])]) and "<svg" in line_plot("t", [Series("a", [1, 2], [3, 3])])


def test_ticks_are_round_and_cover():
    for low, high in ((0, 1), (-3.3, 12.7), (0.00101, 0.00109), (1e6, 3e6), (17, 18)):
        ticks = linear_ticks(low, high)
        assert 2 <= len(ticks) <= 7 and all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
        assert len({label(t) for t in ticks}) == len(ticks)
    for low, high in ((0.011, 0.3), (1e-6, 10), (0.5, 0.62), (2, 3.1)):
        ticks = log_ticks(low, high)
        assert len(ticks) >= 1 and all(low * 0.99 <= t <= high * 1.01 for t in ticks)
    assert (label(12_000), label(2_500_000), label(0.00012), label(0)) == ("12k", "2.5M", "0.00012", "0")


def write_run(folder, held, train=None, *, timing=True, copies=0.0, about=None, losses=None, **more):
    """A run with a report every 100 steps, and a line every 10 of which `losses` are."""
    (folder / "samples").mkdir(parents=True)
    losses = losses if losses is not None else np.linspace(1, 0.5, 10 * len(held)).tolist()
    events = []
    for i, loss in enumerate(losses):
        step = 10 * (i + 1)
        events.append({"step": step, "loss": loss, "grad": 0.3, "grad_max": 0.9, "lr": 1e-3})
        if step % 100 == 0 and (k := step // 100 - 1) < len(held):
            line = {"step": step, "held_out": {"-1": held[k], "2": 0.1}, "held_out_se": {"-1": 0.002, "2": 0.001},
                    "raw": {"-1": held[k] * 1.01, "2": 0.1}, "ema_distance": 0.1, "samples": 24, "copies": copies,
                    "copies_real": 0.04, "nearest": 0.1, "nearest_real": 0.12}  # fmt: skip
            events.append(line | ({} if train is None else {"train": {"-1": train[k], "2": 0.1}}) | more)
            Image.new("RGB", (40 + k, 20), (k * 9 % 256, 90, 0)).save(folder / "samples" / f"{step:07d}.png")
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    if timing:
        times = [{"step": 0, "at": "2026-01-01T00:00:00.000Z", "start": True}]
        for i in range(1, 11):
            if i == 6:
                times.append({"step": 450, "at": "2026-01-01T01:00:00.000Z", "start": True})
            times.append({"step": i * 100, "at": f"2026-01-01T02:{i:02}:00.000Z", "steps": 100, "seconds": 60.0,
                          "items_per_s": 100.0, "waiting": 0.3 if timing == "slow" else 0.01,
                          "parts": {"data": 0.6, "forward": 20, "backward": 39.4}, "memory_mib": 800.0})  # fmt: skip
        (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    recipe = {"steps": 1000, "batch": 16, "lr": 1e-3, "clip": 1.0, "data": "<pics> & more", "size": 32, "network": "unet"}
    base = {"name": "shapes <1>", "recipe": recipe, "pictures": 500, "held_out": 50, "device": "cpu", "styles": []}
    if about is not None:
        (folder / "run.json").write_text(json.dumps(base | about))
    return folder


FALLING, TRAINED = [0.5, 0.4, 0.35, 0.33, 0.32, 0.31, 0.305, 0.302, 0.301, 0.3], [0.5 - 0.02 * i for i in range(10)]
RISING = [0.5, 0.4, 0.35, 0.33, 0.34, 0.35, 0.36, 0.37, 0.39, 0.4]


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    folder = write_run(tmp_path / "run", RISING, TRAINED, about={})
    assert write_report(folder) == folder / "report.html"
    html = (folder / "report.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(html.split("\n", 1)[1])  # well-formed: every tag is closed, every & is escaped
    assert html.startswith("<!DOCTYPE html>") and root.find("head/title").text == "shapes <1>: training report"
    assert not re.findall(r"<script|<link|@import|url\(|href=", html)
    assert set(re.findall(r'https?://[^"\' <]+', html)) == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert "prefers-color-scheme: dark" in html
    titles = {svg.get("aria-label") for svg in root.iter(f"{SVG}svg")}
    for wanted in ("Training loss", "Loss at fixed noise", "over that of training", "Gradient norm", "Learning rate", "average",
                   "Copies", "nearest training picture", "Throughput", "waiting for data", "Peak memory"):  # fmt: skip
        assert any(wanted in title for title in titles), wanted
    text = "".join(root.itertext())
    for wanted in ("step 1,000 of 1,000, finished", "<pics> & more", "500 pictures", "50 held out", "800 MiB", "100.0 items/s",
                   "10:00 in all, taken up again at step 450, from 2026-01-01 00:00", "± 0.002", "backward 65.7%"):  # fmt: skip
        assert wanted in text, wanted
    images = [img.get("src") for img in root.iter("img")]
    pictures = [Image.open(BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,")))) for src in images]
    assert [p.width for p in pictures] == [49, 48, 47, 46, 45, 44, 43, 42, 41, 40]  # newest first
    (loss,) = [svg for svg in root.iter(f"{SVG}svg") if "fixed noise" in svg.get("aria-label")]
    lines = {name: (x, y) for name, x, y in read_back(ElementTree.tostring(loss), log=True)}
    assert set(lines) == {"-1 held out", "2 held out", "-1 train", "2 train"}
    assert np.allclose(lines["-1 held out"][0], np.arange(100, 1001, 100), atol=2)
    assert np.allclose(lines["-1 held out"][1], RISING, rtol=0.01) and np.allclose(lines["-1 train"][1], TRAINED, rtol=0.01)
    assert len([e for e in loss.iter(f"{SVG}line") if e.get("class") == "mark"]) == 1


def test_a_run_that_goes_on_an_old_one_and_a_hostile_one(tmp_path):
    old = write_run(tmp_path / "old", [0.5, 0.4], timing=False)  # as runs were before: no timing, no run.json
    (old / "model").mkdir()
    (old / "model" / "model.json").write_text(json.dumps({"name": "old", "training": {"recipe": {"steps": 500, "data": "d"}}}))
    with open(old / "events.jsonl", "a") as events:
        events.write('{"step": 210, "lo')
    assert "step 200 of 500, not finished" in write_report(old).read_text()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "events.jsonl").write_text("")
    assert "<svg" not in write_report(bare, tmp_path / "bare.html").read_text() and not (bare / "report.html").exists()
    bad = tmp_path / "bad"
    (bad / "samples").mkdir(parents=True)
    (bad / "samples" / "0000010.png").write_bytes(b"no picture")
    rows = [{"step": 10, "loss": "x", "grad": 10**400, "lr": None}, {"step": 10, "held_out": {"</style>": 1, "-1": [], "0": 2}},
            {"step": "a"}, [1], {"step": 20, "loss": math.nan, "grad": True, "held_out": 3}]  # fmt: skip
    (bad / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[" * 5000 + "\n\x00\xff\n")
    (bad / "timing.jsonl").write_text('{"step": 1, "at": [], "seconds": 3, "parts": 7, "waiting": "x"}\n')
    (bad / "run.json").write_text(json.dumps({"name": "\x1b<script>alert(1)</script>", "recipe": {"steps": "many"}, "styles": 4}))
    page = write_report(bad).read_text()
    assert "<script" not in page and ElementTree.fromstring(page.split("\n", 1)[1]) is not None


def test_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        make_report(ReportRequest(run=tmp_path / "none"))
    with pytest.raises(UserError, match="has no events.jsonl"):
        make_report(ReportRequest(run=tmp_path))
    run = write_run(tmp_path / "run", [0.5])
    with pytest.raises(UserError, match="is a folder"):
        make_report(ReportRequest(run=run, out=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make_report(ReportRequest(run=run, out=tmp_path / "file" / "page.html"))


def told(tmp_path, *given, **more):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    return warnings(read_run(write_run(folder, *given, about=more.pop("about", {}), **more)))


def test_warnings_are_said_when_true_and_only_then(tmp_path):
    assert told(tmp_path, FALLING, FALLING) == []
    (risen,) = told(tmp_path, RISING, [0.37 + 0.04 * (9 - i) for i in range(10)])
    assert risen.startswith("Overfitting: held-out loss at ln(sigma/alpha) = -1 has risen by 21% since step 400 while training")
    assert "Overfitting" in told(tmp_path, RISING)[0]  # no figures of training pictures: by the loss of the steps, which fell
    assert told(tmp_path, RISING, RISING) == []  # both rose: no overfitting
    assert not any("Overfitting" in s for s in told(tmp_path, RISING[:2], TRAINED[:2]))
    (copied,) = told(tmp_path, FALLING, FALLING, copies=0.5)
    assert copied.startswith("Copies: 12 of 24 samples at step 1,000") and "(expected: 1.2)" in copied
    assert told(tmp_path, FALLING, FALLING, copies=2 / 24) == []
    assert any("above that of training pictures" in s for s in told(tmp_path, FALLING, [0.7 * v for v in FALLING]))
    assert any("30% of the time is spent waiting" in s for s in told(tmp_path, FALLING, FALLING, timing="slow"))
    assert any("No pictures are held out" in s for s in told(tmp_path, FALLING, about={"held_out": 0}))
    up = np.concatenate([np.linspace(1, 0.2, 50), np.linspace(0.2, 0.9, 50)]).tolist()
    assert any("does not converge" in s for s in told(tmp_path, FALLING, FALLING, losses=up))
    assert any("average is 25% above" in s for s in told(tmp_path, FALLING, FALLING, raw={"-1": 0.24, "2": 0.08}))


def test_chance_of_copies_is_the_binomial_tail():
    rng = np.random.default_rng(0)
    drawn = rng.binomial(24, 0.05, 200_000)
    for copies in (0, 1, 3, 5):
        assert copies_by_chance(copies, 24, 0.05) == pytest.approx((drawn >= copies).mean(), abs=0.004)


def test_smoothing_keeps_constants_and_gaps():
    assert smoothed([2.0, None, 2.0, 2.0]) == [2.0, None, 2.0, 2.0]
    rng = np.random.default_rng(0)
    values = smoothed((3 + rng.standard_normal(2000)).tolist())
    assert np.std(values[500:]) < 0.2 and abs(np.mean(values[500:]) - 3) < 0.1


def test_sheets_are_spread_over_the_run():
    assert spread(5, 12) == [0, 1, 2, 3, 4] and spread(0, 12) == []
    for count in (13, 100, 1001):
        chosen = spread(count, 12)
        assert len(chosen) == 12 and chosen[0] == 0 and chosen[-1] == count - 1
        assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
