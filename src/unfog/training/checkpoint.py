"""The state of a run on the disk: whole or absent, compared with its sha256 before a weight is used, the newest two kept.

OUT/checkpoints/0000864.safetensors     network, average, optimiser (of process 1: 0000864.1.safetensors)
OUT/checkpoints/0000864.json            step, and the sha256 of each; written last, so that nothing half-written counts
OUT/lock                                held by the process that trains there; the system frees it when the process dies
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.files import sha256, write_atomic
from unfog.training.ema import PowerEMA
from unfog.training.optimisers import MuonAdamW
from unfog.training.parallel import gathered, put
from unfog.training.peers import Peers

FOLDER = "checkpoints"
KEPT = 2


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold OUT for this process. UserError where another one trains there, or nothing can be written."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{out}: another process is training there; wait for it, stop it, or choose another --out") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def saved_steps(out: Path) -> list[int]:
    """Steps of the checkpoints that were finished, newest first; whether they are whole is found when one is read."""
    return sorted((int(p.stem) for p in (out / FOLDER).glob("*.json") if p.stem.isdecimal()), reverse=True)


class Checkpoints:
    """Saves and loads the whole state of one process of a run. Processes whose weights differ have a file each."""

    def __init__(
        self,
        out: Path,
        network: nn.Module,
        averages: Sequence[PowerEMA],
        optimiser: MuonAdamW,
        peers: Peers | None = None,
        loop: Mapping[str, Tensor] | None = None,
        extra: nn.Module | None = None,
    ) -> None:
        """averages: the first is the run's own. loop: whatever else the loop must remember, written to in place by `load`."""
        self.out, self.folder, self.loop = out, out / FOLDER, loop or {}
        self.network, self.optimiser, self.peers = network, optimiser, peers or Peers()
        others = {f"ema-{average.sigma_rel:g}": average.network for average in averages[1:]}
        self.modules = {"network": network, "ema": averages[0].network, **others} | ({"extra": extra} if extra else {})
        self.sums: dict[str, float] = {}  # of the checkpoint that was loaded

    def _part(self, step: int, rank: int) -> Path:
        return self.folder / (f"{step:07d}.safetensors" if rank == 0 else f"{step:07d}.{rank}.safetensors")

    def save(self, step: int, sums: Mapping[str, float] | None = None) -> None:
        """Every process calls it after the same step; `sums` is what telemetry goes on with from there. Raises UserError where
        the disk does not take it; the last one stays."""
        try:
            with self.peers.together():
                state = self._state()
            if self.peers.leads or not self.peers.alike:
                write_atomic(self._part(step, self.peers.rank), save(state))
            del state
            self.peers.wait()
            if self.peers.leads:
                parts = [self._part(step, rank) for rank in range(1 if self.peers.alike else self.peers.count)]
                digests = {part.name: sha256(part.read_bytes()) for part in parts}
                text = json.dumps({"step": step, "sha256": digests, "sums": dict(sums or {})}, indent=1) + "\n"
                write_atomic(self.folder / f"{step:07d}.json", text.encode())
                self._forget()
        except OSError as error:
            kept = saved_steps(self.out)
            left = f"that of step {kept[0]} stays" if kept else "there is none yet"
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({error.strerror or error}); {left}; "
                "make room and go on with --resume"
            ) from None

    def _forget(self) -> None:
        for step in saved_steps(self.out)[KEPT:]:
            (self.folder / f"{step:07d}.json").unlink()  # first: what it named does not count from here on
        known = {f"{step:07d}" for step in saved_steps(self.out)}
        for path in self.folder.iterdir():  # what is not ours stays
            stem = path.name.lstrip(".").split(".")[0]
            if stem.isdecimal() and (stem not in known or path.name.startswith(".")):
                path.unlink()

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for prefix, module in self.modules.items():
            state |= {f"{prefix}.{k}": v for k, v in module.state_dict().items()}
        state |= {f"loop.{k}": v for k, v in self.loop.items()}
        for index, p in enumerate(p for g in self.optimiser.param_groups for p in g["params"]):
            state |= {f"optimiser.{index}.{k}": v for k, v in self.optimiser.state.get(p, {}).items()}
        return gathered(state, keep=self.peers.leads or not self.peers.alike)

    def load(self) -> int:
        """Take the newest whole checkpoint, saying so of each that is not. -> its step; 0 where none was ever saved.

        Raises UserError where all are damaged, or where it is another network's.
        """
        steps = saved_steps(self.out)
        for step in steps:
            try:
                state = self._read(step)
            except (OSError, ValueError, KeyError, TypeError) as error:
                where = self.folder / f"{step:07d}.json"
                print(f"unfog: {where}: damaged ({str(error)[:80]}); trying the one before", file=sys.stderr)
                continue
            self._take(state, step)
            return step
        if steps:
            raise UserError(f"{self.folder}: no checkpoint there is whole; start without --resume, in another --out")
        return 0

    def _read(self, step: int) -> dict[str, Tensor]:
        about = json.loads((self.folder / f"{step:07d}.json").read_bytes())
        digests, self.sums = about["sha256"], about.get("sums", {})
        for name, digest in digests.items():  # all: processes must agree on the step
            with open(self.folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"sha256 of {name} differs")
        own = self._part(step, self.peers.rank).name  # a process that the run did not have before begins as process 0
        return load_file(self.folder / (own if own in digests else self._part(step, 0).name))  # mapped: read where it is used

    def _take(self, state: dict[str, Tensor], step: int) -> None:
        for prefix, module in self.modules.items():
            own, there = module.state_dict(), prefix
            if prefix.startswith("ema-") and not any(k.startswith(f"{prefix}.") for k in state):
                there = "ema"  # a run that did not keep this one so far
            found = {k.removeprefix(f"{there}."): v for k, v in state.items() if k.startswith(f"{there}.")}
            if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in found.items()}:
                raise UserError(f"{self._part(step, 0)}: made with another network; give the recipe it was made with")
            for key, value in own.items():
                put(value, found[key])
        for key, value in self.loop.items():
            if f"loop.{key}" in state:
                value.copy_(state[f"loop.{key}"])
        parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        for key, value in state.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                p = parameters[int(index)]
                state_of_p = torch.zeros_like(p) if value.shape == p.shape else torch.zeros_like(value, device=p.device)
                put(state_of_p, value)
                self.optimiser.state[p][name] = state_of_p


def cut_events(path: Path, step: int, done: bool = False) -> None:
    """Drop what a lost part of the run wrote: lines of later steps, and a last line that was not finished.

    Lines that only an end wrote ("end") stay where the run is `done`; else a run without that end would not have them.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            read = json.loads(line)
            if read["step"] <= step and (done or not read.get("end")):
                kept.append(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    data = b"".join(line + b"\n" for line in kept)
    if data != path.read_bytes():
        write_atomic(path, data)
