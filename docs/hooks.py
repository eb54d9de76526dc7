"""What mkdocs does not know of this repository: pages at its root, and links to files that are no pages.

README, ARCHITECTURE and the like stay where a checkout shows them and are pages of the site too. A link to any other
file of the repository becomes its path, since the site holds no code.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# File at the root -> its page.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
FILES = {page: file for file, page in PAGES.items()}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make every link of a page one of the site."""
    name = page.file.src_uri
    if name == "index.md":
        page.meta["hide"] = ["navigation"]  # it has no page beside it
    return LINK.sub(lambda link: _in_the_site(link, name), markdown)


def _in_the_site(link: re.Match[str], page: str) -> str:
    folder = ROOT if page in FILES else (DOCS / page).parent
    target = Path(os.path.normpath(folder / link["path"]))
    anchor = link["anchor"] or ""
    if target.is_relative_to(DOCS):
        wanted = target.relative_to(DOCS).as_posix()
    elif (wanted := PAGES.get(target.relative_to(ROOT).as_posix(), "")) == "":
        path = target.relative_to(ROOT).as_posix()
        return f"`{path}`" if target.exists() else link[0]
    relative = Path(os.path.relpath(wanted, Path(page).parent)).as_posix()
    return f"{link['image']}[{link['text']}]({relative}{anchor})"
