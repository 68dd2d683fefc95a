"""The figures of `unfog.evaluation` against their peers on the same features, how often their intervals hold the truth, and
what an evaluation of 5,000 pictures costs.

    python benchmarks/evaluation.py [--repeats 200] [--only peers,intervals,alarms,cost] [--out FILE]

Peers: torch-fidelity (whose metric functions are imported without torchvision, which they do not use), prdc, scipy:
`pip install scipy scikit-learn prdc` and `pip install --no-deps torch-fidelity`.
`intervals` draws fresh sets from known distributions again and again; the truth is exact for Gaussians and from large
samples elsewhere. `alarms` compares two models that are alike with `differ`. `cost` measures processor time and peak memory
in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

from unfog import __version__
from unfog.evaluation import coverage, distances
from unfog.evaluation.estimates import ESTIMATES, estimates, mind_estimate, prdc_estimates
from unfog.evaluation.statistics import differ

OUT = Path(__file__).parent / "results" / "evaluation.json"
PARTS = ("peers", "intervals", "alarms", "cost")
# dimensions, real samples, made samples, pair of distributions, shape of the noise
CASES = [
    (2, 100, 100, "far", "t6"),
    (2, 1000, 500, "near", "gauss"),
    (8, 32, 32, "near", "gauss"),
    (8, 240, 200, "far", "scale"),
    (16, 500, 300, "equal", "gauss"),
    (32, 96, 96, "near", "exp"),
    (64, 128, 128, "equal", "gauss"),
    (64, 128, 128, "far", "scale"),
    (64, 512, 512, "far", "gauss"),
    (128, 600, 400, "power", "gauss"),
]
FIGURES = ("frechet", "kernel", "mind", "diversity", "precision", "recall", "density", "coverage")
PROJECTIONS = 50  # of MIND in the repeated trials; the interval allows for their number


def pair(dim: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors of two covariances, and the distance between the means."""
    draw = np.random.default_rng(0)
    if kind == "equal":
        return np.eye(dim), np.eye(dim), np.zeros(dim)
    if kind == "power":
        turn = np.linalg.qr(draw.normal(size=(dim, dim)))[0]
        rank = np.arange(1, dim + 1)
        return np.diag(rank**-0.75), turn * rank**-0.5, draw.normal(size=dim) * 0.1
    a, b = (q @ q.T / (2 * dim) for q in draw.normal(size=(2, dim, 2 * dim)))
    if kind == "near":
        return np.linalg.cholesky(a), np.linalg.cholesky(1.1 * a), np.full(dim, 0.05)
    return np.linalg.cholesky(a), np.linalg.cholesky(1.5 * b), np.full(dim, 0.3)


def noise(draw: np.random.Generator, kind: str, n: int, dim: int) -> np.ndarray:
    """Zero mean, unit variance: Gaussian, exponential, Student's t with 6 degrees, or Gaussian of a random scale."""
    if kind == "exp":
        return draw.exponential(size=(n, dim)) - 1
    if kind == "t6":
        return draw.standard_t(6, size=(n, dim)) / 1.5**0.5
    x = draw.normal(size=(n, dim))
    return x * np.exp(0.5 * draw.normal(size=(n, 1)) - 0.25) if kind == "scale" else x


def drawn(case: tuple[int, int, int, str, str], seed: list[int], sizes: tuple[int, int] | None = None) -> list[np.ndarray]:
    dim, n, m, kind, shape = case
    f, g, step = pair(dim, kind)
    draw = np.random.default_rng(seed)
    n, m = sizes or (n, m)
    return [noise(draw, shape, n, dim) @ f.T, noise(draw, shape, m, dim) @ g.T + step]


def truth(case: tuple[int, int, int, str, str]) -> dict[str, float]:
    """What each figure is for infinitely many samples; precision to coverage are not in it (they have no such value)."""
    dim, _, _, kind, shape = case
    f, g, step = pair(dim, kind)
    a, b = f @ f.T, g @ g.T
    shared = np.linalg.svd(f.T @ g, compute_uv=False).sum()
    found = {"frechet": float(step @ step + np.trace(a) + np.trace(b) - 2 * shared)}
    if kind == "equal":
        return found | {"kernel": 0.0, "mind": 0.0, "diversity": 1.0}
    if shape == "gauss":
        u = np.random.default_rng(5).normal(size=(200_000, dim))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        gaps = (u @ step) ** 2 + (np.linalg.norm(u @ f, axis=1) - np.linalg.norm(u @ g, axis=1)) ** 2
        found["mind"] = float(3 * dim * gaps.mean())
        zero = np.zeros(dim)
        found["kernel"] = cubic(zero, a, zero, a) + cubic(step, b, step, b) - 2 * cubic(zero, a, step, b)
        z = np.random.default_rng(6).normal(size=(200_000, dim))
        found["diversity"] = float(np.linalg.norm(z @ g.T, axis=1).mean() / np.linalg.norm(z @ f.T, axis=1).mean())
        return found
    large = [drawn(case, [10**6, i], (4000, 4000)) for i in range(8)]
    found["kernel"] = float(np.mean([distances.kernel_distance(x, y) for x, y in large]))
    found["diversity"] = float(np.mean([coverage.diversity(y) / coverage.diversity(x) for x, y in large]))
    found["mind"] = float(np.mean([mind_estimate(x, y, projections=200).corrected for x, y in large]))
    return found


def cubic(a: np.ndarray, cov_a: np.ndarray, b: np.ndarray, cov_b: np.ndarray) -> float:
    """E (x·y / D + 1)³ of independent Gaussian x, y, from the moments of x·y."""
    one = float(a @ b)
    spread, along_a, along_b = float((cov_a * cov_b).sum()), float(a @ cov_b @ a), float(b @ cov_a @ b)
    two = one**2 + spread + along_a + along_b
    three = one**3 + 3 * one * (along_a + along_b + spread) + 6 * float(a @ cov_b @ cov_a @ b)
    d = len(a)
    return three / d**3 + 3 * two / d**2 + 3 * one / d + 1


def intervals(repeats: int) -> list[dict[str, Any]]:
    """How often each interval holds the truth over `repeats` fresh draws."""
    rows = []
    for case in CASES:
        start = time.perf_counter()
        exact = truth(case)
        found: dict[str, list[Any]] = {}
        for r in range(repeats):
            x, y = drawn(case, [r])
            figures = {name: ESTIMATES[name](x, y) for name in ("frechet", "kernel", "diversity")}
            figures["mind"] = mind_estimate(x, y, projections=PROJECTIONS, seed=r)
            for name, one in (figures | prdc_estimates(x, y)).items():
                found.setdefault(name, []).append(one)
        for name in FIGURES:
            ones = found[name]
            true = exact.get(name, float(np.mean([one.value for one in ones])))
            row = {
                "figure": name,
                "dim": case[0],
                "n": case[1],
                "m": case[2],
                "pair": case[3],
                "noise": case[4],
                "truth": true,
                "of": "infinitely many samples" if name in exact else "the mean at this size",
                "plain": float(np.mean([one.value for one in ones])),
                "corrected": float(np.mean([one.corrected for one in ones])),
                "spread": float(np.std([one.corrected for one in ones])),
                "half_width": float(np.mean([one.high - one.low for one in ones]) / 2),
                "covered": float(np.mean([one.low <= true <= one.high for one in ones])),
                "plain_below": float(np.mean([one.value < true for one in ones])),
                "repeats": repeats,
            }
            rows.append(row)
            words = "truth {truth:8.4f} plain {plain:8.4f} corrected {corrected:8.4f} ± {half_width:.4f} covered {covered:.3f}"
            print("{figure:9} D={dim:3} n={n}/{m} {pair:5} {noise:5} ".format(**row) + words.format(**row), flush=True)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def alarms(repeats: int) -> list[dict[str, Any]]:
    """How often `differ` sees a difference between two models that are alike, and between two that are not."""
    rows = []
    for case in (CASES[3], CASES[4], CASES[8]):
        for alike, count in ((True, repeats), (False, repeats // 4)):
            seen: dict[str, list[bool]] = {}
            for r in range(count):
                x, y = drawn(case, [r, 1])
                z = drawn(case, [r, 2])[1] * (1 if alike else 1.2)
                pairs = [estimates(x, made, which=("frechet", "kernel", "diversity", "prdc")) for made in (y, z)]
                for made, found in zip((y, z), pairs, strict=True):
                    found["mind"] = mind_estimate(x, made, projections=PROJECTIONS)
                for name in FIGURES:
                    seen.setdefault(name, []).append(differ(pairs[0][name], pairs[1][name]).real)
            rates = {name: float(np.mean(ones)) for name, ones in seen.items()}
            rows.append(
                {"dim": case[0], "n": case[1], "m": case[2], "pair": case[3], "noise": case[4], "repeats": count}
                | {"models": "alike" if alike else "the second one's samples 1.2 times as large", "called_different": rates}
            )
            print(case, "alike" if alike else "unlike", {k: round(v, 3) for k, v in rates.items()}, flush=True)
    return rows


def peers() -> list[dict[str, Any]]:
    """Ours and theirs on the same features."""
    import prdc
    import torch
    from scipy.linalg import sqrtm

    sys.modules["torchvision"] = sys.modules.get("torchvision") or types.ModuleType("torchvision")
    for name in ("torchvision.transforms", "torchvision.datasets", "torchvision.models", "torchvision.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    with contextlib.redirect_stdout(io.StringIO()):
        fid, kid, prc = fidelity()
    sets = {f"{d} dimensions, {n} and {m} samples": drawn((d, n, m, "far", "scale"), [1]) for d, n, m in SETS}
    real = lite0_sets()
    sets |= real
    rows = []
    for where, (x, y) in sets.items():
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        theirs = [fid.fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)]
        enough = min(len(x), len(y)) > x.shape[1]
        ours = distances.frechet(distances.Moments.of(x), distances.Moments.of(y), force=True)
        options = {"verbose": False, "save_cpu_ram": True}
        size = min(1000, len(x), len(y))
        p, r = prc.calculate_precision_recall_part(torch.from_numpy(y), torch.from_numpy(x), 5, 1000)
        with contextlib.redirect_stdout(io.StringIO()):
            naver = prdc.compute_prdc(x, y, 5)
        found = coverage.prdc(x, y, 5)
        kernels = kid.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), kid_subsets=10, kid_subset_size=size,
                                             rng_seed=2020, kid_kernel="poly", kid_kernel_poly_degree=3,
                                             kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, **options)  # fmt: skip
        mean, spread = distances.kernel_blocks(x, y, subsets=10, size=size)
        pairs = {
            "frechet, torch-fidelity": (
                ours,
                fid.fid_statistics_to_metric(theirs[0], theirs[1], False)["frechet_inception_distance"],
            ),
            "kernel mean, torch-fidelity": (mean, kernels["kernel_inception_distance_mean"]),
            "kernel spread, torch-fidelity": (spread, kernels["kernel_inception_distance_std"]),
            "precision, torch-fidelity": (found.precision, p),
            "recall, torch-fidelity": (found.recall, r),
            **{f"{name}, prdc": (getattr(found, name), float(naver[name])) for name in naver},
        }
        if enough and x.shape[1] <= 512:
            cov = [np.cov(z.T) for z in (x, y)]
            step = x.mean(0) - y.mean(0)
            root = np.trace(sqrtm(cov[0] @ cov[1])).real
            pairs["frechet, scipy.linalg.sqrtm"] = (ours, float(step @ step + np.trace(cov[0]) + np.trace(cov[1]) - 2 * root))
        for name, (own, other) in pairs.items():
            error = abs(own - other) / max(abs(other), 1e-12)
            rows.append({"features": where, "figure": name, "ours": own, "theirs": other, "relative_error": error})
            print(f"{where:45} {name:32} {own:.9g} {other:.9g} {error:.1e}", flush=True)
    return rows


SETS = [(16, 400, 300), (64, 1000, 1000), (256, 1500, 1200), (64, 60, 50)]


def fidelity() -> tuple[Any, Any, Any]:
    """torch-fidelity's modules of metrics, without the package's own list of imports."""
    import importlib.util

    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    bare = types.ModuleType("torch_fidelity")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["torch_fidelity"] = bare
    utils = types.ModuleType("torch_fidelity.utils")
    for name in ("create_feature_extractor", "extract_featuresdict_from_input_id_cached", "resolve_feature_extractor",
                 "resolve_feature_layer_for_metric", "get_cacheable_input_name",
                 "cache_lookup_one_recompute_on_miss"):  # fmt: skip
        setattr(utils, name, None)
    sys.modules["torch_fidelity.utils"] = utils
    return tuple(importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "prc"))  # type: ignore


def lite0_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real features of the shipped data set: held-out pictures against training ones."""
    from unfog.data import path
    from unfog.evaluation.cache import features_of
    from unfog.evaluation.readers import reader
    from unfog.modalities.image.data import PictureSet

    data = PictureSet.open(path("emoji-64"))
    train, held = data.split("train")[:700], data.split("heldout_pair")[:600]
    found = {}
    for name in ("pixels", "lite0"):
        x, y = (features_of(reader(name), data, rows=rows) for rows in (train, held))
        found[f"{name} of emoji-64, {len(x)} and {len(y)} pictures"] = (x, y)
    return found


def cost() -> dict[str, Any]:
    """Processor seconds and peak memory of features and figures of 5,000 pictures, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; sys.path.insert(0, sys.argv[1]); import evaluation; evaluation.measured(sys.argv[2])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent), folder], check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1), flush=True)
    return found


def measured(folder: str) -> None:
    import torch

    from unfog.data import path
    from unfog.evaluation.cache import features_of
    from unfog.evaluation.distances import Moments, frechet
    from unfog.evaluation.readers import reader
    from unfog.modalities.image.data import PictureSet

    found: dict[str, Any] = {"threads": torch.get_num_threads(), "pictures": 5000, "side": 64}

    def step(name: str, start: tuple[float, float]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[name] = {
            "processor_seconds": round(time.process_time() - start[0], 1),
            "seconds": round(time.perf_counter() - start[1], 1),
            "peak_mib": round(peak),
        }

    def now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    data = PictureSet.open(path("emoji-64"))
    rows = data.split("train")[:5000]
    lite0, place, start = reader("lite0"), Path(folder), now()
    x = features_of(lite0, data, rows=rows, folder=place)
    step("features", start)
    start = now()
    features_of(lite0, data, rows=rows, folder=place)
    step("features, kept", start)
    others = (data.split("train") + data.split("heldout_pair"))[5000:]
    y = features_of(lite0, data, rows=others, folder=place)
    start = now()
    frechet(Moments.of(x), Moments.of(y))
    step("frechet alone", start)
    found["other_set"] = len(y)
    for name in (*ESTIMATES, "prdc"):
        start = now()
        ones = estimates(x, y, which=(name,))
        step(f"{name} with interval", start)
        found[f"{name} with interval"]["figures"] = {k: [v.value, v.corrected, v.low, v.high] for k, v in ones.items()}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found["version"] = __version__
    for part in options.only.split(","):
        found[part] = {"peers": peers, "cost": cost}[part]() if part in ("peers", "cost") else globals()[part](options.repeats)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
