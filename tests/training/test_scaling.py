"""The model behind docs/cluster.md, against what can be measured on two processes: what is held, kept and sent."""

import importlib.util
import multiprocessing
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # these two here: seconds in every forked process
import torch.distributed as dist
import torch.distributed.fsdp
import torch.nn.functional as F
from torch import nn

from unfog.networks import NETWORKS
from unfog.training.ema import PowerEMA
from unfog.training.optimisers import MuonAdamW
from unfog.training.parallel import local, parallelise
from unfog.training.peers import Peers
from unfog.training.recipe import LoopSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
SIDE, PATCH = 16, 2  # 64 tokens


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tools_docs_scaling", ROOT / "tools" / "docs" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def dit(width, depth, device="cpu"):
    with torch.device(device):
        return NETWORKS["dit"](size=SIDE, patch=PATCH, width=width, depth=depth, heads=max(width // 64, 2), registers=0,
                               bottleneck=32, text_dim=0)  # fmt: skip


def test_tables_are_what_the_tool_writes(tool, tmp_path, capsys):
    text = PAGE.read_text(encoding="utf-8")
    assert tool.rewritten(text) == text, "run: python tools/docs/scaling.py"
    stale = tmp_path / "page.md"
    stale.write_text(text.replace("| 10 B | 8 |", "| 10 B | 9 |"), encoding="utf-8")
    assert tool.main(["--check", "--page", str(stale)]) == 1 and "stale" in capsys.readouterr().err
    assert tool.main(["--page", str(stale)]) == 0 and stale.read_text(encoding="utf-8") == text


def test_the_shell_examples_of_the_page_are_shell():
    blocks = [part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```bash\n")[1:]]
    assert len(blocks) >= 5 and sum("#SBATCH" in block for block in blocks) >= 2
    for block in blocks:
        found = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert found.returncode == 0 and not found.stderr, (block, found.stderr)


@pytest.mark.parametrize("name", ["0.1 B", "0.3 B", "1 B", "3 B", "10 B"])
def test_sizes_are_those_of_the_network(tool, name):
    network = tool.NETWORKS[name]
    real = sum(p.numel() for p in dit(network.width, network.depth, "meta").parameters())
    assert abs(network.weights / real - 1) < 0.03
    assert abs(network.weights / (float(name.split()[0]) * 1e9) - 1) < 0.05


def kept(width, depth, items, again):
    """Bytes that a forward pass keeps beside the weights, in bfloat16 with fused attention, as on a GPU."""
    network = parallelise(dit(width, depth), LoopSettings(checkpoint_activations=again), Peers())
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(items, 4, SIDE, SIDE), torch.zeros(items))
    return sum(size for size, _ in seen.values())


def test_kept_activations(tool, monkeypatch):
    module = importlib.import_module("unfog.networks.dit")
    monkeypatch.setattr(module, "attend", lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    tokens = 4 * (SIDE // PATCH) ** 2
    for again, constant in ((False, tool.KEPT), (True, tool.KEPT_AGAIN)):
        measured = (kept(128, 6, 4, again) - kept(128, 2, 4, again)) / 4 / tokens / 128
        assert abs(measured / constant - 1) < 0.12, (again, measured)


def held(rank, settings):
    """Bytes of weights, gradients, optimiser state and average that this process holds after a step."""
    peers = Peers()
    torch.manual_seed(0)
    network = dit(128, 4)
    parallelise(network, settings, peers)
    optimiser, ema = MuonAdamW(network), PowerEMA(network)
    network(torch.randn(2, 4, SIDE, SIDE), torch.zeros(2)).square().sum().backward()
    peers.share(list(network.parameters()), torch.zeros(()))
    optimiser.step()
    tensors = [*network.parameters(), *(p.grad for p in network.parameters()), *ema.network.parameters()]
    tensors += [v for state in optimiser.state.values() for v in state.values()]
    return sum(local(t).numel() * local(t).element_size() for t in tensors)


def together(count, work):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def peer(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        answers.put(work(rank))

    processes = [context.Process(target=peer, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count
    return [answers.get() for _ in range(count)]


@pytest.mark.parametrize(("layout", "count"), [("replicate", 1), ("replicate", 2), ("shard", 2)])
def test_what_a_process_holds(tool, layout, count):
    found = together(count, lambda rank: held(rank, LoopSettings(parallel=layout, accumulate=1)))
    own = tool.Network(128, 4)
    stated = tool.state(own, 1 / count if layout == "shard" else 1.0)
    for bytes_held in found:
        assert abs(bytes_held / stated - 1) < 0.1


def sent_bytes():
    """Bytes that went through this machine's own network so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="counts bytes in /proc")
@pytest.mark.parametrize("count", [2, 3])
def test_bytes_of_an_exchange(tool, count):
    numbers = 4_000_000

    def work(rank):
        peers = Peers()
        parameter = nn.Parameter(torch.zeros(numbers))
        peers.share([parameter], torch.zeros(()))
        dist.barrier()
        found = []
        for _ in range(8):
            before = sent_bytes()
            dist.barrier()
            peers.share([parameter], torch.zeros(()))
            dist.barrier()
            time.sleep(0.05)
            found.append(sent_bytes() - before)
            dist.barrier()
        return min(found)  # whatever else goes through this machine's network only adds

    measured = min(together(count, work)) / count  # of each process
    assert 0.98 < measured / tool.ring(4 * numbers, count) < 1.1, measured


def test_the_model_says_what_must_hold(tool):
    hardware = tool.Hardware()
    for network in tool.NETWORKS.values():
        one = tool.replicate(network, 1, False, hardware)
        assert one == tool.shard(network, 1, False, hardware) and one.sent == 0
        for again in (False, True):
            shards = [tool.shard(network, count, again, hardware) for count in tool.COUNTS]
            assert [s.memory for s in shards] == sorted((s.memory for s in shards), reverse=True)
            assert all(tool.replicate(network, 8, again, hardware).sent < s.sent for s in shards[1:])
        assert tool.activations(network, True) < tool.activations(network, False) / 2
