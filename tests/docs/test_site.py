"""The documentation as a site: built strictly, whole, linked, found by its search, and offline."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import anamorph

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


class Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") != "canonical":
            self.loads.append(found.get("href", ""))
        elif tag in ("img", "script", "iframe", "source", "video") and "src" in found:
            self.loads.append(found["src"])


@cache
def page(path: Path) -> Page:
    return Page(path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with its notebooks run."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT / "src"),
            "NO_MKDOCS_2_WARNING": "1",
            "OMP_NUM_THREADS": "1",  # as make docs
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def pages(site: Path) -> list[Path]:
    return [path for path in site.rglob("*.html") if path.name != "404.html"]


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    lost = []
    for path in pages(site):
        for link in page(path).links + page(path).loads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment) if target.suffix == ".html" else ""
            if not target.is_file() or (anchor and anchor not in page(target).anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    elsewhere = {
        f"{path.relative_to(site)}: {load}"
        for path in pages(site)
        for load in page(path).loads
        if urlsplit(load).netloc
    }
    assert not elsewhere
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import) *['\"]?(https?:)?//", style.read_text("utf-8")), (
            style
        )


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("illusion", "paper.html"),
        ("rank", "views.html"),
        ("site", "own_models.html"),
        ("am.audit_given", "api/audits.html"),
        ("wandb", "recipes.html"),
    ],
)
def test_the_search_finds(site: Path, word: str, where: str) -> None:
    index = json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]
    found = {
        entry["location"].partition("#")[0]
        for entry in index
        if word in f"{entry['title']} {entry['text']}".lower()
    }
    assert where in found


def test_a_public_name_has_its_anchor(site: Path) -> None:
    anchors = set().union(*(page(path).anchors for path in site.glob("api/*.html")))
    assert {f"anamorph.{name}" for name in anamorph.__all__} <= anchors


def test_docstrings_are_read_as_they_are_meant(site: Path) -> None:
    """A section that is misspelt would be a paragraph, and an example that is one a quotation."""
    for path in site.glob("api/*.html"):
        text = path.read_text("utf-8")
        assert "<p>Args:" not in text and "<p>Raises:" not in text, path
        assert "<summary>Example</summary>" not in text and "<p>&gt;&gt;&gt;" not in text, path


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_and_shows_what_it_found(site: Path, notebook: Path) -> None:
    built = (site / "notebooks" / f"{notebook.stem}.html").read_text("utf-8")
    assert built.count("<table") >= 2
    assert "Traceback" not in built and "Warning" not in built


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium on this machine")
def test_the_search_works_from_disk_with_nothing_fetched(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        requests: list[str] = []
        errors: list[str] = []
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto((site / "api/audits.html").as_uri())
        for word in ("illusion", "rank", "site"):
            opened.fill("input.md-search__input", "")
            opened.locator("input.md-search__input").press_sequentially(word)
            opened.wait_for_function(
                """word => [...document.querySelectorAll(".md-search-result__item")].some(
                    item => item.textContent.toLowerCase().includes(word))""",
                arg=word,
            )
        browser.close()
    assert not errors
    assert not [url for url in requests if urlsplit(url).scheme not in ("file", "data", "about")]
