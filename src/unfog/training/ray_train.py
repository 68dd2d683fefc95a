"""`unfog train ... --ray N`: the same run in N workers of Ray, which finds them places in a cluster and starts them again.

Ray is given the number of workers and nothing else to do: data, steps and checkpoints are those of `unfog train`, so that a run
may go on under torchrun or alone, and the other way round. --out must lie where every worker can reach it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from unfog.errors import UserError
from unfog.requests import TrainRequest, check

RESTARTS = 3  # of all workers after one is lost, each from the last checkpoint


def run_ray(request: TrainRequest, workers: int) -> Path:
    """Train in `workers` processes of Ray. -> the model folder. Raises UserError where Ray is missing or gives up."""
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise UserError('--ray: Ray is not installed; pip install "unfog[ray]"') from None
    from unfog.training.checkpoint import saved_steps

    if saved_steps(request.out) and not request.resume:
        raise UserError(f"{request.out}: already holds a run; add --resume to go on, or choose another --out")
    import torch

    gpu = torch.cuda.is_available()
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else max(workers, os.cpu_count() or 1),
                 include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)  # fmt: skip
    fields = request.model_dump(mode="json", exclude={"ray"}) | {"out": str(request.out.absolute()), "resume": True}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"request": fields, "folder": str(Path.cwd())},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=str(request.out.absolute() / "ray"),
                             failure_config=FailureConfig(max_failures=RESTARTS)),
    )  # fmt: skip
    done = threading.Event()
    threading.Thread(target=_watch, args=(request.out / "events.jsonl", done), daemon=True).start()
    try:
        trainer.fit()
    except Exception as error:  # Ray's own kinds of error hold a worker's traceback: its last line says what it was
        last = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"--ray: {last[-1].strip()[:300]}; put that right, and go on with --resume") from None
    finally:
        done.set()
        if ours:
            ray.shutdown()
    return request.out / "model"


def _watch(events: Path, done: threading.Event, seconds: float = 30.0) -> None:
    """The newest line of the run's own log now and then: Ray's output is that of all its parts in a muddle."""
    last = ""
    while not done.wait(seconds):
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        if lines and lines[-1] != last:
            last = lines[-1]
            print(last, file=sys.stderr, flush=True)


def _worker(config: dict[str, Any]) -> None:
    """What each worker does: what `unfog train` does, in the folder that it was called from."""
    from unfog.training.run import run_recipe

    os.chdir(config["folder"])  # Ray starts workers elsewhere; paths in a recipe are the caller's
    run_recipe(check(TrainRequest, config["request"]))
