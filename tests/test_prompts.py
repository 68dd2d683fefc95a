r"""The prompt language: by hand, round trips, what is text, what is refused, and that no length or depth is too much."""

import random
import sys
from contextlib import suppress

import pytest

import unfog.prompts
from unfog.errors import UserError
from unfog.prompts import DOWN, UP, Fragment, escape, parse


def said(text, progress=0.0, steps=20):
    (fragments,) = parse(text).at(progress, steps)
    return [(f.text, round(f.weight, 9)) for f in fragments]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red:1.5) apple", [("a ", 1), ("red", 1.5), (" apple", 1)]),
        ("(red)", [("red", round(UP, 9))]),
        ("[red]", [("red", round(DOWN, 9))]),
        ("((red))", [("red", 1.21)]),
        ("((red:2) cat:1.5)", [("red", 3), (" cat", 1.5)]),
        ("[(red:2)]", [("red", round(2 * DOWN, 9))]),
        ("((a:9):9)", [("a", 10)]),  # the product ends at 10
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("(see: above)", [("see: above", 1.1)]),
        ("(red:.5) (blue:2.)", [("red", 0.5), (" ", 1), ("blue", 2)]),
        (r"a \(red\) cat", [("a (red) cat", 1)]),
        (r"(a\:2)", [("a:2", 1.1)]),
        (r"(a\\:2)", [("a\\", 2)]),
        ("(a:0) b", [("a", 0), (" b", 1)]),
    ],
)
def test_weights_by_hand(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "flag: Aruba",
        "Japanese “here” button",
        "a cat :) and a dog (",
        ":(",
        "12:30 o'clock",
        "a | b",
        "f() and a[]",
        "( )",
        "C:\\dir",
        "¯\\_/¯",
        ")(",
        "][",
        "a] b) c",
        "(((",
        "",
        " ",
        "a:b:c",
    ],
)
def test_ordinary_text_is_itself(text):
    prompt = parse(text)
    assert prompt.plain and not prompt.changes
    assert prompt.at(0.5) == ((Fragment(text),) if text else (),)


def test_a_bracket_without_partner_is_text_and_its_neighbours_are_not():
    assert said("(a (b:2) c") == [("(a ", 1), ("b", 2), (" c", 1)]
    assert said("[a (b] c)") == [("a (b", round(DOWN, 9)), (" c)", 1)]
    assert said("(a [b:2)") == [("a [b", 2)]


@pytest.mark.parametrize("seed", range(40))
def test_escaped_text_means_itself(seed):
    rng = random.Random(seed)
    for _ in range(50):
        text = "".join(rng.choice("ab 1.:()[]|\\:") for _ in range(rng.randrange(1, 14)))
        (fragments,) = parse(escape(text)).at(0.3)
        assert fragments == (Fragment(text),), text
    assert escape("flag: Aruba") == "flag: Aruba"


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_read_or_refused_in_one_line(seed):
    rng = random.Random(1000 + seed)
    for _ in range(300):
        text = "".join(rng.choice("aé 105.:()[]|\\:-") for _ in range(rng.randrange(1, 20)))
        try:
            prompt = parse(text)
        except UserError as error:
            assert str(error).startswith("prompt: ") and "\n" not in str(error)
            continue
        assert abs(sum(prompt.shares) - 1.0) < 1e-6
        for progress in (0.0, 0.37, 0.99):
            for fragments in prompt.at(progress):
                assert all(f.text and 0.0 <= f.weight <= 10.0 for f in fragments)
                # neighbours are joined
                assert all(a.weight != b.weight for a, b in zip(fragments, fragments[1:], strict=False))


def over(text, steps=10):
    """What stands at each step."""
    return ["".join(f.text for f in parse(text).at(i / steps, steps)[0]) for i in range(steps)]


def test_words_come_and_go():
    assert over("a [red:blue:0.3] cat") == ["a red cat"] * 3 + ["a blue cat"] * 7
    assert over("a [red:blue:3] cat") == ["a red cat"] * 3 + ["a blue cat"] * 7  # the third step is the fourth
    assert over("cat[ hat:0.5]") == ["cat"] * 5 + ["cat hat"] * 5
    assert over("cat[ hat::0.5]") == ["cat hat"] * 5 + ["cat"] * 5
    assert over("[a:b:0]") == ["b"] * 10 and over("[a:b:1]") == ["a"] * 10
    assert over("[flag: aruba::0.5]") == ["flag: aruba"] * 5 + [""] * 5
    assert over("[a|b|c]") == ["a", "b", "c"] * 3 + ["a"]
    assert over("[a|]") == ["a", ""] * 5
    assert over("[a:[b|c]:0.5]") == ["a"] * 5 + ["c", "b", "c", "b", "c"]
    assert said("[(a:2):b:0.5]", 0.2) == [("a", 2)] and said("[(a:2):b:0.5]", 0.7) == [("b", 1)]
    assert not parse("(a:2)").changes and parse("[a|b]").changes and not parse("[a]").changes


def test_parts():
    prompt = parse("red cat::2 blue dog::1")
    assert [part.weight for part in prompt.parts] == [2, 1] and prompt.shares == (2 / 3, 1 / 3)
    assert prompt.at(0) == ((Fragment("red cat"),), (Fragment("blue dog"),))
    assert [p.weight for p in parse("red cat:: blue dog").parts] == [1, 1]
    assert parse("cat::2 dog::-0.5").shares == (2 / 1.5, -0.5 / 1.5)
    assert parse("cat::2nd place").at(0)[1] == (Fragment("2nd place"),)
    assert len(parse("(a::b) c").parts) == 1 and len(parse(r"a:\:b").parts) == 1
    assert parse("(a:2) b::3 c").at(0)[0] == (Fragment("a", 2.0), Fragment(" b"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("(a:11)", "the weight 11"),
        ("(a:-1)", "the weight -1"),
        ("[a:b:-1]", "is no time"),
        ("[a:b:2.5]", "is no time"),
        ("[a:b:c:0.5]", "has 3 colons"),
        ("a::1 b::-1", "sum to 0"),
        ("a::1 b::-2", "sum to -1"),
        ("a::1 b::-0.99", "sum to 0.01"),
        (":: a", "part 1 is empty"),
        ("a:: :: b", "part 2 is empty"),
    ],
)
def test_what_is_refused(text, line):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert line in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def lines(text):
    """Lines of the parser and of one reading that are run for a text: its work, counted, not timed."""
    file, count = unfog.prompts.__file__, 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != file:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(UserError):  # refusing is work too
            for part in parse(text).parts:
                part.at(0.5)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "(" * n + "a" + ")" * n,
        lambda n: "[" * n + "a" + "]" * n,
        lambda n: "(" * n,
        lambda n: ")" * n,
        lambda n: "([" * n + ")" * n,
        lambda n: "(:" * n + ")" * n,
        lambda n: "[a:" * n + "b:0.5]" * n,
        lambda n: "[a|" * n + "]" * n,
        lambda n: ":" * n,
        lambda n: "a::1 " * n,
        lambda n: "\\(" * n,
        lambda n: "[" + "a:" * n + "x]",
    ],
)
def test_work_is_linear(make):
    small, large = lines(make(500)), lines(make(2000))
    assert large < 4.4 * small + 100


def test_no_depth_and_no_length_is_too_much():
    deep = parse("(" * 100_000 + "a" + ")" * 100_000)
    assert deep.at(0) == ((Fragment("a", 10.0),),)
    assert parse("[" * 100_000).plain
    long = "a cat, " * 1_500_000
    assert len(long) > 10_000_000
    assert parse(long + "(red:2)").at(0)[0][1] == Fragment("red", 2.0)


def test_all_captions_that_hold_no_bracket_are_themselves():
    from unfog.data import path
    from unfog.modalities.image.data import PictureSet

    texts = {t for r in PictureSet.open(path("emoji-64")).records for t in (r.name, r.text, *r.tags)}
    read = [t for t in texts if not parse(t).plain]
    assert len(texts) > 5000 and any(":" in t for t in texts)
    assert all("(" in t and ")" in t for t in read)  # "o button (blood type)": the only ones that the language reads
    assert all(parse(escape(t)).at(0)[0] == (Fragment(t),) for t in texts if t)
