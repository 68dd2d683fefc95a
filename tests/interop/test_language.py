"""The prompt language on a folder of Stable Diffusion: exact properties of what its network is told."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

import tiny

from unfog.interop import load
from unfog.prompts import parse
from unfog.requests import GenerateRequest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny.stable_diffusion(tmp_path_factory.mktemp("language") / "sd"), "cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return load(tiny.stable_diffusion_xl(tmp_path_factory.mktemp("language") / "xl"), "cpu", dtype=torch.float32)


def states(model, prompt, **settings):
    return model.space.both(list(parse(prompt).at(0.0)), None, settings)[0]["text"][0]


def told(model, prompt, steps=4, **fields):
    """What the network is told at each row: the text of the item's branch."""
    seen = []
    network = model.denoiser.network

    def spy(module, given):
        seen.append(given[2]["text"][0].clone())

    handle = network.register_forward_pre_hook(spy)
    try:
        model.generate(prompt, seed=1, steps=steps, sampler="ddim", **fields)
    finally:
        handle.remove()
    return seen


def recipe_of(model, prompt, **fields):
    request = GenerateRequest(prompts=[prompt], seed=1, steps=2, **fields)
    return next(event.recipe for event in model.stream(request) if hasattr(event, "recipe"))


def test_a_plain_prompt_is_what_it_was(model):
    text = "a red apple: 12:30 | on the moon (("
    plain = model.space.both([text], None, {})[0]["text"]
    assert torch.equal(states(model, text), plain[0])
    assert "language" not in recipe_of(model, text) and recipe_of(model, "a (red:1.2) cat")["language"] == 1
    pictures = [model.generate(text, seed=1, steps=2, literal=literal)[0].tobytes() for literal in (False, True)]
    assert pictures[0] == pictures[1]


def test_weights(model, large):
    for one in (model, large):
        plain, none = states(one, "a red apple"), states(one, "")
        assert torch.equal(states(one, "a (red:1.0) apple"), plain)
        weighted = states(one, "a (red:1.5) apple")
        assert torch.allclose(weighted[2], none[2] + 1.5 * (plain[2] - none[2]), atol=1e-6)  # start, a, red
        others = [i for i in range(77) if i != 2]
        assert torch.allclose(weighted[others], plain[others], atol=1e-6)
        # a word of which a part weighs is still read as one word
        assert torch.allclose(states(one, "a red app(le:1.00001)"), plain, atol=1e-4)
        assert torch.equal(states(one, "a (red:0) apple"), states(one, "a  apple"))  # left out


def test_a_learned_word_weighs_as_a_whole(model, tmp_path):
    from safetensors.torch import save_file

    save_file({"<my-cat>": torch.randn(2, 32)}, tmp_path / "word.safetensors")
    own = load(model.folder, "cpu", [tmp_path / "word.safetensors"], dtype=torch.float32).space.encoders[0].tokens
    found = own.weighed([("a ", 1.0), ("<my-cat>", 1.3), (" on the moon", 1.0)])
    numbers = own.numbers("a <my-cat> on the moon")
    assert found == list(zip(numbers, [1.0, 1.3, 1.3, *[1.0] * (len(numbers) - 3)], strict=True))


def test_words_that_come_and_go(model):
    first, second = told(model, "a red cat", 1)[0], told(model, "a blue cat", 1)[0]
    assert not torch.equal(first, second)
    rows = told(model, "a [red:blue:0.5] cat")
    assert len(rows) == 4
    assert all(torch.equal(row, first) for row in rows[:2]) and all(torch.equal(row, second) for row in rows[2:])
    rows = told(model, "a [red|blue] cat")
    assert all(torch.equal(row, (first, second)[i % 2]) for i, row in enumerate(rows))
    rows = told(model, "a cat", negative="[red:0.5]")  # the other branch has its own
    assert all(torch.equal(row, told(model, "a cat", 1)[0]) for row in rows)


def test_a_schedule_ends_where_its_halves_lead(model):
    """The picture is that of a plan walked half with the one prompt and half with the other."""
    from unfog.diffusion import Noise, begin, run
    from unfog.diffusion.guidance.cfg import ClassifierFree

    request = GenerateRequest(prompts=["a [red:blue:0.5] cat"], seed=3, steps=4, sampler="ddim", scale=3.0).settled()
    plan = model.planned(request)
    *_, last = model.states(request, [(request.prompts[0], None, 3)], plan)
    pairs = [model.space.both([text], None, {}) for text in ("a red cat", "a blue cat")]
    done = 0

    def halves(x_t, t):
        cond, other = pairs[done >= 2]
        return ClassifierFree(model.denoiser, 3.0, other)(x_t, t, cond)

    noise = Noise([3])
    start = model.denoiser.process.prior(noise.normal(model.space.shape, 0), plan.start)
    for state in run(plan, halves, begin(plan, start), noise):
        done = state.nfe
    assert torch.allclose(last.x, state.x, atol=1e-6)


def test_parts(model):
    """Of two parts the guided estimate is the mean of theirs, by their shares; a part alone is the prompt."""
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))

    def estimate(prompt, scale):
        from unfog.script import Script, read

        items = [(read(model.space, prompt), None, 1)]
        said = Script(model.denoiser, lambda i, n: model.asked(i, n, {}), items, None, 4, 4, scale)
        with torch.no_grad():
            return said(x, 0.6)

    both = estimate("a red cat::2 a blue apple::1", 3.0)
    assert torch.allclose(both, (2 * estimate("a red cat", 3.0) + estimate("a blue apple", 3.0)) / 3, atol=1e-5)
    assert torch.allclose(estimate("a red cat::5", 3.0), estimate("a red cat", 3.0), atol=1e-5)
    away = estimate("a red cat::1 a blue apple::-0.5", 1.0)
    assert torch.allclose(away, 2 * estimate("a red cat", 1.0) - estimate("a blue apple", 1.0), atol=1e-4)


def test_long_prompts_negatives_and_xl(model, large):
    long = " ".join(["a (red:1.2) apple"] * 40)
    assert states(model, long).shape == (2 * 77, 32)
    assert model.generate(long, negative="(blue:1.3) [cat|moon]", seed=1, steps=2)[0].size == (32, 32)
    assert large.generate("a [cat:apple:0.5] on (the moon:1.4)::2 a cat", seed=1, steps=2)[0].size == (32, 32)
    other = large.space.both(["a cat"], parse("").at(0.0)[0], {})[1]
    assert not bool(other["text"].any())  # an empty negative prompt is none
    with pytest.raises(ValueError, match="weight 11"):
        model.generate("a (red:11) cat", seed=1, steps=2)


def test_the_command_line_remakes_it(model, tmp_path, capfd, monkeypatch):
    from unfog.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a [red:blue:0.5] (cat:1.3)::2 apple", "--model", str(model.folder), "--steps", "2", "--seed", "7"]
    assert main(words) == 0
    (path,) = capfd.readouterr().out.splitlines()
    before = Path(path).read_bytes()
    assert main(["generate", "--like", path, "--model", str(model.folder)]) == 0
    assert Path(path).read_bytes() == before
    capfd.readouterr()
    assert main([*words[:1], "a (cat:99)", *words[2:]]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
