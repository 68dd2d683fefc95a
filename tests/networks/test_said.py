"""States of weighted and long prompts: what a weight of 0 and of 1 mean, pieces, learned words, batches."""

import pytest
import torch

from unfog.networks.said import fits, states
from unfog.networks.text import TextEncoder
from unfog.prompts import Fragment, parse


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.load()


def of(encoder, *prompts, words=None):
    return states(encoder, [p if isinstance(p, tuple) else parse(p).at(0)[0] for p in prompts], words or {})


def test_plain_text_is_encoded_as_it_always_was(encoder):
    prompts = ["a red apple", "flag: Aruba", "", "a cat :)"]
    found, mask = of(encoder, *prompts)
    before = encoder(prompts)
    assert torch.equal(found, before[0]) and torch.equal(mask, before[1])
    assert torch.equal(of(encoder, "a (red:1) apple")[0], encoder(["a red apple"])[0])


def test_a_weight_of_nothing_leaves_the_words_out(encoder):
    found, mask = of(encoder, "a (red:0) apple")
    torch.testing.assert_close(found[mask], encoder(["a apple"])[0][0, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of(encoder, "(a cat:0)")[0][0, :2], encoder([""])[0][0, :2], atol=1e-5, rtol=1e-5)


def test_a_weight_changes_the_words_and_what_others_heard_of_them(encoder):
    """By hand: with the states of the text and of the text without the word."""
    whole, without = encoder(["a red apple"])[0][0, :5], encoder(["a apple"])[0][0, :4]
    found = of(encoder, "a (red:1.5) apple")[0][0, :5]
    torch.testing.assert_close(found[2], 1.5 * whole[2], atol=1e-5, rtol=1e-5)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(found[others], whole[others] + 0.5 * (whole[others] - without), atol=2e-5, rtol=1e-5)


def test_long_prompts_go_in_pieces(encoder):
    text = " ".join(f"thing{'s' * (k % 3)} {k}" for k in range(60))
    assert not fits(encoder, text, {}) and fits(encoder, "a red apple", {})
    found, mask = of(encoder, text)
    tokens = encoder.whole.encode(text, add_special_tokens=False).tokens
    pieces = found.shape[1] // 32
    assert found.shape[1] % 32 == 0 and pieces >= 4
    assert int(mask.sum()) >= len(tokens) + 2 * (pieces - 1) and (found[mask].abs().sum(-1) > 0).all()
    # the first piece is what it would be by itself, and no word is cut
    offsets = encoder.whole.encode(text, add_special_tokens=False).offsets
    cut = max(k for k in range(1, 31) if not tokens[k].startswith("##"))
    first = encoder([text[: offsets[cut][0]]])[0][0, : cut + 2]
    torch.testing.assert_close(found[0, : cut + 2], first, atol=1e-5, rtol=1e-5)


def test_a_word_longer_than_a_piece_is_cut(encoder):
    found, mask = of(encoder, "zqxj" * 22)
    assert found.shape[1] >= 64 and mask.any(1).all()


def test_an_item_does_not_depend_on_its_batch(encoder):
    prompts = ["a (red:1.5) apple", "a cat", "word " * 80, "a (blue:0.4) [hat]"]
    found, mask = of(encoder, *prompts)
    for i, prompt in enumerate(prompts):
        own, real = of(encoder, prompt)
        assert int(mask[i].sum()) == int(real.sum())
        torch.testing.assert_close(found[i][mask[i]], own[real], atol=1e-5, rtol=1e-5)
        assert not found[i][~mask[i]].any()


def test_learned_words_have_weights_too(encoder):
    words = {"<my-cat>": torch.randn(2, 384, generator=torch.Generator().manual_seed(0)) * 0.05}
    plain = of(encoder, "a <my-cat> here", words=words)[0][0, :6]
    found = of(encoder, "a (<my-cat>:2) here", words=words)[0][0, :6]
    torch.testing.assert_close(found[2:4], 2 * plain[2:4], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[1], plain[1], atol=1e-3)


def test_neighbours_share_a_token(encoder):
    """Letters of one word with two weights: the token has that of its first letter."""
    found = of(encoder, (Fragment("re", 2.0), Fragment("d cat")))[0][0]
    assert torch.allclose(found[1], 2 * encoder(["red cat"])[0][0, 1], atol=1e-4)
