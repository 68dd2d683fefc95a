"""An evaluation as one HTML page: figures beside what real data reach, differences, and the pictures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unfog.evaluation.report import GROUPS, Evaluation, Figure, Report
from unfog.evaluation.report import Measure as Row
from unfog.page import Bars, Lines, Measure, Part, Picture, Pictures, Section, Series, Table, page

if TYPE_CHECKING:
    from unfog.evaluation.memorisation import Memorisation
    from unfog.evaluation.run import Found


def document(evaluation: Evaluation, found: Sequence[Found] = ()) -> str:
    """The whole HTML file; `found` adds the pictures of each report, in the same order."""
    sections = []
    if evaluation.differences:
        rows = [[f"{d.name} of {d.of}", d.first, d.second, _figure(d.figure, d.unit), str(d).rpartition("; ")[2],
                 "same prompts and seeds" if d.paired else "independent samples"] for d in evaluation.differences]  # fmt: skip
        sections.append(
            Section("Differences", [Table(["measure", "first", "second", "second − first", "verdict", "samples"], rows)])
        )
    for i, report in enumerate(evaluation.reports):
        sections += _report(report, found[i] if i < len(found) else None, several=len(evaluation.reports) > 1)
    names = " and ".join(report.subject for report in evaluation.reports)
    first = evaluation.reports[0]
    settings = [
        ("data", f"{first.data} ({first.data_hash})"),
        ("intervals", f"{100 * first.level:.0f} %"),
        ("unfog", first.version),
    ]
    for report in evaluation.reports:
        settings += [(f"{report.subject}: {key}" if len(evaluation.reports) > 1 else key, value)
                     for key, value in report.settings.items()]  # fmt: skip
    alarms = [f"{report.subject}: {text}" for report in evaluation.reports for text in report.warnings]
    sub = f"{sum(r.samples for r in evaluation.reports):,} samples; every figure stands beside what real data reach on it"
    return page(f"{names} against {first.data}", sections, settings=settings, sub=sub, alarms=alarms)


def _report(report: Report, found: Found | None, several: bool) -> list[Section]:
    head = f"{report.subject}: " if several else ""
    sections = []
    for group, title in GROUPS.items():
        rows = [m for m in report.measures if m.group == group]
        if not rows:
            continue
        beside = list(dict.fromkeys(b.name for m in rows for b in m.beside))
        table = Table(
            ["measure", "of", "samples", *beside, "better", "note"],
            [[m.name, m.of, _figure(m.figure, m.unit), *(_beside(m, name) for name in beside), m.better, m.note] for m in rows],
        )
        sections.append(Section(head + title, [table]))
    drawn = [_bars(title, [m for m in report.measures if m.group == group])
             for group, title in (("coverage", "Coverage"), ("condition", "What was asked for"))]  # fmt: skip
    drawn += [_detector(found.memorised)] if found is not None and found.memorised is not None else []
    sections.append(Section(head + "Beside real data", [plot for plot in drawn if plot is not None]))
    if found is not None and found.pictures is not None:
        made = [Picture(p, c, 1.0) for p, c in zip(found.pictures, found.captions, strict=True)]
        real = [Picture(p, c, 1.0) for p, c in zip(found.real if found.real is not None else (), found.captions, strict=True)]
        sections.append(
            Section(head + "Samples, evenly from all", [Pictures(made, "made"), Pictures(real, "real, of the same captions")])
        )
    return sections


def _bars(title: str, rows: Sequence[Row]) -> Part | None:
    """Shares beside those of real items."""
    shares = [m for m in rows if m.unit == "%" and m.beside and m.figure.value is not None]
    if not shares:
        return None
    places = list(range(len(shares)))

    def series(name: str, figures: Sequence[Figure], colour: int) -> Series:
        percent = [[None if v is None else 100 * v for v in (f.value, f.low, f.high)] for f in figures]
        values, lows, highs = zip(*percent, strict=True)
        return Series(name, places, list(values), colour=colour, low=list(lows), high=list(highs))

    drawn = [series("samples", [m.figure for m in shares], 1), series("real", [m.beside[0].figure for m in shares], 4)]
    several = len({m.of for m in shares}) > 1
    return Bars(title, [f"{m.name} ({m.of})" if several else m.name for m in shares], drawn, "%")


def _detector(found: Memorisation) -> Part:
    """What the copy detector finds, kind by kind, for each share of unseen pictures that it calls copies too."""
    false = [100 * share for share in found.curve.false_positives]
    lines = [Series(kind, false, [100 * share for share in recall], colour=i % 6, dashed=i >= 6)
             for i, (kind, recall) in enumerate(found.curve.recall.items())]  # fmt: skip
    return Lines(
        "What the copy detector finds", lines, "% of unseen pictures called copies", "% of planted copies found", x_log=True
    )


def _beside(row: Row, name: str) -> Measure | None:
    return next((_figure(b.figure, row.unit) for b in row.beside if b.name == name), None)


def _figure(figure: Figure, unit: str) -> Measure:
    times = 100.0 if unit == "%" else 1.0
    value, low, high = (None if v is None else times * v for v in (figure.value, figure.low, figure.high))
    return Measure("", value, low, high, n=figure.n, unit=unit)
