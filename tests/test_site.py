"""The pages of the documentation: what is made from the code is of the code as it is, and links lead somewhere."""

import re
from pathlib import Path

import pytest
import typer

import ray_ft
from ray_ft.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MAKE = "make it anew: typer ray_ft.cli utils docs --name ray-ft --title 'Every command' > docs/commands.md"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(listed) == len(set(listed))
    assert {path.name for path in DOCS.glob("*.md")} == {name for name in listed if (DOCS / name).exists()}


def test_the_python_api_is_all_that_is_exported() -> None:
    assert sorted(re.findall(r"^::: ray_ft\.(\w+)$", (DOCS / "api.md").read_text(), re.M)) == sorted(ray_ft.__all__)


def test_the_page_of_commands_has_these_and_no_others() -> None:
    assert re.findall(r"^## `ray-ft (\S+)`$", (DOCS / "commands.md").read_text(), re.M) == list(COMMANDS), MAKE


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_commands_has_every_option(name: str) -> None:
    page = (DOCS / "commands.md").read_text()
    section = page.partition(f"## `ray-ft {name}`")[2].partition("\n## ")[0]
    shown = [own for own in COMMANDS[name].params if not getattr(own, "hidden", False)]
    flags = {flag for own in shown if own.param_type_name == "option" for flag in own.opts}
    assert set(re.findall(r"--[a-z][a-z-]*(?=[ `,/])", "\n".join(re.findall(r"^\* `[^`]*`", section, re.M)))) >= {
        flag for flag in flags if flag.startswith("--")
    }, MAKE
    helps = [own.help for own in shown if getattr(own, "help", None)]
    assert [text for text in helps if " ".join(text.split()) not in " ".join(section.split())] == [], MAKE
    assert len(re.findall(r"^\* `", section, re.M)) == len(shown) + 1, MAKE  # --help


def test_a_link_of_a_page_leads_to_a_file() -> None:
    for path in (*DOCS.glob("*.md"), *ROOT.glob("README*.md"), *ROOT.glob("examples/*/README.md")):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for link in re.findall(r"\]\(([^)#\s]+)[)#]", text):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path.name}: {link}"
