"""The plain-product path of attention against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from unfog.networks.attention import MANY, attend, fused


@pytest.mark.parametrize("masked", [False, True])
def test_training_path_equals_pytorchs_in_value_and_gradient(masked):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 7, 8), (2, 3, 11, 8), (2, 3, 11, 8)]
    ours = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mask = torch.arange(11)[None] < torch.tensor([[11], [4]]) if masked else None
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    a = attend(*ours, mask)
    b = F.scaled_dot_product_attention(*theirs, attn_mask=None if mask is None else mask[:, None, None])
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=1e-12)


def test_both_paths_agree():
    q, k, v = (torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    with torch.no_grad():
        quick = attend(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask), quick)


def test_a_masked_key_is_never_read():
    q, k, v = (torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = torch.tensor([[True, True, True, False]])
    other = v.clone()
    other[..., 3, :] = 1e6
    assert torch.equal(attend(q, k, v, mask), attend(q, k, other, mask))


@pytest.mark.parametrize("masked", ["", "bool", "bias"])
@pytest.mark.parametrize("width", [3, 8, 16])
def test_narrow_heads_are_what_pytorch_says(width, masked):
    generator = torch.Generator().manual_seed(0)
    length, keys = 300, 111
    assert length * keys >= MANY
    q, k, v = (torch.randn(2, 3, n, width, generator=generator, dtype=torch.float64) for n in (length, keys, keys))
    mask = torch.rand(2, 1, 1, keys, generator=generator) > 0.5 if masked else None
    if masked == "bias":
        mask = (~mask).double() * -10000.0
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(fused(q, k, v, mask), wanted, atol=1e-12, rtol=1e-12)
    half = None if mask is None else mask if masked == "bool" else mask.bfloat16()
    made = fused(q.bfloat16(), k.bfloat16(), v.bfloat16(), half)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.double(), wanted, atol=0.03, rtol=0.03)
