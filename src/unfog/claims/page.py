"""Claims as a Markdown page with plots, and as a table for the terminal. Nothing here measures or decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unfog.claims.claim import Check, Claim, Figure
from unfog.claims.draw import draw

HEAD = """# The field's claims, measured

What is said of diffusion models, held against our own models and against mixtures whose exact answers are known.
`unfog claims` makes this page: every figure comes from its measurement, and every verdict from tests that the code states
before anything is measured (`src/unfog/claims/`). Figures carry their 95 % interval and their size n. Run it again with
`unfog claims NAME`, and `unfog claims NAME --quick` for a look in seconds.
"""


def number(value: float | None) -> str:
    """Three significant digits, plainly written."""
    if value is None:
        return "—"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def interval(figure: Figure) -> str:
    """[low, high], or nothing where there is none."""
    return "" if figure.low is None or figure.high is None else f"[{number(figure.low)}, {number(figure.high)}]"


def size(figure: Figure) -> str:
    """What n counts."""
    return f"{figure.n:,} {figure.of}".strip() if figure.n else "exact"


def outcome(check: Check) -> str:
    """Passed, failed, or why neither."""
    sign = {"<=": "≤", ">=": "≥"}.get(check.op, check.op)
    found = "—" if check.found is None else number(check.found)
    word = {True: "passed", False: "**failed**", None: "not measured"}[check.passed]
    return f"{found} | {sign} {number(check.bound)} | {word}"


def drawings(claims: Sequence[Claim]) -> dict[str, str]:
    """File name: SVG."""
    return {f"{claim.name}-{plot.name}.svg": draw(plot) for claim in claims for plot in claim.plots}


def markdown(claims: Sequence[Claim], folder: str, seconds: Mapping[str, float], missing: Mapping[str, str]) -> str:
    """The page; folder is where, beside it, the plots lie; missing: names and titles of claims that were not measured here."""
    out = [HEAD, "| claim | verdict | the tests |", "|---|---|---|"]
    for claim in claims:
        passed = sum(check.passed is True for check in claim.checks)
        mode = " (quick)" if claim.quick else ""
        out.append(
            f"| [{claim.title}](#{anchor(claim.title)}) | **{claim.verdict}**{mode} | {passed} of {len(claim.checks)} passed |"
        )
    out += [f"| {title} | not measured | `unfog claims {name}` measures it |" for name, title in missing.items()]
    for claim in claims:
        out += ["", f"## {claim.title}", "", f"> {claim.says}", "", f"Source: {claim.source}", "",
                f"**Verdict: {claim.verdict}.** {claim.how}", ""]  # fmt: skip
        if claim.quick:
            out += ["Measured with `--quick`: few samples, wide intervals.", ""]
        if claim.checks:
            out += ["| what must be so | found | bound | |", "|---|---|---|---|"]
            out += [f"| {cell(check.says)} | {outcome(check)} |" for check in claim.checks] + [""]
        if claim.figures:
            out += ["| figure | value | 95 % interval | n |", "|---|---|---|---|"]
            out += [f"| {cell(f.what)} | {number(f.value)} | {interval(f)} | {size(f)} |" for f in claim.figures] + [""]
        out += [f"![{plot.title}]({folder}/{claim.name}-{plot.name}.svg)\n" for plot in claim.plots]
        out += [f"{note}\n" for note in claim.notes]
        took = f", {number(seconds[claim.name])} s on one thread" if claim.name in seconds else ""
        out.append(f"`unfog claims {claim.name}{' --quick' if claim.quick else ''} --seed {claim.seed}`, "
                   f"unfog {claim.version}{took}.")  # fmt: skip
    return "\n".join(out).rstrip() + "\n"


def cell(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def anchor(title: str) -> str:
    """How GitHub names a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def terminal(claims: Sequence[Claim]) -> str:
    """Each claim with its verdict, its tests and its figures, as plain lines."""
    out = []
    for claim in claims:
        mode = " (quick)" if claim.quick else ""
        out += [f"{claim.name}: {claim.verdict}{mode}", f"  {claim.says}"]
        for check in claim.checks:
            mark = {True: "+", False: "-", None: "?"}[check.passed]
            out.append(f"  {mark} {check.says}: {number(check.found)} (bound {check.op} {number(check.bound)})")
        widest = max((len(f.what) for f in claim.figures), default=0)
        out += [f"    {f.what.ljust(widest)}  {number(f.value):>9} {interval(f):20} {size(f)}".rstrip() for f in claim.figures]
        out += [f"  {note}" for note in claim.notes] + [""]
    return "\n".join(out).rstrip()
