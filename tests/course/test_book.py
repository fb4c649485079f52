"""The book: every link and anchor of the built site leads somewhere, and in Chromium it needs
nothing from outside, fits a phone, opens its answers and finds words.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import browser
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "docs" / "book"
sys.path.insert(0, str(BOOK))
equations = pytest.importorskip("equations", reason="./install.sh course brings Sphinx")
import notebook_pages  # noqa: E402 - the book's own modules
import sources  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
LINKS = sources.Links()


# --------------------------------------------------------------------------------------- its parts
def code_and_texts(path: Path) -> tuple[list[Any], list[str]]:
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return [cell for cell in cells if cell.cell_type == "code"], texts


def equations_of(text: str) -> list[str]:
    """Every equation of a Markdown text, found without the book's own parser."""
    text = re.sub(r"(`+).+?\1", "", notebook_pages.without_code(text), flags=re.S)
    alone = re.findall(r"\$\$(.+?)\$\$", text, re.S)
    return alone + re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.S))


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "docs" / "notation.md"], ids=lambda p: p.stem)
def test_every_equation_becomes_mathml(path: Path) -> None:
    text = "\n\n".join(code_and_texts(path)[1]) if path.suffix == ".ipynb" else path.read_text()
    for latex in equations_of(text):
        assert equations.mathml(latex).startswith("<math")


def test_an_equation_that_is_not_known_is_named() -> None:
    for latex in (r"\nonsense x", r"\left( x", "x_1_2"):
        with pytest.raises(ValueError, match=re.escape(repr(latex))):
            equations.mathml(latex)


def test_words_of_equations_are_spelt_out() -> None:
    assert ">arg<" in equations.mathml(r"\arg\max_x f") and "negative" not in equations.mathml(
        r"\min\!\left(1, x\right)"
    )
    assert "presence" not in equations.mathml(r"\texttt{a\_b}")
    for two_lines in (r"a \\ b", r"\begin{aligned}a \\ b\end{aligned}"):
        assert equations.mathml(two_lines).count("<mtr>") == 2


def test_answers_are_set_as_text() -> None:
    hidden = "<details><summary>Answer</summary>\nIt is $x$.\n</details>\nNext"
    assert notebook_pages.open_answers(hidden) == (
        "<details><summary>Answer</summary>\n\nIt is $x$.\n\n</details>\n\nNext"
    )
    apart = "<details><summary>A</summary>\n\ntext\n\n</details>"
    assert notebook_pages.open_answers(apart).strip() == apart


def test_a_picture_says_what_it_shows() -> None:
    source = 'x = f("no")\nplots.image_rows({"real": a, "painted": b}, ["one"])'
    before = "## 2. A look\n\nFirst words. Above the *real* ones, all of them from `x`:"
    assert notebook_pages.alternative(source, "2. A look", before) == (
        "A look: rows of images (real, painted). Above the real ones, all of them from x."
    )
    chart = 'figure, axes = plots.new_figure(8, 2)\nplots.style(axes[0, 0], "step", "loss")'
    assert notebook_pages.alternative(chart, "Why?", "In short. Is it?") == (
        "Why? a chart (step, loss). In short. Is it?"
    )
    assert notebook_pages.alternative("f()", "Part", "$$x$$") == "Part: a picture."


def test_the_authors_own_words_come_first() -> None:
    cell = nbformat.v4.new_code_cell("plots.lines(x, y)", metadata={"alt": "A falling curve."})
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "x"})]
    notebook_pages.describe(cell, "Part", "Text.")
    assert cell.metadata["mystnb"]["image"]["alt"] == "A falling curve."


def test_names_of_code_lead_to_the_line_that_defines_them() -> None:
    text = "See `d3s2/selection.py::greedy`, `d3s2.core.files` and `d3s2 run`; [`x`](y.md)."
    assert notebook_pages.linked(text, LINKS) == (
        "See [`d3s2/selection.py::greedy`](#source-d3s2.selection-greedy), "
        "[`d3s2.core.files`](#source-d3s2.core.files) and `d3s2 run`; [`x`](y.md)."
    )
    block = "```\n`d3s2/selection.py`\n```"
    assert notebook_pages.linked(block, LINKS) == block
    assert LINKS.to("d3s2.plots", "lines") == sources.label("d3s2.plots.charts", "lines")
    assert LINKS.to("d3s2.selection", "Ranking.first") == LINKS.to("d3s2.selection", "Ranking")
    assert LINKS.to("d3s2.selection", "nowhere") is None


def test_every_import_of_a_notebook_is_found() -> None:
    """So that the line below the cell names all; `d3s2` itself imports few."""
    for path in NOTEBOOKS:
        for cell in code_and_texts(path)[0]:
            bare = re.sub(r'"""(.|\n)*?"""', "", cell.source)
            asked = re.findall(r"^from d3s2[\w.]* import (.+)$", bare, re.M)
            below = notebook_pages.defined_where(cell, LINKS)
            assert bool(asked) == bool(below), cell.source
            for name in re.findall(r"\w+", re.sub(r" as \w+|#.*", "", " ".join(asked))):
                assert f"[`{name}`]" in below[0].source, (path.name, name)


def test_a_source_page_has_every_line_once() -> None:
    for module, path in sources.modules().items():
        text = sources.page(module, path)
        pieces = re.findall(
            r"^`````\{code-block\} python\n:[^\n]*\n\n(.*?)^`````$", text, re.M | re.S
        )
        shown = [line for piece in pieces for line in piece.splitlines() if line.strip()]
        there = [line for line in path.read_text().splitlines() if line.strip()]
        assert shown == there, module


# ---------------------------------------------------------------------------------- the built site
@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built as `make book` builds it: a warning ends it."""
    out = tmp_path_factory.mktemp("book") / "site"
    command = [sys.executable, str(BOOK / "build.py"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout == f"book: {out / 'index.html'}\n"
    return out


class Page(HTMLParser):
    """What a page links to, its anchors, and its pictures' alternative texts."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self.tags: dict[str, int] = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given.get("alt") or "")
        if tag in ("img", "script") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


@pytest.mark.processes
def test_every_chapter_document_and_module_has_a_page(pages: dict[str, Page]) -> None:
    wanted = [path.relative_to(ROOT).with_suffix(".html") for path in NOTEBOOKS]
    wanted += [path.relative_to(ROOT).with_suffix(".html") for path in ROOT.glob("docs/*.md")]
    names = {path.as_posix() for path in wanted} | {"index.html", "docs/book/glossary.html"}
    assert names <= pages.keys()
    linked = {urldefrag(link)[0] for link in pages["index.html"].links if urldefrag(link)[0] != "#"}
    assert {name for name in names if name != "index.html"} <= linked  # by the navigation
    modules = {f"source/{path.relative_to(ROOT).with_suffix('')}.html" for path in source_files()}
    assert modules <= pages.keys()


def source_files() -> list[Path]:
    return sorted((ROOT / "d3s2").rglob("*.py"))


@pytest.mark.processes
def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    dead, seen = [], 0
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            address, anchor = parts.path, parts.fragment
            if parts.scheme:
                continue
            seen += 1
            target = (site / name).parent / unquote(address) if address else site / name
            inside = target.resolve().relative_to(site.resolve()).as_posix()
            known = pages.get(inside)
            known_anchor = not anchor or not known or unquote(anchor) in known.anchors
            if not (target.exists() and known_anchor):
                dead.append((name, link))
    assert dead == [] and seen > 1000


@pytest.mark.processes
def test_pages_load_nothing_from_outside(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        outside = [each for each in page.loaded if urlsplit(each).netloc]
        assert outside == [], name


@pytest.mark.processes
def test_pictures_equations_and_answers_arrive(site: Path, pages: dict[str, Page]) -> None:
    for path in NOTEBOOKS:
        name = path.relative_to(ROOT).with_suffix(".html").as_posix()
        codes, texts = code_and_texts(path)
        text = "\n\n".join(texts)
        shown = [
            out for cell in codes for out in cell.outputs if "image/png" in out.get("data", {})
        ]
        page = pages[name]
        assert len(page.pictures) == len(shown), name
        assert all(len(alt) > 15 for alt in page.pictures), (name, page.pictures)
        assert page.tags.get("math", 0) == len(equations_of(text)), name
        assert page.tags.get("details", 0) == text.count("<details>"), name
        importing = [cell for cell in codes if notebook_pages.defined_where(cell, LINKS)]
        html = (site / name).read_text(encoding="utf-8")
        assert html.count("Defined in d3s2: ") == len(importing), name
        assert "$" not in re.sub(
            r"<pre.*?</pre>|<script.*?</script>|<code.*?</code>|alt=\"[^\"]*\"",
            "",
            html,
            flags=re.S,
        ), name


@pytest.mark.processes
def test_nothing_of_this_machine_is_in_it(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.name


# ------------------------------------------------------------------------------------- in Chromium
@pytest.fixture(scope="session")
def chromium(site: Path) -> Iterator[SimpleNamespace]:
    """A browser, and the site's address."""
    if lacking := browser.missing():
        pytest.skip(lacking)
    with browser.served(site) as url, browser.opened() as opened:
        yield SimpleNamespace(browser=opened, url=url)


def visited(pages: dict[str, Page]) -> list[str]:
    """All pages that are read, and of the sources, which are made alike, three."""
    names = sorted(name for name in pages if not name.startswith("source/d3s2/"))
    return [*names, *(f"source/d3s2/{name}.html" for name in ("selection", "guidance/sampler"))]


@pytest.mark.processes
def test_no_page_complains_or_asks_outside_and_all_fit_a_phone(
    chromium: SimpleNamespace, pages: dict[str, Page]
) -> None:
    """Text never leaves a window of 390 pixels; tables and pictures scroll inside."""
    wrong: list[tuple[str, str]] = []
    context = chromium.browser.new_context(viewport=browser.PHONE)
    tab = context.new_page()
    at = ""
    tab.on("console", lambda said: wrong.append((at, said.text)) if said.type != "log" else None)
    tab.on("pageerror", lambda error: wrong.append((at, str(error))))
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith(chromium.url) else wrong.append((at, asked.url)),
    )
    for at in visited(pages):
        tab.goto(f"{chromium.url}/{at}")
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > browser.PHONE["width"]:
            wrong.append((at, f"{wide} pixels wide"))
        for text in tab.evaluate(LEAVES_THE_WINDOW):
            wrong.append((at, f"outside the window: {text}"))
    context.close()
    assert wrong == []


LEAVES_THE_WINDOW = """() => {
  const scrolls = (part) => {
    for (; part && part.tagName !== "ARTICLE"; part = part.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(part).overflowX)) return true;
    return false;
  };
  return [...document.querySelectorAll("article p, article li, article h1, article h2, article dd")]
    .filter((part) => part.getBoundingClientRect().right > innerWidth + 1 && !scrolls(part))
    .map((part) => part.textContent.slice(0, 60));
}"""
"""Paragraphs that reach beyond the window and stand in nothing that scrolls."""


@pytest.mark.processes
def test_hidden_answers_open_by_click_and_by_keyboard(chromium: SimpleNamespace) -> None:
    tab = chromium.browser.new_page()
    tab.goto(f"{chromium.url}/notebooks/00_start_here.html")
    answers = tab.locator("details")
    hidden = answers.nth(0).locator("p").first
    assert answers.count() >= 3 and not hidden.is_visible()
    answers.nth(0).locator("summary").click()
    assert hidden.is_visible()
    answers.nth(1).locator("summary").focus()
    tab.keyboard.press("Enter")
    assert answers.nth(1).locator("p").first.is_visible()
    assert not answers.nth(2).locator("p").first.is_visible()
    tab.close()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("word", "page"),
    [("submodular", "notebooks/02_mask_selection"), ("Kubernetes", "docs/clusters-and-container")],
)
def test_search_finds_a_word(chromium: SimpleNamespace, word: str, page: str) -> None:
    tab = chromium.browser.new_page()
    tab.goto(f"{chromium.url}/index.html")
    tab.locator("input[name=q]").fill(word)
    tab.keyboard.press("Enter")
    tab.locator(f"#search-results a[href*='{page}']").first.wait_for(timeout=20_000)
    assert not tab.locator("#search-results a[href*='source/d3s2/']").count()
    tab.close()


@pytest.mark.processes
def test_pictures_stand_on_white_and_keep_their_pixels_in_the_dark(
    chromium: SimpleNamespace,
) -> None:
    context = chromium.browser.new_context(viewport=browser.PHONE, color_scheme="dark")
    tab = context.new_page()
    tab.goto(f"{chromium.url}/notebooks/00_start_here.html")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150
    shown = tab.evaluate(
        """[...document.querySelectorAll(".cell_output img")].map((image) =>
            [getComputedStyle(image).backgroundColor, image.width, image.naturalWidth])"""
    )
    assert len(shown) >= 5
    for background, width, natural in shown:
        assert background == "rgb(255, 255, 255)" and width == natural
    context.close()
