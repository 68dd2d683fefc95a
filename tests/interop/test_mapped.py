"""Flux's networks that follow a map (Canny, Depth): the same latents as diffusers', edits, beside others, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny_flow
from guided import LATENTS, apart, check_outside_a_mask, edited, flow_noise, flow_theirs, picture, walked

from unfog.errors import UserError
from unfog.interop import load, save

SIZE = {"settings": {"size": "32x32"}, "sampler": "euler", "scale": 1.0}
KINDS = ("map", "canny", "depth")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("mapped")
    tiny_flow.flux(place / "canny", network={"in_channels": 64, "out_channels": 32})
    index = place / "canny/model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "FluxControlPipeline"))
    picture(1).save(place / "edges.png")
    picture(2).save(place / "other.png")
    return place


@pytest.fixture(scope="module")
def model(place):
    return load(place / "canny", "cpu", dtype=torch.float32)


def test_latents(model, place, monkeypatch):
    from diffusers import FluxControlPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    pipe, x = FluxControlPipeline.from_pretrained(place / "canny"), flow_noise()
    wanted = flow_theirs(pipe, pipe._pack_latents(x, 1, 8, 16, 16), control_image=picture(1), guidance_scale=10.0)
    found = {kind: walked(model, x, control=[{"kind": kind, "picture": place / "edges.png"}], **SIZE) for kind in KINDS}
    assert apart(pipe._pack_latents(found["map"], 1, 8, 16, 16), wanted) < LATENTS
    assert all(torch.equal(found["map"], other) for other in found.values())
    other = walked(model, x, control=[{"kind": "map", "picture": place / "other.png"}], **SIZE)
    assert apart(other, found["map"]) > 10 * LATENTS


def test_what_it_asks_for_and_what_it_refuses(model, place):
    wish = {"kind": "canny", "picture": place / "edges.png"}
    made = model.generate("a cat", seed=1, steps=2, control=[wish], settings={"size": "48x32"})[0]
    assert made.size == (48, 32)
    assert model.space._guidance({}) == 10.0 and model.space._guidance({"settings": {"guidance": "30"}}) == 30.0
    for control, word in (([], "reads a map .edges, depth.; give one with --control map=map.png"),
                          ([{**wish, "strength": 0.5}], "the network's own map has no strength or interval"),
                          ([wish, {**wish, "kind": "map"}], "given twice"),
                          ([{**wish, "kind": "pose"}], "reads a map")):  # fmt: skip
        with pytest.raises(UserError, match=word) as error:
            model.generate("a cat", seed=1, steps=2, control=control)
        assert "\n" not in str(error.value)


def test_beside_a_controlnet(model, place):
    tiny_flow.flux_controlnet().save_pretrained(place / "flux-pose")
    both = load(place / "canny", "cpu", [place / "flux-pose"], dtype=torch.float32)
    x, own = flow_noise(), {"kind": "map", "picture": place / "edges.png"}
    alone, other = walked(model, x, control=[own], **SIZE), {"kind": "pose", "picture": place / "other.png"}
    assert torch.equal(walked(both, x, control=[own], **SIZE), alone)
    assert torch.equal(walked(both, x, control=[own, {**other, "strength": 0.0}], **SIZE), alone)
    assert apart(walked(both, x, control=[own, other], **SIZE), alone) > 10 * LATENTS


def test_edits(model, place, tmp_path):
    wish = {"control": [{"kind": "map", "picture": place / "edges.png"}]}
    raw = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    first, other = (np.asarray(edited(model, raw, control=[{"kind": "map", "picture": place / f"{name}.png"}]).item)
                    for name in ("edges", "other"))  # fmt: skip
    assert first.shape == raw.shape and not np.array_equal(first, other)
    for size in ((32, 32), (45, 70)):
        check_outside_a_mask(model, tmp_path, size, **wish)
    with pytest.raises(UserError, match="reads a map"):
        edited(model, raw)


def test_saved_back(model, place, tmp_path):
    from diffusers import FluxControlPipeline

    save(model, tmp_path / "out", half=False)
    assert FluxControlPipeline.from_pretrained(tmp_path / "out").transformer.config.in_channels == 64
    again = load(tmp_path / "out", "cpu", dtype=torch.float32)
    fields = {"seed": 1, "steps": 2, "control": [{"kind": "map", "picture": place / "edges.png"}],
              "settings": {"size": "32x32"}}  # fmt: skip
    assert again.generate("a cat", **fields)[0].tobytes() == model.generate("a cat", **fields)[0].tobytes()
