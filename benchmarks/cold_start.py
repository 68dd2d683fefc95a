"""From the shell to the first picture on the disk, and to `--help`: wall seconds and peak memory of fresh processes.

python benchmarks/cold_start.py [--rounds 5]      writes benchmarks/results/cold_start.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak megabytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cold_start.json")
    arguments = parser.parse_args()
    unfog = str(Path(sys.executable).with_name("unfog"))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "unfog --help": [unfog, "--help"],
            "unfog generate (1 picture)": [unfog, "generate", "a red apple", "--seed", "7", "--out", folder],
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for name in commands:
            run(commands[name])  # warm disk
        for _ in range(arguments.rounds):
            for name in commands:
                measured[name].append(run(commands[name]))
    for name, values in measured.items():
        rows[name] = {
            "seconds_median": round(statistics.median(s for s, _ in values), 3),
            "peak_mb": round(statistics.median(m for _, m in values)),
            "seconds": [round(s, 3) for s, _ in values],
        }
        print(name, json.dumps(rows[name]))
    limits = {"cores": os.cpu_count(), "page_size": resource.getpagesize()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": limits, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
