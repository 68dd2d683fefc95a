"""`unfog train`: a model from a recipe file, or from a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Flag, Real, Whole


def train(
    source: Path,
    /,
    *,
    out: Path = Path("unfog-model"),
    steps: Whole | None = None,
    minutes: Real | None = None,
    start: str | None = None,
    resume: Flag = False,
) -> None:
    """Train a model by a recipe file, or on your own pictures.

    Try:
      unfog train my-pictures/ --out my-model --minutes 30
      unfog train recipes/emoji-64.json
      unfog train my-pictures/ --out my-model --resume
      unfog train my-pictures/ --out my-emoji --start emoji-64 --minutes 30

    Parameters
    ----------
    source
        A recipe file, or pictures: a folder, .zip or .tar (with metadata.jsonl or metadata.csv, or a .txt
        beside each picture, or one sub-folder a class), a folder of WebDataset's .tar shards, .parquet, a
        folder of Hugging Face's save_to_disk, .npy or .npz.
    out
        The model folder to write.
    steps
        Training steps; without it, the recipe's own.
    minutes
        Stop, save and finish after this long.
    start
        A shipped model or a model folder whose weights to begin with (fine-tuning). It keeps its network,
        styles and colours; pictures of a style that it does not know are learned as of none.
    resume
        Go on from the last checkpoint in --out; the result is as if the run had never stopped.
    """
    from unfog.errors import UserError
    from unfog.requests import TrainRequest, check

    given = {"steps": steps, "minutes": minutes, "start": start}
    fields = {key: value for key, value in given.items() if value is not None}
    request = check(TrainRequest, {"source": source, "out": out, "resume": resume, **fields})
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a recipe file, or a folder, .zip or .tar of pictures")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder; choose another place")
    from unfog.training import run_recipe

    run_recipe(request)
    print(out)
