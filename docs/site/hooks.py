"""MkDocs' hooks of the site: pages from outside docs/, and links that lead out of docs/.

A page is written for the repository, where its links are relative to its file. On the site, the changelog and the page for
contributors stand beside the pages of docs/, results of benchmarks are files to download, and a link to any other file of the
repository, such as a module of the package, becomes its path.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# The files outside docs/ that the site has: the same addresses as in the repository, below the front page.
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("benchmarks/results/*.json"))),
)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")
EXAMPLES = "examples/index.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave the examples out of the navigation where the folder is not there."""
    if not (ROOT / "docs" / EXAMPLES).exists():
        config.nav = [entry for entry in config.nav or () if EXAMPLES not in entry.values()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn each link that leads out of docs/ into one to the site's copy, or into the path where there is none."""
    here = page.file.src_uri
    folder = os.path.dirname(here if here in OUTSIDE else f"docs/{here}")

    def on_site(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = os.path.normpath(os.path.join(folder, target))
        name = path if path in OUTSIDE else path.removeprefix("docs/")
        file = files.get_file_from_path(name)
        if file is None or not file.inclusion.is_included():
            return f"`{path}`" if (ROOT / path).exists() else link[0]
        return f"[{text}]({os.path.relpath(name, os.path.dirname(here) or '.')}{anchor})"

    return LINK.sub(on_site, markdown)
