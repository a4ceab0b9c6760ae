"""A translation has the same headings, code and links as its original, and each leads to the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^```[\s\S]*?^```$|(?:^ {4}.*\n)+", re.M)


@pytest.mark.parametrize("name", ["README", "docs/tutorial"])
def test_a_translation_has_what_its_original_has(name: str) -> None:
    original, translation = (read_parts(ROOT / f"{name}{suffix}") for suffix in (".md", ".ko.md"))
    for part in original:
        assert translation[part] == original[part], f"{name}.ko.md has other {part} than {name}.md: change both"


def read_parts(path: Path) -> dict[str, list[str]]:
    """Levels of headings, code, and links, where one to a translation counts as one to its original."""
    text = path.read_text()
    prose = CODE.sub("", text)
    return {
        "headings": re.findall(r"^(#+) ", prose, re.M),
        "code": CODE.findall(text),
        "links": sorted({link.replace(".ko.md", ".md") for link in re.findall(r"\]\(([^)\s]+)\)", prose)}),
    }
