"""`unfog models`: what is shipped."""

from __future__ import annotations

import json as json_
from pathlib import Path

from unfog.cli.options import Flag

SHIPPED = Path(__file__).parents[1] / "pretrained"


def models(*, json: Flag = False) -> None:
    """List the shipped models with their styles and defaults.

    Try:
      unfog models --json

    Parameters
    ----------
    json
        Print one JSON object a model: name, hash, styles, defaults.
    """
    import unfog

    for folder in sorted(path.parent for path in SHIPPED.glob("*/model.json")):
        model = unfog.load(folder.name)
        if json:
            facts = {"name": model.name, "hash": model.hash, "styles": model.styles, "defaults": model.defaults}
            print(json_.dumps(facts))
            continue
        print(f"{model.name} ({model.hash})")
        print(f"  styles:   {', '.join(model.styles) or 'none'}")
        print(f"  defaults: {', '.join(f'{key} {value}' for key, value in model.defaults.items())}")
