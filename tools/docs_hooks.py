"""Joins the site that `make docs` builds: pages that lie outside docs/, and links to files that are no pages.

README.md is the first page, csrc/README.md the one on kernels, and a link to another file of the repository becomes its name.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "csrc/README.md": "kernels.md"}  # file of the repository -> page
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)docs/([^)\s]*)\)")


def on_files(files, config):
    """Adds the pages."""
    for source, page in PAGES.items():
        text = PICTURE.sub(r"![\1](\2)", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=relinked(text, PurePosixPath(source).parent)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns the links of the other pages."""
    return markdown if page.file.src_uri in PAGES.values() else relinked(markdown, PurePosixPath("docs"))


def on_post_page(output, page, config):
    """Takes the roles off the names in docstrings, which the site does not know."""
    return re.sub(r":(?:class|data|func|meth|mod):(?=<code>)", "", output)


def relinked(text: str, folder: PurePosixPath) -> str:
    """The text with links between pages, as they lie in the site. ``folder``: of the text in the repository."""

    def link(match: re.Match) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        place = normpath(str(folder / target))
        if place in PAGES:
            return f"[{words}]({PAGES[place]}{anchor})"
        if place.startswith("docs/") and place.endswith(".md"):
            return f"[{words}]({place.removeprefix('docs/')}{anchor})"
        if not (ROOT / place).exists():
            return match[0]  # mkdocs says that it leads nowhere
        return words if words.startswith("`") else f"`{place}`"

    return LINK.sub(link, text)
