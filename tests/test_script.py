"""What is said at each row: each text asked for once, parts composed, items independent of their batch."""

import math

import pytest
import torch

from unfog.diffusion import Gaussian
from unfog.diffusion.guidance.composed import Composed
from unfog.prompts import parse
from unfog.script import Script, beyond, read


class Told:
    """D = x/2 + what the text says (its length times its weight), which tells texts apart."""

    def __init__(self):
        from unfog.diffusion import schedule_from_config

        self.process, self.calls, self.asked_for = Gaussian(schedule_from_config({"name": "cosine"})), 0, []

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return x_t / 2 + cond["n"][:, None]

    def asked(self, items, negative):
        def size(said):
            return float(len(said or "")) if isinstance(said, str | None) else sum(len(f.text) * f.weight for f in said)

        self.asked_for.append(tuple(said for said, _, _ in items))
        return {"n": torch.tensor([size(said) for said, _, _ in items])}, {"n": torch.tensor([size(negative)])}


def script(prompts, negative=None, rows=4, scale=2.0):
    told = Told()
    items = [(parse(p), None, k) for k, p in enumerate(prompts)]
    return told, Script(told, told.asked, items, negative if negative is None else parse(negative), rows, rows, scale)


def walked(prompts, **options):
    told, said = script(prompts, **options)
    out, x = [], torch.ones(len(prompts), 3)
    for row in range(4):
        said.row = row
        out.append(said(x, 0.5))
    return told, torch.stack(out)


def test_words_come_and_go_and_each_text_is_asked_for_once():
    told, out = walked(["a[ longer:0.5]", "bb"])
    assert [round(float(v)) for v in out[:, 0, 0] - 0.5] == [2, 2, 16, 16]  # scale 2 against nothing
    assert (out[:, 1] == out[0, 1]).all()
    assert len(told.asked_for) == 2
    assert len(walked(["[a|bbb]"])[0].asked_for) == 2


def test_parts_are_composed():
    told, said = script(["aaaa::3 b::1"], negative="cc")
    x = torch.ones(1, 3)
    conds = [{"n": torch.tensor([4.0])}, {"n": torch.tensor([1.0])}]
    expected = Composed(told, conds, [1.5, 0.5], {"n": torch.tensor([2.0])})(x, 0.5)
    torch.testing.assert_close(said(x, 0.5), expected)
    # by hand: D_u + s·Σ v·(D_k − D_u)
    torch.testing.assert_close(said(x, 0.5) - 0.5, torch.full((1, 3), 2 + 2 * (0.75 * 2 + 0.25 * -1)))


def test_one_part_of_any_weight_is_the_text_alone():
    assert torch.equal(walked(["aaa::5"])[1], walked(["aaa"])[1])


def test_an_item_is_the_same_in_any_batch():
    prompts = ["aaaa::3 b::1", "plain", "c::1 ddd::1 ee::-0.5", "[x|yyy]"]
    together = walked(prompts, negative="no::1 never::1")[1]
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[:, i], walked([prompt], negative="no::1 never::1")[1][:, 0])


def test_several_views_of_an_item_are_told_the_same():
    for prompts in (["aaaa::3 b::1", "plain"], ["a", "bb"], ["a"]):
        _, said = script(prompts)
        x = torch.ones(len(prompts), 3)
        torch.testing.assert_close(said(x.repeat_interleave(3, 0), 0.5), said(x, 0.5).repeat_interleave(3, 0))


def test_parts_cost_one_evaluation_each():
    told, said = script(["a::1 b::1"])
    said(torch.ones(1, 3), 0.5)
    assert told.calls == 3
    told, said = script(["a::1 b::1"], scale=1.0)
    said(torch.ones(1, 3), 0.5)
    assert told.calls == 2


class Space:
    reads = True

    def fits(self, text):
        return len(text) < 20


def test_who_reads_the_language():
    assert read(object(), "(a:2)") == "(a:2)" and read(Space(), "(a:2)", literal=True) == "(a:2)"
    assert read(Space(), None) is None and read(Space(), "(a:2)").parts
    assert not beyond(Space(), [read(Space(), "flag: Aruba"), None, "(a)"])
    assert beyond(Space(), [read(Space(), "(a)")]) and beyond(Space(), [read(Space(), "word " * 9)])


@pytest.fixture(scope="module")
def model():
    import unfog

    return unfog.load("emoji-64")


def bits(model, prompt, **fields):
    return [image.tobytes() for image in model.generate(prompt, seed=4, steps=2, **fields)]


def test_what_means_the_same_makes_the_same_picture(model):
    plain = bits(model, "a red apple")
    for same in ("a red apple::3", "a (red:1) apple", "[a red apple:a dog:1]", "[a dog:a red apple:0]"):
        assert bits(model, same) == plain, same
    assert bits(model, "a red apple", literal=True) == plain
    assert bits(model, "a (red) apple") != bits(model, "a (red) apple", literal=True)
    assert bits(model, r"a \(red\) apple") == bits(model, "a (red) apple", literal=True)


def test_a_batch_of_all_sorts_is_each_alone(model):
    import numpy as np

    from unfog.requests import GenerateRequest, Result

    prompts = ["a (red:1.4) apple", "a cat::1 a dog::1", "[a|b] hat", "a house " * 20]
    request = GenerateRequest(prompts=prompts, seed=1, steps=2, batch=4)
    for result in model.stream(request):
        if isinstance(result, Result):
            alone = model.generate(result.prompt, seed=1, steps=2)[0]
            assert np.abs(np.asarray(alone).astype(int) - np.asarray(result.item).astype(int)).max() <= 2
            assert result.recipe["language"] == 1


def test_the_recipe_says_how_its_prompt_was_read(model):
    from unfog.requests import GenerateRequest, Result, from_recipe

    for prompt, literal in (("a (red) hat", False), ("a (red) hat", True), ("a long red hat on a small round table", False)):
        request = GenerateRequest(prompts=[prompt], seed=1, steps=2, literal=literal)
        (first,) = [e for e in model.stream(request) if isinstance(e, Result)]
        (again,) = [e for e in model.stream(from_recipe(first.recipe)) if isinstance(e, Result)]
        assert again.item.tobytes() == first.item.tobytes() and again.recipe == first.recipe
    assert "language" not in first.recipe and math.isfinite(first.recipe["scale"])


def test_mistakes_are_told_before_anything_is_made(model):
    from unfog.errors import UserError
    from unfog.requests import GenerateRequest

    with pytest.raises(UserError, match="prompt: the weight 99"):
        next(model.stream(GenerateRequest(prompts=["a cat", "a (dog:99)"], seed=1)))


@pytest.mark.slow
def test_more_weight_makes_more_of_it(model):
    import numpy as np

    from unfog.requests import GenerateRequest, Result

    prompts = [
        p.format(w) for p in ("a (red:{}) apple and a green leaf", "a blue heart with a (red:{}) ribbon") for w in (0.5, 1.5)
    ]
    request = GenerateRequest(prompts=prompts, seed=0, steps=6, batch=4)
    red = []
    for result in model.stream(request):
        if isinstance(result, Result):
            p = np.asarray(result.item).astype(float)
            red.append(((p[..., 0] - p[..., 1:3].mean(-1)) * p[..., 3]).sum() / p[..., 3].sum())
    assert red[1] > red[0] + 10 and red[3] > red[2] + 10
