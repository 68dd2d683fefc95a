"""Ten to fifty evaluations against DDPM's thousand on the shipped model, with the interval of what a few pictures can tell."""

from __future__ import annotations

from unfog.claims import emoji
from unfog.claims.claim import Found, Line, Plot, Say, Settings, Statement, Test
from unfog.claims.few_steps import FEW, MANY, OURS, SAYS, SOURCE
from unfog.claims.mixtures import end

PICTURES, KNOWN = 16, 200  # that are made with each sampler; real ones to compare with

STATEMENT = Statement(
    title="Ten to fifty steps match a thousand: pictures",
    says=SAYS,
    source=SOURCE,
    how=f"Kernel distance (KID) of lite0 features to real pictures, `{OURS}` against DDPM of {MANY:,} evenly spaced steps, the "
    f"same captions and seeds, no guidance, {emoji.ON}; the 95 % interval of the paired difference.",
    tests=tuple(
        Test(key=f"picture{k}", op="<=", bound=0.0,
             says=f"kernel distance of {k} less that of {MANY:,}; lower end (above 0: detectably worse)")
        for k in FEW
    ),
)  # fmt: skip


def measure(settings: Settings, say: Say) -> Found:
    """The same captions by each sampler."""
    n, known, many = (4, 32, 60) if settings.quick else (PICTURES, KNOWN, MANY)
    chosen = emoji.rows("heldout_pair", n, settings.seed)
    against = emoji.features(emoji.real(emoji.rows("train", known, settings.seed)))
    plans = {f"{OURS} {k}": emoji.plan(OURS, k) for k in FEW}
    plans |= {"ddpm 50": emoji.ddpm_plan(50), f"ddpm {many}": emoji.ddpm_plan(many)}
    kernels, figures, values = {}, [], {}
    for name, plan in plans.items():
        say(name)
        pictures = emoji.decoded(emoji.made(chosen, plan, seed=settings.seed, say=say))
        kernels[name] = emoji.Kernel.of(emoji.features(pictures), against)
        figures.append(kernels[name].figure(f"KID-lite0 of {name}"))
    for k in FEW:
        gap = kernels[f"{OURS} {k}"].less(kernels[f"ddpm {many}"], f"KID-lite0 of {OURS} {k} less that of ddpm {many}")
        figures.append(gap)
        values[f"picture{k}"] = end(gap.low)
    lines = []
    for name, kernel in kernels.items():
        shown, (_, budget) = kernel.figure(""), name.split()
        lines.append(
            Line(name=name, x=[float(budget)], y=[kernel.value], low=[end(shown.low)], high=[end(shown.high)], dots=True)
        )
    notes = [f"With {n} pictures only a gross loss could be seen: the intervals say how gross. The mixtures decide finer."]
    if many != MANY:
        notes.append(f"With --quick DDPM ran {many} steps, not {MANY:,}.")
    plot = Plot(name="kernel", title="emoji-64: kernel distance to real pictures", lines=lines, x_name="evaluations",
                y_name="KID-lite0", log_x=True)  # fmt: skip
    return Found(tuple(figures), values, (plot,), tuple(notes))
