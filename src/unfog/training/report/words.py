"""What a run's curves say, in words: each warning names what was seen, since when, and what to do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from unfog.training.report.read import Run, number

RISE = 0.02  # of held-out loss since its least, before it is called overfitting; reports differ by the weights alone
WAITING = 0.1  # share of the time
EXPECTED = 0.05  # of real unseen pictures pass for copies (watch.QUANTILE)
UNLIKELY = 0.01  # chance of as many copies by accident


def smoothed(values: Sequence[float | None], weight: float | None = None) -> list[float | None]:
    """Exponential mean, without the pull towards the first value; gaps stay gaps. weight: of a new value, by default that of
    some fifty windows over the whole.
    """
    weight = weight or max(0.01, min(1.0, 50 / max(len(values), 1)))
    total = mass = 0.0
    out: list[float | None] = []
    for value in values:
        if value is None:
            out.append(None)
            continue
        total, mass = total + weight * (value - total), mass + weight * (1 - mass)
        out.append(total / mass)
    return out


def warnings(run: Run) -> list[str]:
    """Everything worth a sentence, the worst first."""
    checks = (_broken, _diverged, _overfitting, _copies, _gap, _gradient, _waiting, _slower, _average, _nothing_held_out)
    return [sentence for check in checks if (sentence := check(run))]


def _overfitting(run: Run) -> str:
    risen = []
    for level in run.levels:
        steps, held = run.of("held_out", level)
        _, train = run.of("train", level)
        known = [(s, h, t) for s, h, t in zip(steps, held, train, strict=True) if h is not None]
        if len(known) < 3:
            continue
        at = min(range(len(known)), key=lambda i: known[i][1])
        since, least, then = known[at]
        _, now, ends = known[-1]
        learnt = ends < then if ends is not None and then is not None else _fell(run, since)
        if at < len(known) - 1 and now > least * (1 + RISE) and learnt:
            risen.append((now / least - 1, level, since))
    if not risen:
        return ""
    if len(risen) == 1:
        where = f"at ln(sigma/alpha) = {risen[0][1]} has risen by {risen[0][0]:.0%} since step {risen[0][2]:,}"
    else:
        each = ", ".join(f"{level} (by {rise:.0%} since step {since:,})" for rise, level, since in risen)
        where = f"has risen at ln(sigma/alpha) = {each}"
    return (f"Overfitting: held-out loss {where} while training loss fell. Stop there, or train on more pictures, with more "
            "dropout, or a smaller network.")  # fmt: skip


def _fell(run: Run, since: int) -> bool:
    """Whether the training loss of the steps fell after `since`."""
    losses = [(line["step"], number(line.get("loss"))) for line in run.steps]
    after = [loss for step, loss in losses if step >= since and loss is not None]
    half = len(after) // 2
    return half > 1 and statistics.fmean(after[half:]) < statistics.fmean(after[:half])


def _gap(run: Run) -> str:
    found = []
    for level in run.levels:
        held, error, train = (run.of(key, level)[1][-1] for key in ("held_out", "held_out_se", "train"))
        if held is not None and error is not None and train and held > 1.1 * train and held - train > 3 * error:
            found.append((held / train - 1, level))
    if not found:
        return ""
    gap, level = max(found)
    return (
        f"Held-out loss at ln(sigma/alpha) = {level} is {gap:.0%} above that of training pictures: what is learnt is partly them."
    )


def _copies(run: Run) -> str:
    known = [line for line in run.reports if number(line.get("copies")) is not None and number(line.get("samples"))]
    if not known:
        return ""
    line = known[-1]
    count = int(line["samples"])
    copies = round(line["copies"] * count)
    baseline = max(number(line.get("copies_real")) or 0.0, EXPECTED)
    if copies_by_chance(copies, count, baseline) >= UNLIKELY:
        return ""
    return (f"Copies: {copies} of {count} samples at step {line['step']:,} lie nearer to a training picture than "
            f"{1 - EXPECTED:.0%} of real unseen pictures do (expected: {baseline * count:.1f}). The copy rate is above the "
            "baseline: train for less long, or on more pictures.")  # fmt: skip


def copies_by_chance(copies: int, count: int, share: float) -> float:
    """The chance of `copies` or more among `count` where each is one with the chance `share` (binomial)."""
    return 1 - math.fsum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(copies))


def _diverged(run: Run) -> str:
    losses = smoothed([number(line.get("loss")) for line in run.steps])
    known = [(loss, line["step"]) for loss, line in zip(losses, run.steps, strict=True) if loss is not None]
    if len(known) < 20:
        return ""
    least, since = min(known)
    if known[-1][0] <= 1.3 * least:
        return ""
    return (f"Training loss is {known[-1][0] / least - 1:.0%} above its least, of step {since:,}: it does not converge. "
            "Lower lr, or lengthen warm_up.")  # fmt: skip


def _broken(run: Run) -> str:
    parts = []
    for key, words in (("broken", "gave no finite gradient"), ("skipped", "were left out for an exploding gradient")):
        bad = [(line["step"], number(line.get(key)) or 0) for line in run.steps if number(line.get(key))]
        if bad:
            parts.append(f"{sum(n for _, n in bad):,.0f} steps {words} (the last before step {bad[-1][0]:,})")
    return f"{', and '.join(parts)}. Look at the data, or lower lr.".capitalize() if parts else ""


def _gradient(run: Run) -> str:
    clip = number(run.recipe.get("clip"))
    found = [value for line in run.steps[len(run.steps) // 2 :] if (value := number(line.get("grad"))) is not None]
    if not clip or len(found) < 20:
        return ""
    cut = sum(value > clip for value in found) / len(found)
    if cut > 0.5:
        return f"The gradient was clipped at {cut:.0%} of the later steps (clip = {clip:g}): lower lr, or raise clip."
    return ""


def _waiting(run: Run) -> str:
    shares = [value for line in run.timing if (value := number(line.get("waiting"))) is not None]
    recent = shares[len(shares) // 2 :]
    if not recent or statistics.median(recent) <= WAITING:
        return ""
    return (
        f"{statistics.median(recent):.0%} of the time is spent waiting for data: smaller pictures, or a faster disk, would help."
    )


def _slower(run: Run) -> str:
    speeds = [value for line in run.timing if (value := number(line.get("items_per_s")))]
    part = len(speeds) // 4
    if part < 3:
        return ""
    before, after = statistics.median(speeds[:-part]), statistics.median(speeds[-part:])
    if after >= 0.7 * before:
        return ""
    return f"Throughput fell from {before:.1f} to {after:.1f} items/s: something else uses this machine, or it grew too hot."


def _average(run: Run) -> str:
    pairs = [(run.of("held_out", level)[1][-1], run.of("raw", level)[1][-1]) for level in run.levels]
    worse = [held / raw - 1 for held, raw in pairs if held is not None and raw]
    if len(worse) < 2 or statistics.median(worse) <= RISE:
        return ""
    return (f"Held-out loss of the average is {statistics.median(worse):.0%} above that of the weights themselves: they move too "
            "fast for so wide an average, and the run keeps the weights. Lower ema, or take a narrower one: "
            "unfog average.")  # fmt: skip


def _nothing_held_out(run: Run) -> str:
    if run.about.get("held_out") != 0:
        return ""
    return "No pictures are held out: held-out figures are those of training pictures, and overfitting cannot be seen in them."
