"""The documents keep their promises."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    script = ROOT / "docs" / "configuration.py"
    spec = importlib.util.spec_from_file_location("configuration_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert script.with_suffix(".md").read_text() == module.page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z][a-z0-9-]*)", page.read_text()):
        assert f"\n{target}:" in makefile, f"{page.name} names `make {target}`"


@pytest.mark.parametrize("program", ["accelerate", "prefect", "tensorboard", "torchrun"])
def test_programs_that_the_pages_call_come_with_the_environment(program: str) -> None:
    file = Path(sys.executable).parent / program
    assert file.read_text().splitlines()[0] == f"#!{sys.executable}", "make env copies it"
