"""The pages in docs/: their tables are the registries', their names are known, their examples run."""

import importlib.util
import re
from pathlib import Path

import pytest

from unfog.diffusion.grids import GRIDS
from unfog.diffusion.guidance import GUIDANCES
from unfog.diffusion.samplers import SAMPLERS, sampler_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "samplers.md"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("tools_docs_samplers", ROOT / "tools" / "docs" / "samplers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_what_the_tool_writes(tool):
    text = PAGE.read_text(encoding="utf-8")
    assert tool.rewritten(text) == text, "run: python tools/docs/samplers.py"


def test_the_tool_mends_a_stale_page_and_only_then_writes(tool, tmp_path, capsys):
    good = PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(good.replace("| `ddim` | 1 |", "| `ddim` | 2 |"), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != good
    assert tool.main(["--check", "--page", str(page)]) == 1 and "stale" in capsys.readouterr().err
    assert tool.main(["--page", str(page)]) == 0 and page.read_text(encoding="utf-8") == good
    assert tool.main(["--check", "--page", str(page)]) == 0
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="samplers: begin"):
        tool.main(["--page", str(page)])


@pytest.mark.parametrize("block, registry", [("samplers", SAMPLERS), ("grids", GRIDS), ("guidances", GUIDANCES)])
def test_every_name_has_a_row(block, registry):
    text = PAGE.read_text(encoding="utf-8")
    rows = text.split(f"<!-- {block}: begin -->")[1].split(f"<!-- {block}: end -->")[0].strip().split("\n")
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert [row[0].strip() for row in cells[2:]] == [f"`{name}`" for name in registry]
    assert {len(row) for row in cells} == {len(cells[0])} and all(cell.strip() for row in cells for cell in row)


def test_a_name_from_elsewhere_means_one_sampler():
    """Case and punctuation do not count, "++" is "pp"."""
    owner: dict[str, str] = {}
    for key, entry in SAMPLERS.items():
        for name in (key, *entry.aliases):
            assert sampler_name(name) == key
            plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
            assert owner.setdefault(plain, key) == key, f"{name} is {key} and {owner[plain]}"


def test_examples_run():
    """Every block of Python in the page, in order, in one namespace; their own asserts are the test."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), space)
