"""Batches that explode: which are left out, that they are counted, and that five in a row end the run."""

import json
import math

import pytest
import torch

from unfog.errors import UserError
from unfog.training.checkpoint import saved_steps
from unfog.training.spikes import BROKEN, STEPS, TIMES, Spikes
from unfog.training.weighting import LearnedWeight

from .test_loop import saved, task_of, train

pytestmark = pytest.mark.usefixtures("one_thread")


def seen(norms):
    spikes = Spikes()
    return spikes, [spikes.saw(norm) for norm in norms]


def test_nothing_is_out_of_the_ordinary_before_the_ordinary_is_known():
    spikes, out = seen([0.1] * (STEPS - 1) + [1e6])
    assert not any(out) and spikes.skipped == 0


@pytest.mark.parametrize("times", [0.9, 1.1])
def test_the_limit_is_so_many_times_the_usual_norm(times):
    spikes, out = seen([0.5, 2.0] * STEPS)  # of geometric mean 1
    assert math.isclose(spikes.limit, TIMES, rel_tol=0.05) and not any(out)
    assert spikes.saw(spikes.limit * times) is (times > 1)
    assert spikes.skipped == (times > 1)


def test_norms_that_fall_or_rise_slowly_are_followed():
    _, out = seen([1000 * 0.99**k for k in range(1000)] + [0.05 * 1.02**k for k in range(500)])
    assert not any(out)


def test_five_in_a_row_break_it_and_one_good_one_does_not():
    spikes, _ = seen([1.0] * STEPS)
    for _ in range(BROKEN - 1):
        assert spikes.saw(math.nan) and not spikes.broken
    assert not spikes.saw(1.0) and spikes.skipped == BROKEN - 1
    for _ in range(BROKEN):
        spikes.saw(1e9)
    assert spikes.broken and spikes.skipped == 2 * BROKEN - 1


def exploding(task, indices, factor):
    """The task with the loss of some batches multiplied."""
    batch, loss = task.batch, task.loss
    task.batch = lambda index, rows=slice(None): (
        batch(index, rows) | {"factor": torch.full((4,), factor if index in indices else 1.0)}
    )
    task.loss = lambda few: loss(few) * few["factor"]
    return task


@pytest.mark.parametrize("factor", [1e6, math.nan])
def test_an_exploding_batch_is_left_out_counted_and_forgotten(tmp_path, tiny_recipe, tiny_corpus, monkeypatch, factor):
    """The run, cut and resumed around it, is the same; its count is in the events; weights stay sound."""
    from . import test_loop

    recipe = tiny_recipe(steps=70, lr=1e-4, warm_up=60)
    plain = test_loop.task_of

    def spoiled(recipe, corpus):
        network, task = plain(recipe, corpus)
        return network, exploding(task, {55, 62}, factor)

    monkeypatch.setattr(test_loop, "task_of", spoiled)
    train(recipe, tiny_corpus, tmp_path / "whole")
    for steps in (56, 70):
        train(recipe.model_copy(update={"steps": steps, "decay": 0.0}), tiny_corpus, tmp_path / "other", resume=steps == 70)
    events = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    assert [event.get("broken", 0) + event.get("skipped", 0) for event in events] == [0, 0, 0, 0, 0, 1, 1]
    _, state = saved(tmp_path / "other")
    assert state["loop.spikes"][2] == 2  # remembered by the checkpoint between
    assert all(value.isfinite().all() for value in saved(tmp_path / "whole")[1].values())


def test_five_exploding_batches_end_the_run_and_name_the_pictures(tmp_path, tiny_recipe, tiny_corpus, monkeypatch):
    from . import test_loop

    plain = test_loop.task_of
    monkeypatch.setattr(
        test_loop, "task_of", lambda r, c: (lambda n, t: (n, exploding(t, set(range(60, 80)), 1e6)))(*plain(r, c))
    )
    with pytest.raises(UserError, match=r"step 64: five batches in a row .*norm is \d.*e\+\d+.* with \d\d.png"):
        train(tiny_recipe(steps=80, lr=1e-4), tiny_corpus, tmp_path)
    assert saved_steps(tmp_path) == [64]


def test_a_learned_weight_finds_the_log_of_each_levels_loss():
    """Levels whose loss is e^(logsnr/4) on average: u comes near logsnr/4, and the weighed loss's gradient is even."""
    torch.manual_seed(0)
    weight = LearnedWeight()
    logsnr = torch.linspace(-8, 8, 64)
    loss = (logsnr / 4).exp()
    assert torch.equal(weight(loss, logsnr), loss)  # nothing changes at the start
    optimiser = torch.optim.Adam(weight.parameters(), 0.05)
    for _ in range(1500):
        optimiser.zero_grad()
        weight(loss * (1 + 0.2 * torch.randn(64)), logsnr).mean().backward()
        optimiser.step()
    assert float((weight.u(logsnr) - logsnr / 4).detach().abs().max()) < 0.25


def test_a_learned_weight_trains_beside_the_network_and_resumes(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(learned_weight=True, steps=8)
    train(recipe, tiny_corpus, tmp_path / "whole")
    train(tiny_recipe(learned_weight=True, steps=8, decay=0.0).model_copy(update={"steps": 4}), tiny_corpus, tmp_path / "cut")
    network, task = task_of(recipe, tiny_corpus)
    assert task.extra is not None and not any(k.startswith("weight") for k in network.state_dict())
    _, state = saved(tmp_path / "whole")
    assert state["extra.linear.bias"].abs() > 0 and not any(k.startswith("ema.linear") for k in state)
    train(tiny_recipe(learned_weight=True, steps=8, decay=0.0), tiny_corpus, tmp_path / "cut", resume=True)
    train(tiny_recipe(learned_weight=True, steps=8, decay=0.0), tiny_corpus, tmp_path / "same")
    (_, cut), (_, same) = (saved(tmp_path / n) for n in ("cut", "same"))
    assert [k for k in same if not torch.equal(same[k], cut[k])] == []
