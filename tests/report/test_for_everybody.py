"""The page for everybody: axe, keyboard, phone, print, mailed alone, without JavaScript."""

import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from anamorph.report import page as page_module
from anamorph.report import render
from anamorph.report.theme import COLOURS
from chromium import NEEDED, Opened
from controlled_run import make_controlled
from heads_run import write
from synthetic_run import make_run, make_texts

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = NEEDED

A4 = 680  # CSS pixels between margins of 15 mm
RUNS: dict[str, Callable[[Path], Path]] = {
    "texts": lambda run: make_texts(make_run(run), sequences=20),
    "heads": write,
    "controls": make_controlled,
}


@pytest.fixture
def no_stills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "write_stills", lambda figures, folder, names: None)


@pytest.fixture
def mailed(browser: Any, rendered: Path, tmp_path: Path) -> Iterator[Opened]:
    """The page alone, in an empty folder."""
    shutil.copy(rendered / "report.html", tmp_path)
    context = browser.new_context(offline=True, color_scheme="dark", accept_downloads=True)
    yield Opened(context.new_page(), (tmp_path / "report.html").as_uri())
    context.close()


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")


def grave(page: Any) -> list[str]:
    """What axe finds serious or critical, with the first element of each."""
    return [
        f"{found['id']} {len(found['nodes'])}: {found['nodes'][0]['html'][:200]}"
        for found in axe.Axe().run(page).response["violations"]
        if found["impact"] in ("serious", "critical")
    ]


WINDOWS = list(product((1280, 400), ("light", "dark")))


def check(opened: Opened, context: Any, windows: Sequence[tuple[int, str]]) -> None:
    page = opened.page
    unfold(page)
    for width, scheme in windows:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(1000)  # figures are drawn again for their new width
        assert grave(page) == [], (width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    opened.still_clean()
    page.emulate_media(media="print", color_scheme="dark")
    assert grave(page) == [], "print"
    page.set_viewport_size({"width": A4, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= A4  # nothing is cut
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()


@pytest.mark.parametrize("name", RUNS)
def test_axe_finds_nothing_serious(
    browser: Any, tmp_path: Path, no_stills: None, name: str
) -> None:
    context = browser.new_context(offline=True)
    page = render(RUNS[name](tmp_path / "run"))
    check(Opened(context.new_page(), page.as_uri()), context, [WINDOWS[0], WINDOWS[3]])


def test_axe_finds_nothing_serious_in_a_real_run(browser: Any, smoke_run: Path) -> None:
    context = browser.new_context(offline=True)
    check(Opened(context.new_page(), (smoke_run / "report.html").as_uri()), context, WINDOWS)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours such as "#1b1b1a"."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_and_lines_stand_out() -> None:
    """In figures too, of which axe does not judge the colours."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    grounds = [name for name in COLOURS if f"on-{name}" in COLOURS]
    texts = [(f"on-{name}", name) for name in grounds]
    texts += [("on-illusion", name) for name in ("under", "over", "mixed")]
    texts += [(name, "page") for name in ("ink", "soft", "accent")]
    texts += [(f"{name}-text", "page") for name in ("under", "over", "mixed")]
    lines = [(name, "page") for name in COLOURS if name.startswith("split-")]
    assert len(texts) == 14 and len(lines) == 9
    for least, pairs in ((4.5, texts), (3.0, lines)):
        for (front, back), scheme in product(pairs, (0, 1)):
            ratio = contrast(COLOURS[front][scheme], COLOURS[back][scheme])
            assert ratio >= least, (front, back, scheme, ratio)


def test_every_control_is_reached_by_keyboard_and_shows_it(mailed: Opened) -> None:
    page = mailed.page
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, select, summary')]"
        ".filter(control => control.checkVisibility()).length"
    )
    reached = set()
    for _ in range(3 * wanted):
        page.keyboard.press("Tab")
        number, tag, outline = page.evaluate(
            "(() => { const at = document.activeElement;"
            " return [[...document.querySelectorAll('*')].indexOf(at), at.tagName,"
            " getComputedStyle(at).outlineStyle]; })()"
        )
        if tag == "BODY":
            break
        assert outline == "solid", tag
        if tag in ("A", "BUTTON", "SELECT", "SUMMARY"):
            reached.add(number)
    assert len(reached) == wanted > 40


def size_of(svg: str) -> tuple[float, float]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return float(root.attrib["width"]), float(root.attrib["height"])


def png_of(content: bytes) -> tuple[int, int, int]:
    """Width, height, and how many different bytes its rows have."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    data, at = b"", 8
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        data += content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    different = len(set(zlib.decompress(data)))
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24]), different


def download(page: Any, figure: str, kind: str) -> Any:
    with page.expect_download() as started:
        page.click(f"#figure-{figure} button[data-kind={kind}]")
    return started.value


def test_a_mailed_page_gives_every_figure_as_a_file(mailed: Opened, rendered: Path) -> None:
    page = mailed.page
    names = [box.get_attribute("id") for box in page.query_selector_all("figure")]
    assert len(names) >= 11
    for name in (str(name).removeprefix("figure-") for name in names):
        svg, png = (download(page, name, kind) for kind in ("svg", "png"))
        assert (svg.suggested_filename, png.suggested_filename) == (f"{name}.svg", f"{name}.png")
        text = svg.path().read_text("utf-8")
        assert "var(--" not in text and 'fill="#ffffff"' in text  # in light, though read in dark
        width, height = size_of(text)
        still = size_of((rendered / "figures" / f"{name}.svg").read_text("utf-8"))
        # Chromium and vl-convert measure text each in their own way, by which legends wrap.
        assert (width, height) == pytest.approx(still, rel=0.1, abs=25), name
        across, down, different = png_of(png.path().read_bytes())
        assert (across, down) == pytest.approx((2 * width, 2 * height), abs=2), name
        assert different > 30, name
        said = page.text_content(f"#figure-{name} .saved")
        assert said == f"saved as {name}.png"
    mailed.still_clean()


def test_a_file_has_what_is_chosen_on_the_page(mailed: Opened) -> None:
    page = mailed.page
    before = download(page, "faithfulness", "svg").path().read_text("utf-8")
    label = page.locator("#figure-faithfulness .vega-bind label", has_text="Metric")
    label.locator("select").select_option(label="attention divergence (JSD)")
    page.wait_for_timeout(300)
    file = download(page, "faithfulness", "svg")
    assert file.suggested_filename == "faithfulness-attention-divergence-jsd-.svg".replace(
        "-.", "."
    )
    after = file.path().read_text("utf-8")
    assert "attention divergence" in after and "attention divergence" not in before
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(1500)
    assert size_of(download(page, "faithfulness", "svg").path().read_text("utf-8")) == size_of(
        after
    )
    mailed.still_clean()


def test_no_link_of_a_page_leads_out_of_it(mailed: Opened) -> None:
    links = mailed.page.evaluate(
        "[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))"
    )
    assert len(links) >= 8 and all(link.startswith("#") for link in links)
    for link in links:
        assert mailed.page.query_selector(link) is not None, link


def test_without_javascript_all_is_there_but_figures(
    browser: Any, rendered: Path, tmp_path: Path
) -> None:
    shutil.copy(rendered / "report.html", tmp_path)
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.inner_text("noscript").startswith("Without figures.")
    assert page.locator("noscript").is_visible()
    assert page.locator(".files button").count() >= 22
    assert not any(button.is_visible() for button in page.locator(".files button").all())
    assert page.locator(".standings tbody tr").count() >= 3
    context.close()


def test_what_is_folded_is_printed_unless_it_is_long(
    browser: Any, tmp_path: Path, no_stills: None
) -> None:
    page = browser.new_context(offline=True).new_page()
    Opened(page, render(make_run(tmp_path / "run")).as_uri())
    page.emulate_media(media="print")
    short, long = (
        page.locator(f"details{which} > :nth-child(2)") for which in (":not(.long)", ".long")
    )
    assert short.count() >= 1 and long.count() == 2  # all cells; the specification
    for box in short.all():
        assert box.evaluate("box => box.checkVisibility({contentVisibilityAuto: true})")
        assert box.bounding_box()["height"] > 20
    assert not any(box.evaluate("box => box.checkVisibility()") for box in long.all())
    pdf = page.pdf(format="A4")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 40
    page.context.close()
