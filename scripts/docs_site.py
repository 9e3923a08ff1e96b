"""What MkDocs needs to show docs/ as a site: links to the rest of the repository, and doctests in docstrings.

On GitHub a link to a file outside docs/ works as it is. For the site this hook adds the pages and pictures that are
linked; a link to any other file becomes its name.
"""

import posixpath
import re
from pathlib import Path

from griffe import Extension, Object
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHOWN = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "results/chain/README.md",
    "results/e2e_t5/README.md",
    "results/guided_search/README.md",
    "results/hh_rlhf/README.md",
    "results/reproduction/REPRODUCTION.md",
    "results/stories260k_length/README.md",
)
"""Pages of the repository that are pages of the site, too."""
PICTURES = "results/**/*.png"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds pages and pictures of the repository."""
    for path in (*map(ROOT.joinpath, SHOWN), *sorted(ROOT.glob(PICTURES))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages of the site."""
    source = page.file.src_uri
    here = posixpath.dirname(source if source in SHOWN else f"docs/{source}")

    def turned(match):
        picture, text, target, anchor = match.groups()
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        wanted = posixpath.normpath(posixpath.join(here, target))
        place = wanted.removeprefix("docs/")
        for path in (place, f"{place}/README.md"):
            if files.get_file_from_path(path):
                link = posixpath.relpath(path, posixpath.dirname(source) or ".")
                return f"{picture}[{text}]({link}{anchor or ''})"
        return match[0] if wanted.startswith("docs/") else text

    return LINK.sub(turned, markdown)


class Doctests(Extension):
    """Shows the examples in docstrings as code; Markdown takes `>>>` for a quotation."""

    def on_object(self, *, obj: Object, **_) -> None:
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\1```\n", obj.docstring.value + "\n").rstrip()


EXAMPLE = re.compile(r"^((?:>>> .*\n(?:.+\n)*)+)", re.MULTILINE)
"""Lines from `>>>` to the next empty one."""
