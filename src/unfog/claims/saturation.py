"""High guidance over-saturates; four ways to mend it, each held against plain guidance at the same scale, on exact classes."""

from __future__ import annotations

from unfog.claims.claim import Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.guided import FINE, INTERVAL, MENDED, QUANTILE, TOP, Cloud, ways
from unfog.claims.mixtures import end, over_runs

SCALES = (1.0, 2.0, 5.0, TOP)
SAYS = (
    "At high scales samples leave the data's range: colours over-saturate. Rescaling, an interval, adaptive projection "
    "and dynamic thresholding undo it."
)
SOURCE = (
    "Saharia et al. 2022, arXiv:2205.11487; Lin et al. 2023, arXiv:2305.08891; Kynkäänniemi et al. 2024, "
    "arXiv:2404.07724; Sadat et al. 2024, arXiv:2410.02416"
)
THE_WAYS = (
    f"At scale {TOP:g}: rescale 0.7 in v, interval {INTERVAL[0]:g} to {INTERVAL[1]:g} in log-SNR, APG with eta 0, dynamic "
    "thresholding at the 0.995 quantile."
)

STATEMENT = Statement(
    title="High guidance over-saturates, and four ways mend it",
    says=SAYS,
    source=SOURCE,
    how=f"{THE_WAYS} Two overlapping classes with exact denoisers: share of points less likely under their class than all but "
    f"{QUANTILE:.1%} of its own ({FINE} steps of dpmpp_2m).",
    tests=(
        Test(key="beyond", says=f"share beyond the class at {TOP:g}, lower end (its own: {QUANTILE:g})", op=">=",
             bound=10 * QUANTILE),
        *(Test(key=f"mixture-{way}", says=f"share beyond the class, {way} less plain, upper end", op="<", bound=0.0)
          for way in MENDED),
    ),
)  # fmt: skip


def measure(settings: Settings, say: Say) -> Found:
    """Plain guidance over scales, then each way at the highest."""
    runs, cloud = (3, Cloud(500, 25)) if settings.quick else (4, Cloud(4_000, FINE))
    every, of = ways(cloud.limit), f"{cloud.n:,} points"
    seeds = [settings.seed + 100 * k for k in range(runs)]
    figures, values, beyond = [], {}, []
    for scale in SCALES:
        say(f"scale {scale:g}")
        plain = [cloud.made(every["plain"], scale, seed) for seed in seeds]
        beyond.append(over_runs(f"share beyond the class at scale {scale:g}", [p.beyond for p in plain], of))
        figures.append(over_runs(f"mean length over the class's own at scale {scale:g}", [p.far for p in plain], of))
    figures += beyond
    values["beyond"] = end(beyond[-1].low)
    for way in MENDED:
        say(way)
        row = [cloud.made(every[way], TOP, seed) for seed in seeds]
        gaps = [a.beyond - b.beyond for a, b in zip(row, plain, strict=True)]
        gap = over_runs(f"share beyond the class, {way} less plain", gaps, of)
        figures += [over_runs(f"share beyond the class with {way}", [p.beyond for p in row], of), gap,
                    over_runs(f"certainty of the class with {way}", [p.sure for p in row], of),
                    over_runs(f"coverage of the class with {way}", [p.coverage for p in row], of)]  # fmt: skip
        values[f"mixture-{way}"] = end(gap.high)
    figures.append(over_runs("certainty of the class, plain", [p.sure for p in plain], of))
    figures.append(over_runs("coverage of the class, plain", [p.coverage for p in plain], of))
    low, high = [end(f.low) for f in beyond], [end(f.high) for f in beyond]
    lines = [Line(name="plain", x=list(SCALES), y=[end(f.value) for f in beyond], low=low, high=high),
             Line(name="the class itself", x=[1.0, TOP], y=[QUANTILE, QUANTILE], dashed=True)]  # fmt: skip
    plot = Plot(name="beyond", title="Points beyond their class", lines=lines, x_name="scale", y_name="share", log_x=True)
    note = "A way that passes by giving up the guidance itself shows it in its certainty."
    return Found(tuple(figures), values, (plot,), (note,))
