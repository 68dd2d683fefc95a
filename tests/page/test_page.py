"""A page of figures: whole, escaped, well-formed, with every figure that went in; plots that show where the data stand."""

import base64
import math
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from unfog.page import (
    Alarm,
    Bars,
    Facts,
    Folded,
    Lines,
    Measure,
    Measures,
    Picture,
    Pictures,
    Section,
    Series,
    Table,
    Words,
    figure,
    page,
    standalone,
    svg,
)

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '</style><script>alert("1")</script>&\x1b\ud800'


def parsed(text):
    return ElementTree.fromstring(text.split("\n", 1)[1])


def test_everything_is_there_escaped_and_nothing_is_fetched():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    low = Measure("FD-lite0 <a>", 21.42, 20.6, 22.3, n=5000, floor=3.3, unit="%", note="half against half")
    parts = [Words(EVIL), Facts([(EVIL, EVIL)]), Measures([low, Measure("none", None, note="too few")], EVIL),
             Table(["x", EVIL], [["a", low], [EVIL, 3], ["b", None], ["c", 0.123456]]), Alarm([EVIL]),
             Pictures([Picture(pixels, EVIL, 2), Picture(pixels[..., :3]), Picture(pixels[..., 0])], EVIL),
             Lines(EVIL, [Series(EVIL, [1, 2], [3, 4], labels=[EVIL, ""], dots=True)], EVIL, EVIL, levels=[(3.5, EVIL)]),
             Bars(EVIL, [EVIL], [Series(EVIL, [0], [1])], EVIL), Folded(EVIL, [Words(EVIL)])]  # fmt: skip
    text = page(EVIL, [Section(EVIL, parts), Section("empty", [])], settings=[(EVIL, 1)], sub=EVIL, alarms=[EVIL])
    root = parsed(text)
    assert not [e for e in root.iter() if e.tag.endswith(("script", "link", "iframe"))]
    assert set(re.findall(r'https?://[^"\' <]+', text)) == {"http://www.w3.org/2000/svg"} and "url(" not in text
    said = "".join(root.itertext())
    for expected in ("21.4 [20.6, 22.3] %", "n=5,000", "3.3", "half against half", "0.1235", 'alert("1")'):
        assert expected in said
    assert "empty" not in said
    (first, *_) = list(root.iter("img"))
    assert (first.get("width"), first.get("height")) == ("8", "10")
    with Image.open(BytesIO(base64.b64decode(first.get("src").partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image), pixels)
    text.encode("utf-8")  # no lone surrogate is left
    assert page("a", [Section("s", parts)]) == page("a", [Section("s", parts)])


@pytest.mark.parametrize("value, low, high, words", [
    (21.4213, 20.61, 22.34, "21.4 [20.6, 22.3]"), (0.01234, 0.0121, 0.0126, "0.01234 [0.01210, 0.01260]"),
    (12345.6, 12000, 13000, "12,346 [12,000, 13,000]"), (0.5, None, None, "0.5000"), (0, 0, 0, "0 [0, 0]"),
    (1.0, 0.5, math.inf, "1.000 [0.500, ∞]"), (None, None, None, "—"), (math.nan, None, None, "—")])  # fmt: skip
def test_a_figure_is_rounded_by_its_interval(value, low, high, words):
    assert figure(Measure("x", value, low, high)) == words


def test_a_picture_must_be_bytes():
    for wrong in (np.zeros((2, 2, 4)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            page("t", [Section("", [Pictures([Picture(wrong)])])])
    with pytest.raises(TypeError, match="not str"):
        page("t", [Section("", ["words"])])


def ticks(root, axis):
    place, shift = ("x", 0) if axis == "x" else ("y", -4)
    found = [(float(t.get(place)) + shift, float(t.text)) for t in root.findall(f"{SVG}text")
             if t.get("class") == f"tick {axis}" and t.text and re.fullmatch(r"-?[\d.]+", t.text)]  # fmt: skip
    return [p for p, _ in found], [v for _, v in found]


@pytest.mark.parametrize("log", [False, True])
def test_dots_and_whiskers_stand_where_the_ticks_say(log):
    x, y = [1, 2, 4, 8, 16], [9.0, 5.0, 3.0, 2.0, 1.5]
    low, high = [v * 0.8 for v in y], [v * 1.3 for v in y]
    root = ElementTree.fromstring(svg(Lines("t", [Series("s", x, y, low=low, high=high, dots=True)], log=log, x_log=log)))
    value = math.log if log else float
    fits = {axis: np.polyfit(ticks(root, axis)[0], [value(v) for v in ticks(root, axis)[1]], 1) for axis in "xy"}
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.findall(f"{SVG}circle")][1:]  # the first is the legend's
    assert np.allclose([np.polyval(fits["x"], a) for a, _ in dots], [value(v) for v in x], atol=0.02 if log else 0.05)
    assert np.allclose([np.polyval(fits["y"], b) for _, b in dots], [value(v) for v in y], atol=0.02 if log else 0.05)
    whiskers = [re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)M", p.get("d")) for p in root.findall(f"{SVG}path")]
    ends = [(np.polyval(fits["y"], float(m[1])), np.polyval(fits["y"], float(m[2]))) for m in whiskers if m]
    assert np.allclose(ends, [(value(a), value(b)) for a, b in zip(low, high, strict=True)], atol=0.02 if log else 0.05)


def test_bands_of_lines_and_a_low_end_of_zero_on_a_logarithmic_scale():
    line = Series("s", [1, 2, 3], [1.0, 2.0, 3.0], low=[0.0, 1.0, None], high=[2.0, 3.0, 4.0])
    for log in (False, True):
        root = ElementTree.fromstring(svg(Lines("t", [line], log=log)))
        (band,) = root.findall(f"{SVG}polygon")
        points = [tuple(map(float, pair.split(","))) for pair in band.get("points").split()]
        assert len(points) == 4 and all(0 < b <= 400 for _, b in points)


def test_bars_are_as_high_as_their_values():
    bars = Bars("t", ["a", "b", "c"], [Series("one", [0, 1, 2], [1, 4, 2]), Series("two", [0, 2], [3, -1], colour=2,
                                                                                  low=[2, -2], high=[4, 0])])  # fmt: skip
    root = ElementTree.fromstring(svg(bars))
    fit = np.polyfit(*ticks(root, "y"), 1)
    bar = [r for r in root.findall(f"{SVG}rect") if r.get("class").startswith("bar") and r.find(f"{SVG}title") is not None]
    heights = [float(r.get("height")) * -fit[0] for r in bar]
    assert np.allclose(heights, [1, 4, 2, 3, 1], atol=0.02)
    assert len([p for p in root.findall(f"{SVG}path") if p.get("class") == "whisker"]) == 2
    assert svg(Bars("t", [], [])) == svg(Bars("t", ["a"], [Series("", [0], [None])])) == svg(Lines("t", [])) == ""


def test_a_plot_on_its_own_names_its_colours():
    text = standalone(svg(Lines("t", [Series("s", [1, 2], [3, 4])])))
    assert "var(" not in text and ElementTree.fromstring(text).tag == f"{SVG}svg"
