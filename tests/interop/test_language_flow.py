"""The prompt language and guides beside Stable Diffusion 3, Flux and XL's refiner."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_flow
from guided import picture
from test_language import states, told
from test_refiner import refiner

from unfog.errors import UserError
from unfog.interop import load


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("language-flow")
    tiny_flow.sd3(place / "sd3")
    tiny.controlnet(1).save_pretrained(place / "canny")
    return place


def test_the_language_of_3(place):
    model = load(place / "sd3", "cpu", dtype=torch.float32)
    plain = states(model, "a red apple")
    assert torch.equal(states(model, "a (red:1.0) apple"), plain)
    weighted = states(model, "a (red:1.5) apple")
    # start, a, red: of CLIP's states, then of T5's, which have no start
    changed = (weighted - plain).abs().amax(-1) > 1e-4
    assert changed.nonzero().flatten().tolist() == [2, 77 + 1]
    first, second = told(model, "a red cat", 1, scale=3.0)[0], told(model, "a blue cat", 1, scale=3.0)[0]
    rows = told(model, "a [red:blue:0.5] cat", scale=3.0)
    assert all(torch.equal(row, first) for row in rows[:2]) and all(torch.equal(row, second) for row in rows[2:])
    assert model.generate("a cat::2 a blue apple", negative="", seed=1, steps=2)[0].mode == "RGBA"


def test_guides_of_other_families_are_refused(place):
    with pytest.raises(UserError, match="canny steers Stable Diffusion 1, 2 and XL only"):
        load(place / "sd3", "cpu", [place / "canny"], dtype=torch.float32)
    with pytest.raises(UserError, match="follows no picture"):
        load(place / "sd3", "cpu", dtype=torch.float32).generate("a cat", control=["canny=x.png"], seed=1, steps=1)


def test_a_controlnet_of_xl_before_its_refiner(place):
    tiny.stable_diffusion_xl(place / "xl")
    refiner(place / "refiner")
    net = tiny.controlnet(3, text=64, use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
                          addition_embed_type="text_time", addition_time_embed_dim=8,
                          projection_class_embeddings_input_dim=32 + 6 * 8)  # fmt: skip
    net.save_pretrained(place / "xl-canny")
    model = load(place / "xl", "cpu", [place / "xl-canny", f"{place / 'refiner'}:0.5"], dtype=torch.float32)
    hint = {"kind": "xl-canny", "picture": picture(1)}
    fields = {"seed": 1, "steps": 4, "sampler": "euler"}
    plain = model.generate("a cat", **fields)[0].tobytes()
    assert model.generate("a cat", control=[{**hint, "strength": 0.0}], **fields)[0].tobytes() == plain
    # the refiner has the last half of the way, and no branch
    late = model.generate("a cat", control=[{**hint, "interval": (0.75, 1.0)}], **fields)[0]
    assert late.tobytes() == plain != model.generate("a cat", control=[hint], **fields)[0].tobytes()
    assert model.generate("a [red:blue:0.3] (cat:1.2)", **fields)[0].size == (32, 32)


def test_flux_edits(place):
    from unfog.editing import EditRequest, edit

    model = load(tiny_flow.flux(place / "flux"), "cpu", dtype=torch.float32)
    raw = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    raw[..., 3] = 255
    *_, last = edit(model, raw, EditRequest(item="x.png", prompt="a (red:1.2) cat", strength=0.5, steps=4, seed=1))
    assert np.asarray(last.item).shape == raw.shape
