"""High guidance over-saturates; four ways to mend it, each held against plain guidance at the same scale."""

from __future__ import annotations

import numpy as np

from unfog.claims import emoji
from unfog.claims.claim import Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.guided import FINE, INTERVAL, MENDED, QUANTILE, SCALES, STEPS, TOP, Cloud, shown, ways
from unfog.claims.mixtures import end, over_runs

STATEMENT = Statement(
    title="High guidance over-saturates, and four ways mend it",
    says="At high scales samples leave the data's range: colours over-saturate. Rescaling, an interval, adaptive projection "
    "and dynamic thresholding undo it.",
    source="Saharia et al. 2022, arXiv:2205.11487; Lin et al. 2023, arXiv:2305.08891; Kynkäänniemi et al. 2024, "
    "arXiv:2404.07724; Sadat et al. 2024, arXiv:2410.02416",
    how=f"At scale {TOP:g}: rescale 0.7 in v, interval {INTERVAL[0]:g} to {INTERVAL[1]:g} in log-SNR, APG with eta 0, dynamic "
    "thresholding at the 0.995 quantile. Two classes with exact denoisers: share of points less likely under their class than "
    f"all but {QUANTILE:.1%} of its own ({FINE} steps). Pictures: share of numbers more than 0.05 outside the colours' range "
    f"before they are clipped, and colourfulness (max − min of red, green, blue); {STEPS} steps, {emoji.ON}.",
    tests=(
        Test(key="beyond", says=f"mixture: share beyond the class at {TOP:g}, lower end (its own: {QUANTILE:g})", op=">=",
             bound=10 * QUANTILE),
        Test(key="over", says=f"pictures: share out of range at {TOP:g} less that at 1, lower end", op=">", bound=0.0),
        Test(key="chroma", says=f"pictures: colourfulness at {TOP:g} less that at 1, lower end", op=">", bound=0.0),
        *(Test(key=f"mixture-{way}", says=f"mixture: share beyond the class, {way} less plain, upper end", op="<", bound=0.0)
          for way in MENDED),
        *(Test(key=f"picture-{way}", says=f"pictures: share out of range, {way} less plain, upper end", op="<", bound=0.0)
          for way in MENDED),
    ),
)  # fmt: skip


def measure(settings: Settings, say: Say) -> Found:
    """Plain guidance over scales, then each way at the highest."""
    runs, cloud = (3, Cloud(500, 25)) if settings.quick else (6, Cloud(4_000, FINE))
    every, of = ways(cloud.limit), f"{cloud.n:,} points"
    seeds = [settings.seed + 100 * k for k in range(runs)]
    figures, values = [], {}
    scales = (1.0, 3.0, TOP) if settings.quick else SCALES
    beyond = []
    for scale in scales:
        say(f"mixture, scale {scale:g}")
        row = [cloud.made(every["plain"], scale, seed) for seed in seeds]
        beyond.append(over_runs(f"mixture: share beyond the class at scale {scale:g}", [p.beyond for p in row], of))
        figures.append(over_runs(f"mixture: mean length over the class's own at scale {scale:g}", [p.far for p in row], of))
    plain = row
    figures += beyond
    values["beyond"] = end(beyond[-1].low)
    for way in MENDED:
        say(f"mixture, {way}")
        row = [cloud.made(every[way], TOP, seed) for seed in seeds]
        gap = over_runs(f"mixture: share beyond the class, {way} less plain", [
            a.beyond - b.beyond for a, b in zip(row, plain, strict=True)], of)  # fmt: skip
        figures += [over_runs(f"mixture: share beyond the class with {way}", [p.beyond for p in row], of), gap,
                    over_runs(f"mixture: certainty of the class with {way}", [p.sure for p in row], of)]  # fmt: skip
        values[f"mixture-{way}"] = end(gap.high)
    figures.append(over_runs("mixture: certainty of the class, plain", [p.sure for p in plain], of))
    seen = {name: shown(name, TOP, settings, say) for name in ("plain", *MENDED)}
    seen["off (scale 1)"] = off = shown("plain", 1.0, settings, say)
    rows = emoji.rows("heldout_pair", 20 if settings.quick else 300, settings.seed)
    figures.append(emoji.mean_of("real pictures: colourfulness", emoji.chroma(emoji.real(rows))))
    for name, p in seen.items():
        figures.append(emoji.mean_of(f"pictures: share out of range, {name}", p.overshoot, clusters=p.clusters))
        figures.append(emoji.mean_of(f"pictures: colourfulness, {name}", p.chroma, clusters=p.clusters))
        figures.append(emoji.mean_of(f"pictures: R@1 of 65, {name}", p.fits, clusters=p.clusters))
    high = seen["plain"]
    over = emoji.mean_of(f"pictures: share out of range at {TOP:g} less that at 1", high.overshoot - off.overshoot,
                         clusters=high.clusters)  # fmt: skip
    strong = emoji.mean_of(f"pictures: colourfulness at {TOP:g} less that at 1", high.chroma - off.chroma, clusters=high.clusters)
    figures += [over, strong]
    values |= {"over": end(over.low), "chroma": end(strong.low)}
    for way in MENDED:
        gap = emoji.mean_of(f"pictures: share out of range, {way} less plain", seen[way].overshoot - high.overshoot,
                            clusters=high.clusters)  # fmt: skip
        figures.append(gap)
        values[f"picture-{way}"] = end(gap.high)
    lines = [Line(name="plain", x=list(scales), y=[end(f.value) for f in beyond], low=[end(f.low) for f in beyond],
                  high=[end(f.high) for f in beyond]),
             Line(name="the class itself", x=[scales[0], scales[-1]], y=[QUANTILE, QUANTILE], dashed=True)]  # fmt: skip
    dots = [Line(name=name, x=[float(np.mean(p.overshoot))], y=[float(np.mean(p.fits))], dots=True) for name, p in seen.items()]
    return Found(
        tuple(figures), values,
        (Plot(name="mixture", title="Points beyond their class", lines=lines, x_name="scale", y_name="share", log_x=True),
         Plot(name="pictures", title=f"emoji-64 at scale {TOP:g}: what each way costs and saves", lines=dots,
              x_name="share of numbers out of range", y_name="R@1 of 65")),
        ("A way that passes by giving up the guidance itself shows it in its certainty and its R@1.",),
    )  # fmt: skip
