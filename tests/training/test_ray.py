"""`unfog train --ray N`: the bytes that one process makes, in workers of Ray, also where one of them is killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unfog.errors import UserError
from unfog.requests import TrainRequest
from unfog.training import run_recipe
from unfog.training.checkpoint import saved_steps

SETTINGS = {"size": 16, "width": 32, "depth": 2, "heads": 2, "registers": 1, "bottleneck": 16}


def test_without_ray_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'Ray is not installed; pip install "unfog\[ray\]"'):
        run_recipe(TrainRequest(source=tmp_path, out=tmp_path / "out", ray=2))
    assert not (tmp_path / "out").exists()


def killed_once(out, run):
    """Kill one of the processes that train into `out`, once there is a checkpoint to go on from."""
    deadline = time.monotonic() + 200
    while saved_steps(out)[:1] < [3]:
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_text()
                environ = (entry / "environ").read_text()
            except OSError:
                continue
            if title.startswith("ray::RayTrainWorker") and f"MARK={out}\0" in environ:
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise AssertionError("no worker was found")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_workers_of_ray_make_what_one_process_makes(tmp_path, picture_folder, kill):
    pytest.importorskip("ray")
    fields = {"name": "things", "data": str(picture_folder), "size": 16, "network": "dit", "settings": SETTINGS, "recolour": 0.0,
              "steps": 30, "batch": 4, "report_steps": 30, "checkpoint_minutes": 1e-9}  # fmt: skip
    source = tmp_path / "things.json"
    source.write_text(json.dumps(fields))

    def train(out, *words):
        environ = os.environ | {"MARK": str(out), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "unfog", "train", str(source), "--out", str(out), *words], env=environ,
                                stderr=subprocess.PIPE, text=True)  # fmt: skip

    alone, run = train(tmp_path / "one"), train(tmp_path / "two", "--ray", "2")
    if kill:
        killed_once(tmp_path / "two", run)
    said = [process.communicate(timeout=600)[1] for process in (alone, run)]
    assert [alone.returncode, run.returncode] == [0, 0], said
    names = ["checkpoints/0000030.safetensors", "events.jsonl", "model/model.json", "model/network.safetensors"]
    one, two = ([hashlib.sha256((tmp_path / out / name).read_bytes()).hexdigest() for name in names] for out in ("one", "two"))
    assert one == two
