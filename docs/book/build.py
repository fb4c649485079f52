"""Make the book: `make book`, or `python docs/book/build.py [--out FOLDER]`. Needs no network.

The committed notebooks (nothing is executed), the documents and the sources of d3s2 are put
together as pages in <out>-pages, in the folders they have in the repository, so that the links
between them hold. Sphinx makes a site of them; a warning is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import nbformat
import notebook_pages
from sources import ROOT, Links, label, modules, page
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FILES = ("LICENSE", "CITATION.cff")
TITLES = {
    "notebooks/0*.ipynb": "Chapters",
    "notebooks/[AB]*.ipynb": "Appendices",
    "notebooks/solutions/*.ipynb": "Solutions",
}
"""What the navigation shows of the notebooks, in this order, where there are any."""
FIRST = ("notation", "book/glossary", "syllabus", "teaching")
"""The documents that a reader of the chapters needs; the others follow by name."""


def assemble(pages: Path) -> None:
    """Write all pages; what was there before goes."""
    shutil.rmtree(pages, ignore_errors=True)
    links = Links()
    for source in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in source.parts:
            notebook = notebook_pages.readable(nbformat.read(source, as_version=4), links)
            nbformat.write(notebook, _place(pages, source))
    for source in [*(ROOT / name for name in DOCUMENTS), *sorted((ROOT / "docs").glob("*.md"))]:
        text = notebook_pages.linked(source.read_text(encoding="utf-8"), links)
        _place(pages, source).write_text(text, encoding="utf-8")
    for source in [*(ROOT / name for name in FILES), *(ROOT / "notebooks").rglob("*.png")]:
        shutil.copyfile(source, _place(pages, source))
    glossary = HERE / "glossary.md"
    shutil.copyfile(glossary, _place(pages, glossary))
    for module, path in modules().items():
        _place(pages / "source", path).with_suffix(".md").write_text(page(module, path))
    (pages / "source" / "index.md").write_text(_all_sources())
    introduction = (HERE / "index.md").read_text(encoding="utf-8").replace("](../../", "](")
    (pages / "index.md").write_text(f"{introduction}\n{_navigation(pages)}", encoding="utf-8")


def _place(pages: Path, source: Path) -> Path:
    """Where a file of the repository lies among the pages."""
    target = pages / source.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _navigation(pages: Path) -> str:
    trees = []
    for pattern, title in TITLES.items():
        names = [path.relative_to(pages).with_suffix("") for path in sorted(pages.glob(pattern))]
        trees.append(_tree(title, [name.as_posix() for name in names]))
    docs = pages / "docs"
    there = [
        path.relative_to(docs).with_suffix("").as_posix() for path in sorted(docs.rglob("*.md"))
    ]
    first = [name for name in FIRST if name in there]
    rest = [name for name in there if name not in first]
    trees.append(_tree("To look things up", [f"docs/{name}" for name in first]))
    trees.append(_tree("Documents", [f"docs/{name}" for name in rest]))
    more = [Path(name).stem for name in DOCUMENTS]
    trees.append(_tree("The repository", [*more, "source/index"]))
    return "\n".join(trees)


def _tree(title: str, names: list[str]) -> str:
    if not names:
        return ""
    lines = "\n".join(names)
    return f"```{{toctree}}\n:hidden:\n:caption: {title}\n:titlesonly:\n\n{lines}\n```\n"


def _all_sources() -> str:
    """A list of all modules, room by room."""
    lines = ["# The source", "", "Every module of d3s2, as it is in this version.", ""]
    room = ""
    for module, path in modules().items():
        parts = module.split(".")
        if len(parts) > 1 and parts[1] != room:
            room = parts[1]
            lines += ["", f"## {room}", ""]
        about = re.match(r'"""(.*?)(\.\s|\.?"""|\n\n)', path.read_text(encoding="utf-8"), re.S)
        says = " ".join(about[1].split()) if about else ""
        name = path.relative_to(ROOT).as_posix()
        lines.append(f"- [`{name}`](#{label(module)}): {says}")
    return "\n".join([*lines, ""])


def build(out: Path) -> int:
    """Make the site in `out`; Sphinx's exit code."""
    pages = out.with_name(f"{out.name}-pages")
    assemble(pages)
    shutil.rmtree(out, ignore_errors=True)
    doctrees = out.with_name(f"{out.name}-doctrees")
    shutil.rmtree(doctrees, ignore_errors=True)
    options = ["-b", "html", "-c", HERE, "-d", doctrees, "-q", "-W", "--keep-going"]
    return sphinx([*map(str, options), str(pages), str(out)])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "book")
    out = parser.parse_args(arguments).out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    code = build(out)
    if code == 0:
        print(f"book: {out / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
