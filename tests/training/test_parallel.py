"""A network laid over several processes: shards are the run of one process, in the same checkpoints; savers change no bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # these two here: seconds in every forked process
import torch.distributed.fsdp
from safetensors.torch import load_file
from torch import nn

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError
from unfog.training.checkpoint import Checkpoints, only_run, saved_steps
from unfog.training.denoising import Denoising
from unfog.training.ema import PowerEMA
from unfog.training.loop import fit
from unfog.training.optimisers import MuonAdamW, orthogonal
from unfog.training.parallel import blocks, by_rows, clipped, local, parallelise, rows, sharded, twin, whole
from unfog.training.peers import Peers
from unfog.training.run import build_network

from .processes import spawned, together

pytestmark = pytest.mark.usefixtures("one_thread")
DIT = {"network": "dit", "settings": {"size": 16, "width": 32, "depth": 2, "heads": 2, "registers": 1, "bottleneck": 16,
                                      "text_dim": 12}}  # fmt: skip


def train(recipe, corpus, out, resume=False, show=None, reports=None):
    """A run as `unfog train` makes it, without its data and its pictures. -> the average that it ends with."""
    out.mkdir(exist_ok=True)
    peers = Peers(recipe.average_steps)
    network = build_network(recipe, {"channels": 4, "classes": len(corpus.styles)})
    stepped = parallelise(network, recipe, peers)
    denoiser = Preconditioned(stepped, Gaussian(schedule_from_config(recipe.schedule)), recipe.prediction)
    task = Denoising(recipe, corpus, denoiser, network)
    seen = [] if reports is None else reports
    ema, _ = fit(recipe, task, network, out, resume=resume, minutes=None, dtype=torch.float32,
                 report=lambda step, ema: seen.append((step, ema.network)), show=show or (lambda *_: None),
                 peers=peers)  # fmt: skip
    return ema


def runs(recipe, corpus, out, count=2, stop_after=None, resume=False):
    """`count` processes train into one folder; the last is sent SIGTERM after step `stop_after`."""

    def work(rank):
        def show(step, event):
            if rank == count - 1 and step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        train(recipe, corpus, out, resume, show)

    assert together(count, work) == [0] * count


def saved(out):
    step = saved_steps(out)[0]
    return step, load_file(out / "checkpoints" / f"{step:07d}.safetensors")


def difference(a, b):
    """The largest difference between two checkpoints; they hold the same names."""
    (step, first), (other, second) = (saved(out) for out in (a, b))
    assert step == other and first.keys() == second.keys()
    return max(float((first[k] - second[k]).abs().max()) for k in first)


@pytest.mark.parametrize("network, before, after", [
    ("unet", 2, 2), ("dit", 2, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("unet", 1, 2), ("dit", 3, 2))),
])  # fmt: skip
def test_shards_are_the_run_of_one_process(tmp_path, tiny_recipe, tiny_corpus, network, before, after):
    """Stopped as so many and resumed as so many, from checkpoints of one format: to rounding, as norms are summed otherwise."""
    changes = DIT if network == "dit" else {}
    recipe = tiny_recipe(steps=8, dropout=0.2, batch=6, parallel="shard", **changes)
    runs(recipe, tiny_corpus, tmp_path / "whole", count=1)
    runs(recipe, tiny_corpus, tmp_path / "cut", before, stop_after=3)
    assert saved(tmp_path / "cut")[0] == 3
    runs(recipe, tiny_corpus, tmp_path / "cut", after, resume=True)
    # Adam divides small gradients by themselves; three processes cut a batch into other parts than one does
    assert difference(tmp_path / "whole", tmp_path / "cut") < (2e-5 if before == 3 else 2e-6)


def test_two_processes_are_one_to_the_bit_with_wide_text(tmp_path, tiny_recipe, tiny_corpus):
    """Text states as wide as real ones: their sums round otherwise where a part of a batch lies in memory with gaps."""
    tiny_corpus.states = torch.randn(27, 5, 384, generator=torch.Generator().manual_seed(0)).half()
    recipe = tiny_recipe(steps=3, lr=1e-2, **{**DIT, "settings": DIT["settings"] | {"text_dim": 384}})
    runs(recipe, tiny_corpus, tmp_path / "one", count=1)
    runs(recipe, tiny_corpus, tmp_path / "two", count=2)
    assert difference(tmp_path / "one", tmp_path / "two") == 0.0


def test_shards_stopped_and_resumed_are_the_run_that_was_not(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=6, parallel="shard", **DIT)
    runs(recipe, tiny_corpus, tmp_path / "whole")
    runs(recipe, tiny_corpus, tmp_path / "cut", stop_after=3)
    runs(recipe, tiny_corpus, tmp_path / "cut", resume=True)
    assert difference(tmp_path / "whole", tmp_path / "cut") == 0.0
    assert (tmp_path / "whole" / "events.jsonl").read_bytes() == (tmp_path / "cut" / "events.jsonl").read_bytes()


def test_a_process_holds_its_share_and_the_leader_reports_whole_weights(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=4, parallel="shard", report_steps=4)

    def work(rank):
        reports = []
        ema = train(recipe, tiny_corpus, tmp_path, reports=reports)
        assert len(reports) == (rank == 0)
        if rank == 0:
            _, state = saved(tmp_path)
            for _, network in (*reports, (4, ema.network)):
                assert not sharded(network)
                assert all(torch.equal(value, state[f"ema.{key}"]) for key, value in network.state_dict().items())
        else:
            network = ema.network
            assert sharded(network)
            held, all_of = (sum(f(p).numel() for p in network.parameters()) for f in (local, lambda p: p))
            assert held < 0.52 * all_of  # an odd number of rows is not halved exactly

    assert together(2, work) == [0, 0]


SHAPES = [(5, 4), (2, 7), (7, 3), (1, 6), (12, 12)]


def test_matrices_put_together_in_one_process_each(tmp_path):
    def work(rank):
        Peers()
        torch.manual_seed(0)
        matrices = [torch.randn(shape) for shape in SHAPES]
        parts = [m[slice(*rows(len(m), 3, rank))] for m in matrices]
        calls = []
        found = by_rows(parts, [m.shape for m in matrices], lambda m: (calls.append(len(m)), orthogonal(m).float())[1])
        for matrix, own in zip(matrices, found, strict=True):
            assert torch.equal(own, orthogonal(matrix).float()[slice(*rows(len(matrix), 3, rank))])
        assert len(calls) == [2, 2, 1][rank]

    assert together(3, work) == [0, 0, 0]


def test_clipping_knows_all_parts(tiny_recipe, tiny_corpus):
    def work(rank):
        recipe = tiny_recipe(parallel="shard")
        plain, network = (
            build_network(recipe, {"channels": 4, "classes": 2}),
            build_network(recipe, {"channels": 4, "classes": 2}),
        )
        parallelise(network, recipe, Peers())
        torch.manual_seed(1)
        for p, q in zip(plain.parameters(), network.parameters(), strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = torch.zeros_like(q)
            first, last = rows(len(p), 2, rank)
            local(q.grad).copy_(p.grad[first:last])
        norms = [clipped(list(n.parameters()), 1.0) for n in (plain, network)]
        assert norms[0] > 10 and abs(norms[1] / norms[0] - 1) < 1e-6
        for p, q in zip(plain.parameters(), network.parameters(), strict=True):
            assert torch.allclose(p.grad, whole(q.grad), rtol=1e-5, atol=0)

    assert together(2, work) == [0, 0]


@pytest.mark.parametrize("network", [pytest.param("unet", marks=pytest.mark.slow), "dit"])
def test_saving_memory_and_compiling_change_no_weight(tmp_path, tiny_recipe, tiny_corpus, network, monkeypatch):
    compiled = []

    def compile_(call):  # traced as always, but not translated: that would take minutes
        compiled.append(call)
        return COMPILE(call, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setenv("WORLD_SIZE", "1")
    changes = DIT if network == "dit" else {}
    for name, more in (("plain", {}), ("saved", {"checkpoint_activations": True})):
        train(tiny_recipe(steps=3, dropout=0.2, **more, **changes), tiny_corpus, tmp_path / name)
    assert difference(tmp_path / "plain", tmp_path / "saved") == 0.0
    assert not compiled
    stepped = parallelise(
        build_network(tiny_recipe(**changes), {"channels": 4, "classes": 2}), tiny_recipe(compile="blocks", **changes), Peers()
    )
    assert len(compiled) == len(list(blocks(stepped))) >= 2
    x, t = torch.randn(2, 4, 16, 16), torch.zeros(2)
    before = stepped(x, t)
    copied = twin(stepped)
    with torch.no_grad():
        for p in stepped.parameters():
            p.zero_()
    assert torch.allclose(copied(x, t), before, atol=1e-6)  # the copy runs its own weights, not the original's


COMPILE = torch.compile


def test_activations_that_are_not_kept_are_not_kept(tiny_recipe):
    def kept(**changes):
        network = build_network(tiny_recipe(**DIT), {"channels": 4, "classes": 2})
        stepped = parallelise(network, tiny_recipe(**changes, **DIT), Peers())
        own = {id(p) for p in network.parameters()}
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(0 if id(t) in own else t.numel()), t)[1], lambda t: t
        ):
            stepped(torch.randn(4, 4, 16, 16), torch.zeros(4))
        return sum(sizes)

    assert kept(checkpoint_activations=True) < 0.6 * kept()


def test_settings_that_do_not_go_together(tiny_recipe, monkeypatch):
    peers = Peers()
    peers.count = 2
    network = nn.Linear(2, 2)
    with pytest.raises(UserError, match="average_steps to 0"):
        parallelise(network, tiny_recipe(parallel="shard", average_steps=4), peers)
    with pytest.raises(UserError, match="batch: 4 is less than 8, 4 for each of 2"):
        parallelise(network, tiny_recipe(parallel="shard", accumulate=7), peers)


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_a_killed_process_ends_the_others_and_a_restart_is_the_whole_run(tmp_path, tiny_recipe, tiny_corpus, parallel, capfd):
    recipe = tiny_recipe(steps=8, parallel=parallel, checkpoint_minutes=1e-9, **DIT)  # a checkpoint before every step
    runs(recipe, tiny_corpus, tmp_path / "whole")
    out = tmp_path / "cut"

    def work(rank):
        def show(step, event):
            if rank == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            if rank:
                train(recipe, tiny_corpus, out, show=show)
            else:
                with only_run(out):
                    train(recipe, tiny_corpus, out)
        except UserError as error:
            assert "\n" not in str(error)
            print(f"unfog: {error}", flush=True)
            os._exit(2)

    assert together(2, work) == [2, -signal.SIGKILL]
    assert "process 1 of 2: another one is gone or stands still" in capfd.readouterr().out
    assert saved(out)[0] in (3, 4)
    with only_run(out):  # the leader's hold on the folder went with it
        runs(recipe, tiny_corpus, out, resume=True)
    assert difference(tmp_path / "whole", out) == 0.0


def test_a_leader_that_is_killed_frees_the_folder(tmp_path, tiny_recipe, tiny_corpus):
    recipe = tiny_recipe(steps=500)

    def work(rank):
        if rank:
            train(recipe, tiny_corpus, tmp_path)
        else:
            with only_run(tmp_path):
                train(recipe, tiny_corpus, tmp_path)

    processes = spawned(2, work)
    deadline = time.monotonic() + 60
    while not (tmp_path / "events.jsonl").exists() or not (tmp_path / "events.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UserError, match="another process is training there"), only_run(tmp_path):
        pass
    processes[0].kill()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 1]
    with only_run(tmp_path):
        pass
    steps = [json.loads(line)["step"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 10 * len(steps) + 1, 10))


def test_one_that_stands_still_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    def work(rank):
        from datetime import timedelta

        from unfog.training import peers

        peers.PATIENCE = timedelta(seconds=1)
        ours = Peers()
        if rank:
            time.sleep(8)
            os._exit(0)
        with pytest.raises(UserError, match="process 1 of 2: another one is gone or stands still"):
            ours.share([nn.Parameter(torch.zeros(2))], torch.zeros(()))
        os._exit(3)

    assert together(2, work) == [3, 0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory in /proc")
def test_a_checkpoint_is_read_without_holding_it(tmp_path):
    """Of a file of 32 MB a process that looks at one tensor holds little: others of the same machine share the rest."""
    network = nn.ModuleDict({str(i): nn.Linear(1000, 1000) for i in range(4)})
    checkpoints = Checkpoints(tmp_path, network, [PowerEMA(network)], MuonAdamW(network))
    checkpoints.save(1)
    assert (tmp_path / "checkpoints" / "0000001.safetensors").stat().st_size > 30e6

    def own_memory():
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024

    before = own_memory()
    state = checkpoints._read(1)
    assert torch.equal(state["network.2.bias"], network["2"].bias)
    assert own_memory() - before < 8e6
    again = nn.ModuleDict({str(i): nn.Linear(1000, 1000) for i in range(4)})
    assert Checkpoints(tmp_path, again, [PowerEMA(again)], MuonAdamW(again)).load() == 1
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))
