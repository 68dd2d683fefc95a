"""From a folder of pictures to a model that makes some."""

import json

import pytest
from PIL import Image

import unfog
from unfog.errors import UserError
from unfog.requests import TrainRequest
from unfog.training.checkpoint import saved_steps
from unfog.training.run import run_recipe

SETTINGS = {"unet": {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16},
            "dit": {"size": 16, "width": 32, "depth": 2, "heads": 2, "registers": 1, "bottleneck": 16}}  # fmt: skip


@pytest.mark.parametrize("network", sorted(SETTINGS))
def test_pictures_in_pictures_out(tmp_path, picture_folder, network):
    fields = {"name": "things", "data": str(picture_folder), "size": 16, "network": network, "settings": SETTINGS[network],
              "steps": 4, "batch": 4, "report_steps": 3, "recolour": 0.5, "licences": ["made by hand"],
              "defaults": {"steps": 3, "scale": 2.0, "sampler": "dpmpp_2m"}}  # fmt: skip
    source, out = tmp_path / "things.json", tmp_path / "out"
    source.write_text(json.dumps(fields))
    folder = run_recipe(TrainRequest(source=source, out=out))
    assert folder == out / "model" and saved_steps(out) == [4]
    assert [p.name for p in sorted((out / "samples").iterdir())] == ["0000003.png", "0000004.png"]
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "held_out" in event] == [3, 4]  # the last one is not lost
    card = json.loads((folder / "model.json").read_text())
    assert card["training"]["steps"] == 4 and card["training"]["pictures_seen"] == 16 and card["licences"] == ["made by hand"]
    assert all(loss > 0 for loss in card["training"]["held_out_loss"].values())

    model = unfog.load(out)  # a run's folder will do as well as the model's
    pictures = model.generate("thing number 3", n=2, seed=5)
    assert [(p.mode, p.size) for p in pictures] == [("RGBA", (16, 16))] * 2
    assert isinstance(pictures[0], Image.Image) and pictures[0].tobytes() != pictures[1].tobytes()
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]

    with pytest.raises(UserError, match="--resume"):
        run_recipe(TrainRequest(source=source, out=out))
    before = model.hash
    run_recipe(TrainRequest(source=source, out=out, resume=True, steps=6))
    assert unfog.load(out).hash != before and unfog.load(out).card["training"]["steps"] == 6
