"""How pages and plots look: colours by light and dark, on paper always light."""

from __future__ import annotations

import re

# cool to warm: noise bins are an order, and its ends must be told apart
COLOURS = (("#3b3fbf", "#8f94ff"), ("#1f78b4", "#5ab4f0"), ("#1b8a6b", "#3fcf9f"), ("#8a8a00", "#d0d040"), ("#d9780f", "#ffa94d"),
           ("#c2255c", "#ff6b9a"))  # fmt: skip
SHADES = {"page": ("#ffffff", "#15181c"), "ink": ("#1b1f24", "#e6e8eb"), "dim": ("#5f6773", "#9aa3ad"),
          "grid": ("#e4e7eb", "#2b3138"), "warn": ("#fff4d6", "#3a2f10"), "edge": ("#d9a300", "#d9a300"),
          **{f"c{i}": pair for i, pair in enumerate(COLOURS)}}  # fmt: skip
PLOT = """
.plot { width: 100%; height: auto; font: 12px system-ui, Helvetica, Arial, DejaVu Sans, sans-serif; }
.plot text { fill: var(--ink); } .plot .tick { fill: var(--dim); font-size: 11px; } .plot .y { text-anchor: end; }
.plot .x { text-anchor: middle; } .plot .title { font-weight: 600; font-size: 13px; } .plot .key { font-size: 11px; }
.plot .grid { stroke: var(--grid); } .plot .axis { stroke: var(--dim); fill: none; }
.plot .mark { stroke: var(--dim); stroke-dasharray: 2 3; } .plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.plot .dashed { stroke-dasharray: 6 4; } .plot .faint { stroke-width: 1; opacity: 0.35; }
.plot .band { opacity: 0.18; stroke: none; } .plot .bar { opacity: 0.85; } .plot .dot { stroke: var(--page); stroke-width: 0.8; }
.plot .floor { fill: var(--grid); } .plot .whisker { stroke: var(--ink); stroke-width: 1.2; fill: none; }
""" + "\n".join(f".plot .c{i} {{ stroke: var(--c{i}); }} .plot .f{i} {{ fill: var(--c{i}); }}" for i in range(len(COLOURS)))
TEXT = """
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1360px;
padding: 16px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 17px; margin: 28px 0 8px; } p.sub { color: var(--dim); margin: 0 0 12px; }
h3 { font-size: 15px; margin: 16px 0 6px; } p { margin: 6px 0; max-width: 100ch; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 12px; }
.facts { border-collapse: collapse; } .facts th { text-align: left; font-weight: 400; color: var(--dim); padding: 2px 16px 2px 0;
vertical-align: top; } .facts td { padding: 2px 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .figures { border-collapse: collapse; margin: 4px 0 12px; font-variant-numeric: tabular-nums; }
.figures th { text-align: left; font-weight: 600; } .figures thead th { border-bottom: 1px solid var(--dim); }
.figures tbody th { font-weight: 400; } .figures th, .figures td { padding: 3px 18px 3px 0; vertical-align: top; }
.figures tbody tr { border-bottom: 1px solid var(--grid); } .figures .number { text-align: right; white-space: nowrap; }
.figures .dim, .note { color: var(--dim); } .figures svg { width: 130px; height: 14px; vertical-align: middle; }
.figures caption, .plain { text-align: left; } .figures caption { font-weight: 600; padding: 0 0 4px; }
ul.warn { background: var(--warn); border-left: 4px solid var(--edge); list-style: none; margin: 12px 0; padding: 8px 14px; }
figure { margin: 0 0 16px; } figure img { max-width: 100%; height: auto; } figcaption { color: var(--dim); }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; } .pictures figure { margin: 0; }
.pictures img { background: #ffffff; border: 1px solid var(--grid); display: block; }
.pictures figcaption { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } .plots > div, figure, tr { break-inside: avoid; }
h1, h2, h3 { break-after: avoid; } .scroll { overflow: visible; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def _variables(k: int) -> str:
    return " ".join(f"--{name}: {pair[k]};" for name, pair in SHADES.items())


def sheet() -> str:
    """The CSS of a page."""
    light, dark = _variables(0), _variables(1)
    schemes = (
        f":root {{ color-scheme: light dark; {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
    return f"\n{schemes}{TEXT}{PLOT}\n"


def standalone(svg: str) -> str:
    """A plot as a file of its own: light, with its background and colours inside."""
    css = re.sub(r"var\(--(\w+)\)", lambda found: SHADES[found[1]][0], PLOT)
    head, _, rest = svg.partition(">")
    return f'{head}><style>{css}\n</style><rect width="100%" height="100%" fill="{SHADES["page"][0]}"/>{rest}\n'
