"""What MkDocs does beside building docs/: adds the reference, and the files elsewhere in the
repository that pages link to.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

from book import reference

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(\]\()([^)#\s]+\.md)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and those that other pages link to outside docs/."""
    for path, write in reference.PAGES.items():
        files.append(File.generated(config, path, content=write()))
    for file in [*files.documentation_pages()]:
        for target in _outside(file.content_string, file.src_uri):
            if files.get_file_from_path(_page(target)) is None:
                text = (_ROOT / target).read_text(encoding="utf-8")
                files.append(File.generated(config, _page(target), content=_unlinked(text)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Let links that leave docs/ lead to the pages made of their targets."""
    here = page.file.src_uri

    def inside(link: re.Match[str]) -> str:
        target = _target(link[2], here)
        if not target.startswith("../"):
            return link[0]
        return link[1] + posixpath.relpath(_page(target[3:]), posixpath.dirname(here) or ".")

    return _LINK.sub(inside, markdown)


def _target(link: str, here: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _outside(markdown: str, here: str) -> list[str]:
    """The files outside docs/ that a page links to, from the repository's root."""
    targets = (_target(link, here) for _, link in _LINK.findall(markdown))
    return [target[3:] for target in targets if target.startswith("../")]


def _page(target: str) -> str:
    """The page of a file outside docs/."""
    return f"repository/{target.replace('README.md', 'index.md')}"


def _unlinked(markdown: str) -> str:
    """A page's text without links to files, which the book may lack."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", markdown)
