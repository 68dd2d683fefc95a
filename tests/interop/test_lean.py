"""Networks of diffusers made lean say what they said before."""

import copy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny

from unfog.interop.lean import lean

CROSSED, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
KINDS = {
    "text last": {},
    "text first": {"down_block_types": (CROSSED[0], PLAIN[0]), "up_block_types": (PLAIN[1], CROSSED[1])},
    "linear projection": {"use_linear_projection": True, "transformer_layers_per_block": 2},
    "scaled by time": {"resnet_time_scale_shift": "scale_shift"},
    "only the text": {"only_cross_attention": True},
    "scaled sums": {"resnet_out_scale_factor": 2.0},
    "shrunk by a block": {"down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
                          "up_block_types": ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D")},
}  # fmt: skip


def asked(batch, twins, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch // 2 if twins else batch, 4, 32, 32, generator=generator)
    text = torch.randn(batch, 7, 32, generator=generator)
    t = torch.full((batch,), 500.0)
    return torch.cat([x, x]) if twins else x, t, text


@pytest.fixture(params=list(KINDS))
def pair(request):
    theirs = tiny.unet(0, **KINDS[request.param])
    return theirs, lean(copy.deepcopy(theirs).to(memory_format=torch.channels_last))


@torch.no_grad()
@pytest.mark.parametrize(("batch", "twins"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_the_same_numbers(pair, batch, twins):
    theirs, ours = pair
    for seed in (0, 1):  # the second time another text: nothing of the first may be left
        x, t, text = asked(batch, twins, seed)
        wanted = theirs(x, t, text, return_dict=False)[0]
        made = ours(x.contiguous(memory_format=torch.channels_last), t, text, return_dict=False)[0]
        assert float((made - wanted).norm() / wanted.norm()) < 2e-6


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text last", "text first"])
def test_what_twins_share_is_computed_once(kind):
    network = lean(tiny.unet(0, **KINDS[kind]))
    seen = {}

    def note(name):
        return lambda module, given, made: seen.update({name: len(made)})

    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(note(name))
    network(*asked(4, True))
    first = "down_blocks.1" if kind == "text last" else "down_blocks.0"
    once = ["down_blocks.0.resnets.0.conv1", f"{first}.resnets.0.conv2", f"{first}.attentions.0.transformer_blocks.0.attn1.to_q"]
    twice = [f"{first}.attentions.0.transformer_blocks.0.attn2.to_q", f"{first}.resnets.1.conv1", "conv_out"]
    assert [seen[name] for name in once] == [2, 2, 2]
    assert [seen[name] for name in twice] == [4, 4, 4]
    seen.clear()
    network(*asked(4, False))
    assert {seen[name] for name in once + twice} == {4}


@torch.no_grad()
def test_a_masked_text_and_another_time_for_each():
    theirs = tiny.unet(0)
    ours = lean(copy.deepcopy(theirs))
    x, _, text = asked(2, True)
    fields = {"encoder_attention_mask": torch.arange(7)[None] < torch.tensor([[7], [3]])}
    for t in (torch.tensor([10.0, 10.0]), torch.tensor([10.0, 900.0])):
        wanted = theirs(x, t, text, return_dict=False, **fields)[0]
        made = ours(x, t, text, return_dict=False, **fields)[0]
        assert float((made - wanted).norm() / wanted.norm()) < 2e-6


@torch.no_grad()
def test_an_autoencoder():
    theirs = tiny.vae(0)
    ours = lean(copy.deepcopy(theirs).to(memory_format=torch.channels_last))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = theirs.decode(z, return_dict=False)[0]
    assert float((ours.decode(z, return_dict=False)[0] - wanted).norm() / wanted.norm()) < 2e-6


@torch.no_grad()
def test_bf16_is_as_near_as_theirs():
    exact = tiny.unet(0)
    x, t, text = asked(2, True)
    wanted = exact(x, t, text, return_dict=False)[0]
    theirs = copy.deepcopy(exact).bfloat16()
    ours = lean(copy.deepcopy(theirs))
    given = x.bfloat16(), t, text.bfloat16()
    off = [float((one(*given, return_dict=False)[0].float() - wanted).norm() / wanted.norm()) for one in (theirs, ours)]
    assert off[1] < 1.2 * off[0]
