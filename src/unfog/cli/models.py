"""`unfog models`: what is shipped."""

from __future__ import annotations

import json as json_
from pathlib import Path

from unfog.cli.options import Flag

SHIPPED = Path(__file__).parents[1] / "pretrained"


def models(*, kinds: Flag = False, json: Flag = False) -> None:
    """List the shipped models with their kind of data, styles and defaults, or the kinds of data.

    Try:
      unfog models --json
      unfog models --kinds

    Parameters
    ----------
    kinds
        List the kinds of data that can be trained on, and the presets of each, instead.
    json
        Print one JSON object a model: name, kind, hash, styles, defaults; or a kind: name, about, presets.
    """
    import unfog
    from unfog.modalities import MODALITIES

    if kinds:
        _kinds(json)
        return
    for folder in sorted(path.parent for path in SHIPPED.glob("*/model.json")):
        model = unfog.load(folder.name)
        if json:
            facts = {
                "name": model.name,
                "kind": model.kind.name,
                "hash": model.hash,
                "styles": model.styles,
                "defaults": model.defaults,
            }
            print(json_.dumps(facts))
            continue
        print(f"{model.name} ({model.hash}): {MODALITIES[model.kind.name]}")
        if model.styles:
            print(f"  styles:   {', '.join(model.styles)}")
        print(f"  defaults: {', '.join(f'{key} {value}' for key, value in model.defaults.items())}")


def _kinds(json: bool) -> None:
    from unfog.modalities import MODALITIES, modality
    from unfog.training.presets import PRESETS

    for name, about in MODALITIES.items():
        presets = list(PRESETS) if name == "image" else list(modality(name).presets)
        if json:
            print(json_.dumps({"name": name, "about": about, "presets": presets}))
        else:
            print(f"{name}: {about}\n  presets:  {', '.join(presets)}")
