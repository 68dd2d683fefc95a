"""`unfog report`: the curves of a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag


def report(run: Path, /, *, out: Path | None = None, open: Flag = False) -> None:
    """Draw the curves of a training run, finished or still going, with its samples and with warnings in words.

    The page needs neither a network nor scripts. Training writes it too, as report.html in its folder.

    Try:
      unfog report my-model --open
      unfog report my-model --out curves.html

    Parameters
    ----------
    run
        The folder that the run writes (its --out).
    out
        The .html file to write; without it, report.html in that folder.
    open
        Show it in the browser.
    """
    from unfog.requests import ReportRequest, check
    from unfog.training.report import make_report

    request = check(ReportRequest, {"run": run, "out": out})
    path = make_report(request)
    print(path)
    if open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
