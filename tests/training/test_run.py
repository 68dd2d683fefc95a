"""From a folder of pictures to a model that makes some."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unfog
from unfog.errors import UserError
from unfog.requests import AverageRequest, TrainRequest
from unfog.training.averages import average
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
    nearer = events[-1]["held_out"] if events[-1]["kept"] else events[-1]["raw"]
    assert card["training"]["held_out_loss"] == nearer and card["training"]["averaged"] == bool(events[-1]["kept"])

    model = unfog.load(out)  # a run's folder will do as well as the model's
    pictures = model.generate("thing number 3", n=2, seed=5)
    assert [(p.mode, p.size) for p in pictures] == [("RGBA", (16, 16))] * 2
    assert isinstance(pictures[0], Image.Image) and pictures[0].tobytes() != pictures[1].tobytes()
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]

    with pytest.raises(UserError, match="--resume"):
        run_recipe(TrainRequest(source=source, out=out))
    before = model.hash
    assert json.loads((out / "run.json").read_text())["recipe"]["steps"] == 4
    with pytest.raises(UserError, match="holds a run; add --resume"):
        run_recipe(TrainRequest(source=out))
    assert run_recipe(TrainRequest(source=out, resume=True, steps=5)) == folder  # the run's folder says all
    assert unfog.load(out).card["training"]["steps"] == 5
    run_recipe(TrainRequest(source=source, out=out, resume=True, steps=6))
    assert unfog.load(out).hash != before and unfog.load(out).card["training"]["steps"] == 6


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_writes_the_weights_that_it_keeps(tmp_path, picture_folder, monkeypatch, kept):
    fields = {"name": "things", "data": str(picture_folder), "size": 16, "settings": SETTINGS["unet"], "steps": 3, "batch": 2,
              "warm_up": 1}  # fmt: skip
    (tmp_path / "things.json").write_text(json.dumps(fields))
    monkeypatch.setattr("unfog.training.watch.Watch.raw_is_nearer", staticmethod(lambda values: not kept))
    folder = run_recipe(TrainRequest(source=tmp_path / "things.json", out=tmp_path / "run"))
    state = load_file(tmp_path / "run" / "checkpoints" / "0000003.safetensors")
    for name, written in load_file(folder / "network.safetensors").items():
        assert torch.equal(written, state[f"{'ema' if kept else 'network'}.{name}"].half()), name
    assert json.loads((folder / "model.json").read_text())["training"]["averaged"] is kept


def test_other_averages_of_a_run(tmp_path, picture_folder):
    fields = {"name": "things", "data": str(picture_folder), "size": 16, "settings": SETTINGS["unet"], "steps": 64, "batch": 2,
              "report_steps": 64, "warm_up": 1, "augment": 0.2, "learned_weight": True}  # fmt: skip
    (tmp_path / "things.json").write_text(json.dumps(fields))
    run = tmp_path / "run"
    run_recipe(TrainRequest(source=tmp_path / "things.json", out=run))
    assert len(list((run / "averages").glob("*.json"))) == 16
    usual = unfog.load(run).denoiser.network.state_dict()
    made = {}
    for name, fields in (("same", {}), ("sharp", {"ema": 0.05}), ("early", {"at": 32})):
        step = average(AverageRequest(run=run, out=tmp_path / name, **fields))
        model = unfog.load(tmp_path / name)
        made[name] = model.denoiser.network.state_dict()
        assert step == fields.get("at", 64) == model.card["training"]["steps"]
        assert model.card["training"]["pictures_seen"] == step * 2 and made[name].keys() == usual.keys()
        assert len(model.generate("thing 1", steps=2)) == 1
    assert all(torch.allclose(usual[k], made["same"][k], atol=2e-3) for k in usual)
    assert not all(torch.allclose(usual[k], made["early"][k], atol=2e-3) for k in usual)
    assert any(not torch.equal(made["same"][k], made["sharp"][k]) for k in usual)
    with pytest.raises(UserError, match="exists and is no model folder"):
        average(AverageRequest(run=run, out=picture_folder))


def test_a_model_to_start_from(tmp_path, picture_folder, capsys):
    """Fine-tuning: the weights begin as the model's, its network, styles and colours stay, and the card says whence."""
    styled = tmp_path / "styled"
    styled.mkdir()
    lines = []
    for i, path in enumerate(sorted(picture_folder.glob("*.png"))):
        (styled / path.name).write_bytes(path.read_bytes())
        lines.append(json.dumps({"file_name": path.name, "text": f"thing {i}", "style": ["round", "flat"][i % 2]}))
    (styled / "metadata.jsonl").write_text("\n".join(lines))
    fields = {
        "name": "things",
        "data": str(styled),
        "size": 16,
        "settings": SETTINGS["unet"],
        "steps": 4,
        "batch": 4,
        "recolour": 0.0,
        "licences": ["theirs"],
    }
    source = tmp_path / "things.json"
    source.write_text(json.dumps(fields))
    run_recipe(TrainRequest(source=source, out=tmp_path / "first"))
    first = unfog.load(tmp_path / "first")

    # a rate of nearly 0: what comes out is what went in
    again = tmp_path / "again.json"
    again.write_text(json.dumps(fields | {"lr": 1e-12, "start": str(tmp_path / "first")}))
    run_recipe(TrainRequest(source=again, out=tmp_path / "same"))
    same = unfog.load(tmp_path / "same")
    ours, theirs = (m.denoiser.network.state_dict() for m in (same, first))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert same.card["training"]["recipe"]["start"] == "first"  # a card that is handed on says no places of this machine

    # a folder of one's own: without styles, or with ones that the model does not know
    run_recipe(TrainRequest(source=picture_folder, out=tmp_path / "tuned", start=str(tmp_path / "first"), steps=4))
    tuned = unfog.load(tmp_path / "tuned")
    assert tuned.styles == first.styles and tuned.codec == first.codec and tuned.size == 16
    assert tuned.card["training"]["recipe"]["start"] == "first" and tuned.card["training"]["steps"] == 4
    assert tuned.card["licences"] == ["theirs"]  # what was learned from their pictures is in the weights
    moved = tuned.denoiser.network.state_dict()
    assert any(not torch.equal(moved[key], theirs[key]) for key in theirs)
    (styled / "metadata.jsonl").write_text("\n".join(lines).replace("round", "spiky"))
    capsys.readouterr()
    run_recipe(TrainRequest(source=styled, out=tmp_path / "other", start=str(tmp_path / "first"), steps=1))
    assert "does not know style spiky: learned as of no style" in capsys.readouterr().err

    again.write_text(json.dumps(fields | {"size": 32, "start": str(tmp_path / "first")}))
    with pytest.raises(UserError, match="again.json: size: .* has 16, not 32; take the model's"):
        run_recipe(TrainRequest(source=again, out=tmp_path / "wrong"))
    with pytest.raises(UserError, match="nowhere"):
        run_recipe(TrainRequest(source=again, out=tmp_path / "wrong", start="nowhere"))
    assert not (tmp_path / "wrong").exists()
