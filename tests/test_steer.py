"""What each branch of guidance is told of the pictures that steer."""

import numpy as np
import pytest
import torch

import unfog
import unfog.data
from unfog.interop.guides import Steer
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.data import PictureSet
from unfog.steer import Hints, kinds_of, shipped


@pytest.fixture
def fields():
    return {"control": torch.rand(1, 2, 8, 8), "control_strength": torch.tensor([[1.0, 0.5]])}


def told(hints, scale, count=3):
    asked = lambda items, negative: ({"text": torch.ones(len(items), 2)}, {"text": torch.zeros(1, 2)})  # noqa: E731
    return hints.beside(asked, dict, scale, [None] * count, None)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.0])
def test_a_control_is_the_prompted_branch_s_alone(fields, scale):
    cond, other = told(Hints(fields, np.zeros((2, 2))), scale)
    assert torch.allclose(cond["control_strength"], fields["control_strength"].expand(3, 2))
    assert not other["control_strength"].any()
    assert set(cond) == set(other) and len(cond["control"]) == 3 and torch.equal(cond["control"][1], fields["control"][0])
    assert torch.equal(fields["control_strength"], torch.tensor([[1.0, 0.5]]))  # what was asked for is left as it was


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_it_acts_as_it_was_learned(fields, scale):
    cond, other = told(Hints(fields, np.zeros((2, 2))), scale)  # at 0 the other branch alone is asked
    assert torch.equal(cond["control_strength"][2], fields["control_strength"][0])
    assert torch.equal(other["control_strength"], fields["control_strength"])


def test_a_folder_s_controls_act_as_in_other_programs(fields):
    cond, other = told(Steer(fields, np.zeros((2, 2)), {}, {}), 7.5)
    assert torch.equal(cond["control_strength"][0], fields["control_strength"][0])
    assert torch.equal(other["control_strength"], fields["control_strength"])
    _, silent = told(Steer(fields, np.zeros((2, 2)), {}, {"control_strength": torch.zeros(1, 2)}), 7.5)
    assert not silent["control_strength"].any()


def test_of_a_style_only_its_name_is_left_out():
    style = {"image": torch.rand(1, 1, 4, 8, 8), "image_mask": torch.ones(1, 1), "image_named": torch.ones(1)}
    cond, other = told(Hints(style, np.zeros((0, 2))), 3.0)
    assert cond["image_named"].all() and not other["image_named"].any() and torch.equal(other["image"], style["image"])


def test_a_reference_is_read_as_its_style_also_as_one_that_the_reader_was_not_taught():
    model = unfog.load("emoji-64", adapters=[shipped("emoji-64", "style")])
    data = PictureSet.open(unfog.data.path("emoji-64"))
    held = data.split("heldout_concept")
    assert model.adapters[-1].card.training["recipe"]["held_style"] == "openmoji"
    places = [[i for i in held if data.records[i].style == style][:40:13] for style in model.styles]
    found = kinds_of(premultiply(torch.from_numpy(np.stack([data.load(i, 64) for part in places for i in part]))), model)
    assert torch.allclose(found.sum(1), torch.ones(len(found)), atol=1e-5)
    right = found.argmax(1).reshape(len(places), -1) == torch.arange(len(places))[:, None]
    assert right.double().mean() > 0.7 and right[model.styles.index("openmoji")].double().mean() > 0.7
    alone = kinds_of(premultiply(torch.from_numpy(np.stack([data.load(places[2][0], 64)]))), model)
    assert torch.allclose(alone, found[2 * len(places[0])][None], atol=0.02)  # bf16 may take another last bit in a batch
