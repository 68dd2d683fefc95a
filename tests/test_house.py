"""The rules of the house: who may import whom, what the registries name, what is heavy, what is banned."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unfog

SOURCE = Path(unfog.__file__).parent
# each part may import itself and what stands to the right of it; a list of parts on one level are not ordered
LEVELS = [["cli"], ["plots", "claims"], ["training", "evaluation", "editing", "forecasting"], ["interop"], ["model"], ["steer"],
          ["adapters", "script", "parts"], ["modalities"], ["networks", "diffusion"], ["precision", "data", "page", "edits"],
          ["requests", "files", "checks"], ["wishes"], ["schema", "prompts"], ["errors"]]  # fmt: skip
LEVEL = {part: i for i, level in enumerate(LEVELS) for part in level}
SIDEWAYS = {("training", "evaluation")}  # a report on a run looks for copies by the same rule as the evaluation of a model


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "unfog":
                found |= {f"unfog.{a.name}" for a in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(p for p in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_inwards(path):
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return
    for name in imports(path, top_level_only=True):
        if name.startswith("unfog."):
            other = name.split(".")[1]
            if other in LEVEL and other != part:
                assert LEVEL[other] > LEVEL[part] or (part, other) in SIDEWAYS, f"{part} imports {other}"


def test_every_part_has_a_level():
    assert {part_of(p) for p in FILES} - {"__init__", "__main__", "pretrained"} == set(LEVEL)


def test_networks_and_diffusion_do_not_know_each_other():
    for path in FILES:
        if part_of(path) == "networks":
            assert not any(n.startswith("unfog.diffusion") for n in imports(path)), path
        if part_of(path) == "diffusion":
            ours = [n for n in imports(path) if n.startswith("unfog")]
            assert all(n.split(".")[1] in ("errors", "checks", "diffusion") for n in ours), path


def test_kinds_of_data_do_not_know_each_other():
    for path in (SOURCE / "modalities").rglob("*.py"):
        own = path.relative_to(SOURCE / "modalities").parts[0]
        for name in imports(path):
            if name.startswith("unfog.modalities."):
                assert name.split(".")[2] in (own, "contract"), path


@pytest.mark.parametrize("folder, registry", [("diffusion/samplers", "SAMPLERS"), ("diffusion/guidance", "GUIDANCES"),
                                             ("plots", "PLOTS"), ("claims", "CLAIMS")])  # fmt: skip
def test_every_file_is_named_by_its_registry(folder, registry):
    text = (SOURCE / folder / "__init__.py").read_text()
    for path in (SOURCE / folder).glob("[!_]*.py"):
        assert f"{path.stem}" in text, f"{path} is not in {registry}"


def test_import_unfog_loads_nothing_heavy():
    code = "import sys, unfog; print([m for m in ('torch', 'numpy', 'PIL', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_own_models_need_no_library_of_others():
    """A picture of ours loads neither diffusers nor what else only some kinds and commands want."""
    others = ("diffusers", "transformers", "peft", "scipy", "pandas", "matplotlib", "soundfile", "rdkit")
    code = "import sys, unfog; unfog.load('emoji-64').generate('a red apple', steps=1, scale=1, seed=0);"
    code += f"print([m for m in {others!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_banned_word():
    for path in FILES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [getattr(node, "name", ""), getattr(node, "id", ""), getattr(node, "arg", "")]
            assert not any(isinstance(n, str) and "scheduler" in n.lower() for n in names), path


def test_files_stay_short():
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 420}
    assert not long


def test_nothing_is_unpickled_or_run():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "torch.load"), f"{path}: {name}"
