"""The tables of docs/cluster.md: memory, bytes and time of a training step on 1 to 1,024 GPUs, from a model stated here.

python tools/docs/scaling.py            write them into the page, between their markers
python tools/docs/scaling.py --check    exit with 1 if the page holds other ones

Nothing here was run on more than two processes: tests/training/test_scaling.py compares what can be (numbers that a process
holds, bytes of an exchange, bytes of kept activations), and the rest is arithmetic on the assumptions in `Hardware`.
Sources: Rajbhandari et al. 2020, arXiv:1910.02054, sec. 3 and 7 (bytes of sharding); Korthikanti et al. 2022, arXiv:2205.05198
(activations, tensor parallelism); Patarasuk & Yuan 2009 (ring all-reduce); Ren et al. 2021, arXiv:2101.06840 (offloading).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
FLOAT, HALF = 4, 2  # bytes
KEPT = 92  # bytes kept for the backward pass, for each token, block and unit of width: measured in bfloat16, fused attention
KEPT_AGAIN = 5  # the same with `checkpoint_activations`: a block's input, and that of its long skip
PARALLEL = 8  # GPUs over which tensor parallelism cuts a layer: those of one machine
ADAM_SHARE = 0.02  # of the weights, which have two moments; Muon's have one


@dataclass(frozen=True)
class Hardware:
    """One GPU and its links, in bytes and seconds; all of it assumed."""

    memory: float = 80e9
    flops: float = 400e12  # reached, of 989e12 promised for bfloat16
    near: float = 450e9  # to GPUs of the same machine, of which there are eight
    far: float = 50e9  # to other machines: 400 Gbit/s a GPU
    host: float = 25e9  # to the machine's own memory

    def link(self, count: int) -> float:
        return self.near if count <= 8 else self.far


@dataclass(frozen=True)
class Network:
    """A DiT by its width and depth: 12.5 · depth · width² weights, and what stands around the blocks."""

    width: int
    depth: int

    @property
    def block(self) -> float:
        """Weights of a block: attention 4, feed-forward 8, half a long skip, all times width²."""
        return 12.5 * self.width**2

    @property
    def weights(self) -> float:
        return self.block * self.depth + 10 * self.width**2  # modulation 6, head 2, conditioning 2


NETWORKS = {"0.1 B": Network(768, 13), "0.3 B": Network(1024, 23), "1 B": Network(1792, 24), "3 B": Network(2560, 36),
            "10 B": Network(4096, 47)}  # fmt: skip
COUNTS = (1, 8, 64, 256, 1024)
ITEMS, TOKENS = 8, 1024  # of each GPU at each step: pictures, and tokens of one


@dataclass(frozen=True)
class Step:
    """One GPU at one step: bytes held at most, bytes sent, seconds."""

    memory: float
    sent: float
    seconds: float


def state(network: Network, share: float = 1.0) -> float:
    """Bytes of weights, gradients, optimiser state and average, of which a process holds `share`."""
    return network.weights * (3 + 1 + ADAM_SHARE) * FLOAT * share


def activations(network: Network, again: bool, tokens: int = ITEMS * TOKENS) -> float:
    """Bytes kept for the backward pass; with `again` blocks work twice, one after the other."""
    each = network.width * tokens
    return each * (KEPT_AGAIN * network.depth + KEPT if again else KEPT * network.depth)


def ring(size: float, count: int) -> float:
    """Bytes that each of `count` sends so that all have the sum of `size` bytes. Half of it gathers, or scatters a sum."""
    return 2 * size * (count - 1) / count


def work(network: Network, again: bool, hardware: Hardware) -> float:
    """Seconds of arithmetic: 2 operations for a weight and token forwards, 4 backwards, 2 once more with `again`."""
    return (8 if again else 6) * network.weights * ITEMS * TOKENS / hardware.flops


def muon(network: Network, hardware: Hardware) -> float:
    """Seconds to make all hidden matrices orthogonal once: five times 4·R²C + 2·R³ for R rows and C columns, R the less."""
    shapes = ((1, 3), (1, 1), (1, 16 / 3), (1, 8 / 3))  # queries, keys and values; output; feed-forward in, out; in widths
    each = sum(4 * r * r * c + 2 * r**3 for r, c in shapes) + 6 / 2  # half a long skip
    return 5 * each * network.width**3 * network.depth / hardware.flops


def replicate(network: Network, count: int, again: bool, hardware: Hardware) -> Step:
    """All in every process; the gradients' flat copy is summed after the backward pass, while nothing else happens."""
    size = network.weights * FLOAT
    halves = network.weights * HALF  # autocast keeps the weights in bfloat16 for the length of a pass
    memory = state(network) + max(activations(network, again) + halves, size if count > 1 else 0)
    sent = ring(size, count)
    return Step(memory, sent, work(network, again, hardware) + muon(network, hardware) + sent / hardware.link(count))


def shard(network: Network, count: int, again: bool, hardware: Hardware) -> Step:
    """1/N in every process; weights are gathered twice and gradients scattered once, while other blocks work."""
    if count == 1:
        return replicate(network, count, again, hardware)
    gathered = 3 * network.block * FLOAT + network.block * HALF  # one at work, one on its way, one block's gradients
    apart = 4 * network.weights / count * FLOAT  # Muon's updates, as sent, as gathered, and the directions
    memory = state(network, 1 / count) + max(activations(network, again) + gathered, apart)
    passes = 3 * ring(network.weights * FLOAT, count) / 2
    meeting = 2 * network.weights / count * FLOAT  # each matrix to the one that makes it orthogonal, and back
    time = max(work(network, again, hardware), passes / hardware.link(count)) + meeting / hardware.link(count)
    time += muon(network, hardware) / count
    return Step(memory, passes + meeting, time)


def tensor(network: Network, count: int, again: bool, hardware: Hardware) -> Step:
    """Each layer over eight GPUs of a machine, machines replicated. Not built here. Four sums a block (six with `again`)."""
    inside = min(count, PARALLEL)
    own = network.weights / inside * FLOAT
    memory = state(network, 1 / inside) + max(activations(network, again), own if count > inside else 0)
    halves = ITEMS * inside * TOKENS * network.width * HALF  # of all items that the machine works on together
    sums = (6 if again else 4) * network.depth * ring(halves, inside)
    across = ring(own, count // inside)
    time = work(network, again, hardware) + muon(network, hardware) / inside + sums / hardware.near + across / hardware.far
    return Step(memory, sums + across, time)


def offload(network: Network, count: int, again: bool, hardware: Hardware) -> Step:
    """Optimiser state and average in the machine's own memory, which changes the weights. Not built here.

    The machine's own processor is taken to cost no time, only the link to it, which favours offloading.
    """
    size = network.weights * FLOAT
    memory = size + size + activations(network, again) + network.weights * HALF
    sent = ring(size, count)
    time = work(network, again, hardware) + sent / hardware.link(count) + 2 * size / hardware.host
    return Step(memory, sent + 2 * size, time)


LAYOUTS = {"replicate": replicate, "shard": shard, "tensor": tensor, "offload": offload}


def settled(layout: str, network: Network, count: int, hardware: Hardware) -> tuple[Step, bool]:
    """The step with activations kept where that fits, else with blocks that work twice. -> the step, whether the latter."""
    step = LAYOUTS[layout](network, count, False, hardware)
    return (step, False) if step.memory <= hardware.memory else (LAYOUTS[layout](network, count, True, hardware), True)


def table(hardware: Hardware) -> str:
    """A row for each network and number of GPUs: gigabytes held and sent, seconds of each layout; the fastest that fits."""
    lines = ["| weights | GPUs | " + " | ".join(f"{name}: GB, sent, s" for name in LAYOUTS) + " | fastest |",
             "|---|---|" + "---|" * (len(LAYOUTS) + 1)]  # fmt: skip
    for name, network in NETWORKS.items():
        for count in COUNTS:
            cells, times = [], {}
            for layout in LAYOUTS:
                step, again = settled(layout, network, count, hardware)
                fits = step.memory <= hardware.memory
                mark = "²" if again and fits else ""
                cells.append(f"{step.memory / 1e9:.1f}{mark}, {step.sent / 1e9:.2f}, {step.seconds:.3f}" if fits
                             else f"**{step.memory / 1e9:.0f}**")  # fmt: skip
                if fits:
                    times[layout] = step.seconds
            least = min(times.values(), default=0.0)
            best = next((layout for layout, time in times.items() if time <= 1.01 * least), "none")  # the simplest of equals
            lines.append(f"| {name} | {count:,} | " + " | ".join(cells) + f" | {best} |")
    return "\n".join(lines)


def begins(hardware: Hardware) -> str:
    """From which size of a network on a layout is needed, or fastest, at each number of GPUs."""
    lines = ["| GPUs | largest network that fits: " + " | ".join(LAYOUTS) + " |", "|---|" + "---|" * len(LAYOUTS)]
    for count in COUNTS:
        cells = []
        for layout in LAYOUTS:
            fitting = [d for d in range(1, 401) if settled(layout, _sized(d), count, hardware)[0].memory <= hardware.memory]
            cells.append(f"{_sized(fitting[-1]).weights / 1e9:.1f} B" if fitting else "none")
        lines.append(f"| {count:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sized(depth: int) -> Network:
    """A network 80 times as wide as it is deep, about as those of the table are."""
    return Network(80 * depth, depth)


PARTS = {"table": table, "fits": begins}


def rewritten(page: str) -> str:
    """The page with its tables made anew. Raises ValueError where a marker is missing."""
    for name, make in PARTS.items():
        begin, end = f"<!-- scaling {name}: begin -->", f"<!-- scaling {name}: end -->"
        if begin not in page or end not in page:
            raise ValueError(f"the page has no {begin} ... {end}")
        head, rest = page.split(begin, 1)
        page = f"{head}{begin}\n{make(Hardware())}\n{end}{rest.split(end, 1)[1]}"
    return page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(argv)
    text = given.page.read_text(encoding="utf-8")
    new = rewritten(text)
    if given.check:
        if new != text:
            print(f"{given.page}: stale; run python tools/docs/scaling.py", file=sys.stderr)
        return int(new != text)
    given.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
