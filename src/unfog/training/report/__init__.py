"""The curves of a run as one HTML file that needs neither a network nor scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unfog.requests import ReportRequest

PAGE = "report.html"


def make_report(request: ReportRequest) -> Path:
    """Write the page of a run, finished or going on. -> its path. Raises UserError where there is no run, or no place."""
    from unfog.errors import UserError

    path = request.out or request.run / PAGE
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder; give the name of an .html file")
    try:
        return write_report(request.run, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from None


def write_report(folder: Path, path: Path | None = None) -> Path:
    """The page of the run in `folder`, whole or not at all."""
    from unfog.files import write_atomic
    from unfog.training.report.page import page
    from unfog.training.report.read import read_run

    path = path or folder / PAGE
    write_atomic(path, page(read_run(folder)).encode("utf-8", "replace"))
    return path
