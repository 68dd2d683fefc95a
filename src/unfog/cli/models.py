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
        Print one JSON object a model: name, kind, hash, styles, defaults, controls; or a kind: name, about, presets.
    """
    import unfog
    from unfog.modalities import MODALITIES

    if kinds:
        _kinds(json)
        return
    for folder in sorted(path.parent for path in SHIPPED.glob("*/model.json")):
        model, controls = unfog.load(folder.name), _controls(folder.name)
        if json:
            facts = {
                "name": model.name,
                "kind": model.kind.name,
                "hash": model.hash,
                "styles": model.styles,
                "defaults": model.defaults,
                "controls": controls,
            }
            print(json_.dumps(facts))
            continue
        print(f"{model.name} ({model.hash}): {MODALITIES[model.kind.name]}")
        if model.styles:
            print(f"  styles:   {', '.join(model.styles)}")
        if controls:
            print(f"  controls: {', '.join(controls)}")
        print(f"  defaults: {', '.join(f'{key} {value}' for key, value in model.defaults.items())}")


def _controls(name: str) -> list[str]:
    """The kinds of hints that a shipped branch of this model follows."""
    card = SHIPPED / f"{name}-control" / "adapter.json"
    return list(json_.loads(card.read_bytes())["controls"]) if card.is_file() else []


def _kinds(json: bool) -> None:
    from unfog.modalities import MODALITIES, modality
    from unfog.training.presets import PRESETS

    for name, about in MODALITIES.items():
        presets = list(PRESETS) if name == "image" else list(modality(name).presets)
        if json:
            print(json_.dumps({"name": name, "about": about, "presets": presets}))
        else:
            print(f"{name}: {about}\n  presets:  {', '.join(presets)}")
