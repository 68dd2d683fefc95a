"""The tables of docs/samplers.md, made from the registries of samplers, grids and guidances.

python tools/docs/samplers.py            write them into the page, between their markers
python tools/docs/samplers.py --check    exit with 1 if the page holds other ones
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unfog.diffusion.grids import GRIDS
from unfog.diffusion.guidance import GUIDANCES
from unfog.diffusion.samplers import SAMPLERS

PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"


def options(function: Callable[..., Any], skip: int) -> str:
    """The named options of `function` after `skip` leading parameters, each with its default if it has one."""

    def one(parameter: inspect.Parameter) -> str:
        value = parameter.default
        if value is inspect.Parameter.empty:
            return f"`{parameter.name}`"
        if callable(value):
            value = value.__name__
        elif isinstance(value, float):
            value = f"{value:g}"
        elif isinstance(value, str):
            value = f'"{value}"'
        return f"`{parameter.name}={value}`"

    return ", ".join(one(parameter) for parameter in list(inspect.signature(function).parameters.values())[skip:]) or "—"


def linked(text: str) -> str:
    """`text` with its arXiv numbers made links, and safe in a table."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text.replace("|", "\\|"))


def sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, safe in a table."""
    first = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.) ", first)[0].replace("|", "\\|")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def samplers() -> str:
    """name, order, NFE a step, stochastic, also known as, source, options."""
    return table(
        ["name", "order", "NFE a step", "noise", "also known as", "source", "options"],
        (
            [f"`{name}`", str(entry.order or "—"), str(entry.nfe_per_step), "yes" if entry.stochastic else "no",
             ", ".join(f"`{alias}`" for alias in entry.aliases) or "—", linked(entry.source), options(entry.plan, 2)]
            for name, entry in SAMPLERS.items()
        ),
    )  # fmt: skip


def grids() -> str:
    """name, what, options beside `start` and `end`."""
    return table(
        ["name", "levels visited", "options"],
        ([f"`{name}`", sentence(grid.__doc__ or ""), options(grid, 4)] for name, grid in GRIDS.items()),
    )


def guidances() -> str:
    """name, what, source, options. Where two share a file, the second speaks for itself."""
    rows, seen = [], set()
    for name, guidance in GUIDANCES.items():
        file = sys.modules[guidance.__module__].__doc__ or ""
        text = guidance.__doc__ if guidance.__module__ in seen else file
        seen.add(guidance.__module__)
        source = re.split(r"Sources?: ", " ".join(file.split()))[-1].removesuffix(".")
        rows.append([f"`{name}`", sentence(text or ""), linked(source), options(guidance, 1)])
    return table(["name", "what it does", "source", "options"], rows)


BLOCKS: dict[str, Callable[[], str]] = {"samplers": samplers, "grids": grids, "guidances": guidances}


def rewritten(text: str) -> str:
    """The page `text` with every block renewed. Raises ValueError if a block has not exactly one pair of markers."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"the page needs one line {begin} and after it one line {end}")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if `--check` finds the page stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is stale")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    before = given.page.read_text(encoding="utf-8")
    after = rewritten(before)
    if given.check:
        if after != before:
            print(f"{given.page}: stale; run python tools/docs/samplers.py", file=sys.stderr)
        return int(after != before)
    given.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
