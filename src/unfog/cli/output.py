"""Where pictures go: safe names, nothing overwritten, nothing half-written.

A picture is `<prompt>[-<style>]-<seed>.png`. If that file holds the same bytes, it is left as it is; if it
holds anything else, the new picture becomes `..._2.png`, `..._3.png`; slugs hold no underscore, so no
two prompts can meet there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unfog.errors import UserError

if TYPE_CHECKING:
    from unfog.modalities.contract import Modality
    from unfog.requests import Result

LONGEST_SLUG = 60  # characters; with style, seed and suffix well below every file system's 255
MOST_NAMESAKES = 10_000


def slug(text: str, longest: int = LONGEST_SLUG) -> str:
    """Lower-case ASCII letters, digits and hyphens only, never empty: a name safe on every file system."""
    plain = unicodedata.normalize("NFKD", text[:2_000]).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > longest:
        words = words[: longest + 1].rpartition("-")[0] or words[:longest]  # cut between words where there are any
    return words.strip("-") or "picture"


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written to. Raises: UserError."""
    place = Path(os.path.abspath(folder))  # not resolve(): a broken link should be named as the user wrote it
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--out: {place} is a file, not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--out: {place} may not be written to; choose another place")


def check_sheet(file: Path) -> None:
    """Refuse, before any work, a contact sheet's file that is no PNG or would replace a foreign file."""
    from unfog.modalities.image.show import read_recipe

    if file.suffix.lower() != ".png":
        raise UserError(f"--grid: {file} does not end in .png; give a .png file")
    check_folder(file.parent)
    if not os.path.lexists(file):
        return
    try:
        ours = "sheet" in read_recipe(file)
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"--grid: {file} exists and is no contact sheet of unfog's; choose another name")


def make_folder(folder: Path) -> None:
    """Make the folder, with its parents, if it is not there. Raises: UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be made ({error.strerror}); choose another place") from None


def stem(prompt: str, style: str | None, seed: int) -> str:
    """A picture's name without its number and suffix."""
    return "-".join([slug(prompt), *([slug(style, 30)] if style else []), str(seed)])


def namesakes(prompts: Sequence[str], style: str | None) -> dict[str, int]:
    """Of each prompt, how many different prompts before it have its name: so many pictures of a job come before its own."""
    seen: Counter[str] = Counter()
    found = {}
    for prompt in dict.fromkeys(prompts):
        name = stem(prompt, style, 0)
        found[prompt] = seen[name]
        seen[name] += 1
    return found


def keep(result: Result, folder: Path, kind: Modality, before: int = 0) -> Path:
    """Write an item into the folder under the first fitting name; returns its path. Raises: UserError.

    before: items of the same name that another shard of the job makes and that come before this one.
    """
    from unfog.files import write_bytes

    make_folder(folder)
    style = result.recipe.get("style")
    name = stem(result.prompt, style, result.seed)
    data, suffix = kind.to_bytes(result.item, result.recipe), kind.suffix
    for k in range(1 + before, MOST_NAMESAKES):
        path = folder / (f"{name}{suffix}" if k == 1 else f"{name}_{k}{suffix}")
        if not os.path.lexists(path) and write_bytes(path, data, replace=False):
            return path
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return path
    raise UserError(f"--out: {folder} holds {MOST_NAMESAKES:,} files named {name}; choose another folder")
