"""What the site has beyond docs/: the README as its first page, and what pages link to elsewhere in the repository.

A page links by paths in the repository, so that it can be read there too. Each link is rewritten to the place of its
target in the site, and a page that would load anything from elsewhere ends the build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.ko.md",
    "examples/*/README.md",
    "examples/own_network/spots.ipynb",
)
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")
LOADED = re.compile(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//[^"]*"|<link[^>]*rel="stylesheet"[^>]*"https?://')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for path in sorted(path for pattern in ELSEWHERE for path in ROOT.glob(pattern)):
        name = str(path.relative_to(ROOT))
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    folder = posixpath.dirname(find_source(name))

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        if not (ROOT / target).exists():
            return link[0]  # of no file; where it is a link at all, the build says so
        placed = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return posixpath.relpath(placed, posixpath.dirname(name) or ".")

    return LINK.sub(rewrite, markdown)


def find_source(name: str) -> str:
    """The path in the repository of a page of the site."""
    if name == "index.md":
        return "README.md"
    return f"docs/{name}" if (ROOT / "docs" / name).exists() else name


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    if loaded := LOADED.search(output):
        raise PluginError(f"a page must load nothing from elsewhere, but {page.file.src_uri} has {loaded[0]}")
    return output
