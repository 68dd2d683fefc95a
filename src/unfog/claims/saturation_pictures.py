"""High guidance over-saturates, on the shipped model: numbers out of the colours' range, and four ways to mend it."""

from __future__ import annotations

import numpy as np

from unfog.claims import emoji
from unfog.claims.claim import Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.guided import MENDED, STEPS, TOP, shown
from unfog.claims.mixtures import end
from unfog.claims.saturation import SAYS, SOURCE, THE_WAYS

STATEMENT = Statement(
    title="High guidance over-saturates, and four ways mend it: pictures",
    says=SAYS,
    source=SOURCE,
    how=f"{THE_WAYS} Share of numbers more than 0.05 outside the colours' range before they are clipped, and colourfulness (max "
    f"− min of red, green, blue) of pictures of held-out captions; {STEPS} steps, {emoji.ON}.",
    tests=(
        Test(key="over", says=f"share out of range at {TOP:g} less that at 1, lower end", op=">", bound=0.0),
        Test(key="chroma", says=f"colourfulness at {TOP:g} less that at 1, lower end", op=">", bound=0.0),
        *(Test(key=f"picture-{way}", says=f"share out of range, {way} less plain, upper end", op="<", bound=0.0)
          for way in MENDED),
    ),
)  # fmt: skip


def measure(settings: Settings, say: Say) -> Found:
    """Plain guidance at 1 and at the highest scale, then each way at the highest."""
    figures = []
    seen = {name: shown(name, TOP, settings, say) for name in ("plain", *MENDED)}
    seen["off (scale 1)"] = off = shown("plain", 1.0, settings, say)
    rows = emoji.rows("heldout_pair", 20 if settings.quick else 300, settings.seed)
    figures.append(emoji.mean_of("real pictures: colourfulness", emoji.chroma(emoji.real(rows))))
    for name, p in seen.items():
        figures.append(emoji.mean_of(f"{name}: share out of range", p.overshoot, clusters=p.clusters))
        figures.append(emoji.mean_of(f"{name}: colourfulness", p.chroma, clusters=p.clusters))
        figures.append(emoji.mean_of(f"{name}: R@1 of 65", p.fits, clusters=p.clusters))
    high = seen["plain"]
    gaps = {"over": (f"share out of range at {TOP:g} less that at 1", high.overshoot - off.overshoot),
            "chroma": (f"colourfulness at {TOP:g} less that at 1", high.chroma - off.chroma)}  # fmt: skip
    values = {}
    for key, (what, gap) in gaps.items():
        figures.append(emoji.mean_of(what, gap, clusters=high.clusters))
        values[key] = end(figures[-1].low)
    for way in MENDED:
        less = seen[way].overshoot - high.overshoot
        figures.append(emoji.mean_of(f"share out of range, {way} less plain", less, clusters=high.clusters))
        values[f"picture-{way}"] = end(figures[-1].high)
    dots = [Line(name=name, x=[float(np.mean(p.overshoot))], y=[float(np.mean(p.fits))], dots=True) for name, p in seen.items()]
    plot = Plot(name="ways", title=f"emoji-64 at scale {TOP:g}: what each way costs and saves", lines=dots,
                x_name="share of numbers out of range", y_name="R@1 of 65")  # fmt: skip
    return Found(tuple(figures), values, (plot,))
