"""torchrun as a user runs it: a process is killed, all start again from the last checkpoint, the end is the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unfog.training.checkpoint import only_run, saved_steps

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SETTINGS = {"size": 16, "width": 32, "depth": 2, "heads": 2, "registers": 1, "bottleneck": 16}
STEPS = 24


@pytest.fixture
def recipe(tmp_path, picture_folder):
    """A recipe file on 12 pictures, with a checkpoint before every step."""
    fields = {"name": "things", "data": str(picture_folder), "size": 16, "network": "dit", "settings": SETTINGS, "recolour": 0.0,
              "steps": STEPS, "batch": 4, "report_steps": STEPS, "checkpoint_minutes": 1e-9}  # fmt: skip
    path = tmp_path / "things.json"
    path.write_text(json.dumps(fields))
    return path


def environment():
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    return kept | {"OMP_NUM_THREADS": "1"}


def start(*words, log):
    return subprocess.Popen([*map(str, words)], env=environment(), stdout=log, stderr=log, start_new_session=True)


def rank_of(pid, parent):
    """The rank of a child process of `parent`; None for any other."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        values = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
        return int(values["RANK"]) if int(status[1]) == parent else None
    except (OSError, KeyError):
        return None


def workers(parent):
    found = {rank_of(p.name, parent): int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()}
    return {rank: pid for rank, pid in found.items() if rank is not None}


def until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def result(out):
    """sha256 of the last checkpoint and of the model that it became."""
    assert saved_steps(out)[0] == STEPS
    paths = [out / "checkpoints" / f"{STEPS:07d}.safetensors", out / "model" / "network.safetensors", out / "events.jsonl"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")]


def test_a_killed_process_is_started_again_by_torchrun(tmp_path, recipe):
    train = ["-m", "unfog", "train", recipe, "--resume", "--out"]
    with open(tmp_path / "log", "w+") as log:
        assert start(*TORCHRUN, "--standalone", "--nproc-per-node", 2, *train, tmp_path / "whole", log=log).wait(180) == 0
        out = tmp_path / "cut"
        run = start(*TORCHRUN, "--standalone", "--nproc-per-node", 2, "--max-restarts", 2, *train, out, log=log)
        for rank in (1, 0):  # a follower, then the leader, which holds the folder
            before = saved_steps(out)[:1] or [0]
            until(lambda before=before: (saved_steps(out)[:1] or [0])[0] > before[0] + 2)
            os.kill(workers(run.pid)[rank], signal.SIGKILL)
            until(lambda rank=rank: rank in workers(run.pid))
        assert run.wait(240) == 0
        log.seek(0)
        text = log.read()
    assert text.count("-9 (SIGKILL)") + text.count("exitcode: -9") >= 2
    assert result(out) == result(tmp_path / "whole")
    with only_run(out):
        pass


def test_fewer_processes_go_on(tmp_path, recipe):
    """Two are killed for good; one alone ends the run with the bits that two would have reached."""
    train = ["-m", "unfog", "train", recipe, "--resume", "--out"]
    with open(tmp_path / "log", "w+") as log:
        assert start(sys.executable, *train, tmp_path / "whole", log=log).wait(180) == 0
        out = tmp_path / "cut"
        run = start(*TORCHRUN, "--standalone", "--nproc-per-node", 2, *train, out, log=log)
        until(lambda: saved_steps(out)[:1] > [3])
        for pid in (*workers(run.pid).values(), run.pid):
            os.kill(pid, signal.SIGKILL)
        run.wait(60)
        assert start(*TORCHRUN, "--standalone", "--nproc-per-node", 1, *train, out, log=log).wait(180) == 0
    assert result(out) == result(tmp_path / "whole")
