"""Claims are decided by their stated tests alone, kept as they are done, and shown as what was kept."""

import importlib.util
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import unfog.claims.run as runner
from unfog.claims import CLAIMS, page
from unfog.claims.claim import Figure, Found, Line, Plot, Settings, Statement, Test, decide
from unfog.claims.draw import draw
from unfog.errors import UserError
from unfog.requests import ClaimsRequest, check

DOCS = Path(__file__).parents[2] / "docs"
LOW, HIGH = Test(key="a", says="a is small", op="<=", bound=1.0), Test(key="b", says="b is large", op=">", bound=0.0)


@pytest.mark.parametrize(
    "values, verdict",
    [
        ({"a": 1.0, "b": 0.1}, "holds"),
        ({"a": 1.1, "b": 0.1}, "holds in part"),
        ({"a": 1.0, "b": 0.0}, "holds in part"),
        ({"a": math.inf, "b": -math.inf}, "does not hold"),
        ({"a": -math.inf, "b": math.inf}, "holds"),
        ({"a": math.nan, "b": 0.1}, "not measured"),
        ({"a": 1.1}, "not measured"),
        ({}, "not measured"),
    ],
)
def test_the_tests_decide(values, verdict):
    assert decide((LOW, HIGH), values)[1] == verdict


def test_what_no_test_asks_for_is_a_slip():
    assert decide((), {})[1] == "not measured"
    with pytest.raises(ValueError, match=r"\['c'\]"):
        decide((LOW,), {"a": 1.0, "c": 2.0})


@pytest.mark.parametrize("name", CLAIMS)
def test_every_statement_can_hold_and_can_fail(name):
    statement, _ = CLAIMS[name]
    assert len({test.key for test in statement.tests}) == len(statement.tests) >= 3
    assert all(len(text) > 20 for text in (statement.title, statement.says, statement.source, statement.how))
    sign = {"<": -1, "<=": -1, ">": 1, ">=": 1}
    good = {test.key: test.bound + sign[test.op] * 1e-6 for test in statement.tests}
    bad = {test.key: test.bound - sign[test.op] * 1e-6 for test in statement.tests}
    assert decide(statement.tests, good)[1] == "holds"
    assert decide(statement.tests, bad)[1] == "does not hold"
    first = statement.tests[0].key
    assert decide(statement.tests, {**good, first: bad[first]})[1] == "holds in part"


@pytest.fixture
def two(monkeypatch):
    """Two claims of no cost; the second can be broken off."""
    calls = []
    plot = Plot(
        name="line", title="A line", lines=[Line(name="y", x=[1, 2], y=[3, 4], low=[2, 3], high=[4, 5])], x_name="x", y_name="y"
    )

    def claim(name, value):
        def measure(settings, say):
            calls.append(name)
            if value is None:
                raise KeyboardInterrupt
            say("measuring")
            figure = Figure(what="a | b", value=value + settings.seed, low=value - 1, high=math.inf, n=3, of="draws")
            return Found((figure,), {"a": value}, (plot,), ("A note.",))

        return Statement(name.title(), "It is said.", "Somebody 2020", "Somehow.", (LOW,)), measure

    registry = {"first": claim("first", 0.5), "second": claim("second", None)}
    monkeypatch.setattr(runner, "CLAIMS", registry)
    return registry, calls, claim


def test_an_interrupted_run_keeps_what_is_done_and_resumes(two, tmp_path):
    registry, calls, claim = two
    out = tmp_path / "found"
    with pytest.raises(KeyboardInterrupt):
        runner.claims(check(ClaimsRequest, {"out": out}))
    assert [c.name for c in runner.read(out).claims] == ["first"] and (tmp_path / "found.md").is_file()
    before = (out / "claims.json").read_bytes()
    registry["second"] = claim("second", 2.0)
    lines = []
    results = runner.claims(check(ClaimsRequest, {"out": out, "resume": True}), lines.append)
    assert calls == ["first", "second", "second"] and "first: measured before" in lines and "second: measuring" in lines
    assert [(c.name, c.verdict) for c in results.claims] == [("first", "holds"), ("second", "does not hold")]
    assert json.loads(before)["claims"][0] == json.loads((out / "claims.json").read_bytes())["claims"][0]
    runner.claims(check(ClaimsRequest, {"out": out, "resume": True, "seed": 1, "names": ["first"]}))
    assert calls[-1] == "first"  # other settings are measured again
    assert [c.seed for c in runner.read(out).claims] == [1, 0]


def test_the_page_is_drawn_again_from_what_was_kept(two, tmp_path):
    registry, calls, claim = two
    registry["second"] = claim("second", 2.0)
    out = tmp_path / "found"
    runner.claims(check(ClaimsRequest, {"out": out, "quick": True}))
    made = {path.name: path.read_bytes() for path in (tmp_path / "found.md", *out.iterdir())}
    assert set(made) == {"found.md", "claims.json", "first-line.svg", "second-line.svg"}
    for path in (tmp_path / "found.md", out / "first-line.svg"):
        path.unlink()
    calls.clear()
    results = runner.claims(check(ClaimsRequest, {"out": out, "page": True, "names": ["second"]}))
    assert not calls and [c.name for c in results.claims] == ["second"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "found.md", *out.iterdir())} == made
    text = made["found.md"].decode()
    assert "**does not hold**" in text and "a \\| b | 2 |" in text and "found/second-line.svg" in text and "--quick" in text
    assert "second: does not hold (quick)" in str(results) and "a is small: 2 (bound <= 1)" in str(results)


def test_bad_input_is_one_line(two, tmp_path):
    with pytest.raises(UserError, match="claim: 'fist' is unknown; did you mean first?"):
        runner.claims(check(ClaimsRequest, {"names": ["first", "fist"], "out": tmp_path}))
    with pytest.raises(UserError, match="did you mean first?"):
        runner.measure("frist", Settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        runner.claims(check(ClaimsRequest, {"out": tmp_path / "file"}))
    with pytest.raises(UserError, match="measure first"):
        runner.claims(check(ClaimsRequest, {"out": tmp_path / "new", "page": True}))
    for text in ("{", '{"claims": [{"name": "first"}]}'):
        (tmp_path / "claims.json").write_text(text)
        with pytest.raises(UserError, match="remove it and measure again"):
            runner.claims(check(ClaimsRequest, {"out": tmp_path}))


@pytest.mark.parametrize("log", [False, True])
def test_a_plot_is_a_well_formed_picture(log):
    lines = [
        Line(name="a < b & c", x=[1, 10, 100], y=[1e-3, 1.0, 0.0], low=[0.0, 0.5, 0.0], high=[1.0, 2.0, 0.1]),
        Line(name="one", x=[3.0], y=[2.0], dots=True),
        Line(name="none", x=[], y=[], dashed=True),
    ]
    plot = Plot(name="p", title='"quoted"', lines=lines, x_name="x", y_name="y", log_x=log, log_y=log)
    root = ET.fromstring(draw(plot))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & c" in texts and '"quoted"' in texts
    spots = [p for e in root.iter("{http://www.w3.org/2000/svg}polyline") for p in e.get("points").split()]
    assert len(spots) == (2 if log else 3)
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in (p.split(",") for p in spots))
    ET.fromstring(draw(Plot(name="p", title="empty", lines=[], x_name="x", y_name="y", log_x=log, log_y=log)))


def test_numbers_are_short_and_plain():
    assert [page.number(v) for v in (None, 0.0, 1234567.0, 1234.5, 12.34, 0.01234, 1e-5)] == [
        "—", "0", "1.2e+06", "1,234", "12.3", "0.0123", "1.0e-05",
    ]  # fmt: skip


def test_what_was_not_measured_is_named(two, tmp_path):
    runner.claims(check(ClaimsRequest, {"out": tmp_path / "found", "names": ["first"]}))
    assert "| Second | not measured | `unfog claims second` measures it |" in (tmp_path / "found.md").read_text()


def test_places_are_put_together(two, tmp_path, monkeypatch):
    registry, _, claim = two
    spec = importlib.util.spec_from_file_location("tools_docs_claims", DOCS.parent / "tools" / "docs" / "claims.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "CLAIMS", registry)
    registry["second"] = claim("second", 2.0)
    one, two_, into = tmp_path / "one", tmp_path / "two", tmp_path / "all"
    runner.claims(check(ClaimsRequest, {"out": one}))
    runner.claims(check(ClaimsRequest, {"out": two_, "names": ["first"], "seed": 7}))
    (tmp_path / "more.json").write_text(json.dumps({"claims": json.loads((one / "claims.json").read_text())["claims"][1:]}))
    monkeypatch.setattr("sys.argv", ["claims.py", str(two_), str(tmp_path / "more.json"), "--into", str(into)])
    tool.main()
    results = runner.read(into)
    assert [(c.name, c.seed, c.verdict) for c in results.claims] == [("first", 7, "holds"), ("second", 0, "does not hold")]
    assert list(results.seconds) == ["first"] and (tmp_path / "all.md").is_file()


# The page that ships


def shipped():
    return runner.Results.model_validate_json((DOCS / "claims" / runner.RESULTS).read_bytes())


def test_the_shipped_page_is_what_its_results_render_to():
    results = shipped()
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == page.markdown(
        results.claims, "claims", results.seconds, runner.missing(results)
    )
    drawn = page.drawings(results.claims)
    assert {p.name for p in (DOCS / "claims").iterdir() if p.suffix != ".png"} == {*drawn, runner.RESULTS}
    for name, text in drawn.items():
        assert (DOCS / "claims" / name).read_text(encoding="utf-8") == text
    assert sum(p.stat().st_size for p in (DOCS / "claims").iterdir()) < 1_000_000


def test_the_shipped_results_are_of_the_claims_as_the_code_states_them():
    for claim in shipped().claims:
        statement, _ = CLAIMS[claim.name]
        assert (claim.title, claim.says, claim.source, claim.how) == (
            statement.title, statement.says, statement.source, statement.how,
        ), f"{claim.name}: measure it again"  # fmt: skip
        assert [(c.says, c.op, c.bound) for c in claim.checks] == [(t.says, t.op, t.bound) for t in statement.tests]
        passes = [check.passed for check in claim.checks]
        expected = (
            "not measured" if None in passes else "holds" if all(passes) else "holds in part" if any(passes) else "does not hold"
        )
        assert claim.verdict == expected
        for check_, test in zip(claim.checks, statement.tests, strict=True):
            if check_.found is not None:
                assert decide((test,), {test.key: check_.found})[0][0].passed == check_.passed
