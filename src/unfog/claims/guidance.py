"""Guidance buys fidelity with diversity: exactly on two overlapping classes, and on pictures of captions."""

from __future__ import annotations

from collections.abc import Callable

from unfog.claims import emoji
from unfog.claims.claim import Figure, Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.guided import FINE, PICTURE_SCALES, SCALES, STEPS, Cloud, Points, shown, ways
from unfog.claims.mixtures import end, over_runs

HIGH = 5.0

STATEMENT = Statement(
    title="Guidance trades diversity for fidelity",
    says="A larger guidance scale makes samples fit their condition better and differ from one another less.",
    source="Ho and Salimans 2022, arXiv:2207.12598; Dhariwal and Nichol 2021, arXiv:2105.05233",
    how="Two overlapping classes of three spots each with exact denoisers: how sure the exact classifier is, how wide the cloud "
    "is, over the class's own width, and its coverage of exact draws (k = 5), with dpmpp_2m. Pictures: several of each held-out "
    "caption; R@1 of 65 captions by a judge that never saw a generated picture, and the mean lite0 distance of pictures of one "
    f"caption; {STEPS} steps, {emoji.ON}.",
    tests=(
        Test(key="sure", says=f"mixture: certainty at {HIGH:g} less that at 1, lower end", op=">", bound=0.0),
        Test(key="narrow", says=f"mixture: width at {HIGH:g} less that at 1, upper end", op="<", bound=0.0),
        Test(key="covers", says=f"mixture: coverage of the class at {HIGH:g} less that at 1, upper end", op="<", bound=0.0),
        Test(key="rise", says="mixture: largest rise of the width between neighbouring scales", op="<=", bound=0.01),
        Test(key="fits", says=f"pictures: R@1 at {HIGH:g} less that at 1, lower end", op=">", bound=0.0),
        Test(
            key="differ", says=f"pictures: difference within a caption at {HIGH:g} less that at 1, upper end", op="<", bound=0.0
        ),
    ),
)


def measure(settings: Settings, say: Say) -> Found:
    """The mixture over all scales, then pictures over fewer."""
    runs, cloud = (3, Cloud(500, 25)) if settings.quick else (6, Cloud(4_000, FINE))
    scales = SCALES[::2] if settings.quick else SCALES
    scales = tuple(sorted({*scales, HIGH}))
    plain, figures = ways(cloud.limit)["plain"], []
    table = {}
    for scale in scales:
        say(f"mixture, scale {scale:g}")
        table[scale] = [cloud.made(plain, scale, settings.seed + 100 * k) for k in range(runs)]
    of = f"{cloud.n:,} points"

    def over(what: str, read: Callable[[Points], float]) -> tuple[dict[float, Figure], Figure]:
        """A figure at each scale, and high less off."""
        each = {s: over_runs(f"mixture: {what} at scale {s:g}", [read(p) for p in row], of) for s, row in table.items()}
        gaps = [read(a) - read(b) for a, b in zip(table[HIGH], table[1.0], strict=True)]
        return each, over_runs(f"mixture: {what}, {HIGH:g} less 1", gaps, of)

    sure, more = over("certainty of the class", lambda p: p.sure)
    wide, less = over("width over the class's own", lambda p: p.spread)
    covers, fewer = over("coverage of the class", lambda p: p.coverage)
    figures += [figure for s in scales for figure in (sure[s], wide[s], covers[s])]
    widths = [end(wide[s].value) for s in scales]
    asked = (1.0, HIGH) if settings.quick else PICTURE_SCALES
    seen = {s: shown("plain", s, settings, say) for s in asked}
    fits = {s: emoji.mean_of(f"pictures: R@1 at scale {s:g}", p.fits, clusters=p.clusters) for s, p in seen.items()}
    differ = {
        s: emoji.mean_of(f"pictures: difference within a caption at scale {s:g}", p.differ, "captions") for s, p in seen.items()
    }
    figures += [figure for s in asked for figure in (fits[s], differ[s])]
    high, off = seen[HIGH], seen[1.0]
    gain, loss = high.fits.astype(float) - off.fits, high.differ - off.differ
    better = emoji.mean_of(f"pictures: R@1, {HIGH:g} less 1", gain, clusters=high.clusters)
    alike = emoji.mean_of(f"pictures: difference within a caption, {HIGH:g} less 1", loss, "captions")
    figures += [more, less, fewer, better, alike]
    return Found(
        tuple(figures),
        {
            "sure": end(more.low),
            "narrow": end(less.high),
            "covers": end(fewer.high),
            "rise": max(b - a for a, b in zip(widths, widths[1:], strict=False)),
            "fits": end(better.low),
            "differ": end(alike.high),
        },
        (
            Plot(name="mixture", title="Two classes, exact denoiser", x_name="scale", y_name="share", log_x=True,
                 lines=[_line("certainty of the class", sure), _line("width over its own", wide), _line("coverage", covers)]),
            Plot(name="pictures", title="emoji-64: fit to the caption", x_name="scale", y_name="R@1 of 65", log_x=True,
                 lines=[_line("R@1", fits)]),
            Plot(name="variety", title="emoji-64: difference of pictures of one caption", x_name="scale", y_name="lite0 distance",
                 log_x=True, lines=[_line("mean distance", differ)]),
        ),
    )  # fmt: skip


def _line(name: str, figures: dict[float, Figure]) -> Line:
    x, y = list(figures), [end(f.value) for f in figures.values()]
    return Line(name=name, x=x, y=y, low=[end(f.low) for f in figures.values()], high=[end(f.high) for f in figures.values()])
