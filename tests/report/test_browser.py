"""The page as a reader gets it: opened from disk in Chromium, with the network off."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anamorph.report import render
from chromium import NEEDED, Opened
from controlled_run import make_controlled
from heads_run import write
from synthetic_run import NASTY, make_run, make_texts

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = NEEDED


@pytest.fixture
def opened(browser: "playwright.Browser", rendered: Path) -> Iterator[Opened]:
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 1000})
    yield Opened(context.new_page(), (rendered / "report.html").as_uri())
    context.close()


CHANNELS = ("color", "fill", "shape", "strokeDash")


def has_legend(spec: Any) -> bool:
    """Whether colours, shapes or dashes of a Vega-Lite specification stand for values."""
    if isinstance(spec, list):
        return any(map(has_legend, spec))
    if not isinstance(spec, dict):
        return False
    channels = [spec.get("encoding", {}).get(name, {}) for name in CHANNELS]
    told = any("field" in channel and channel.get("legend", {}) is not None for channel in channels)
    return told or any(has_legend(part) for name, part in spec.items() if name != "datasets")


def test_every_figure_is_drawn_without_a_request_or_a_complaint(opened: Opened) -> None:
    boxes = opened.page.query_selector_all("figure .chart")
    assert len(boxes) == len({box.get_attribute("data-spec") for box in boxes}) >= 11
    legends = 0
    for box in boxes:
        drawn = box.query_selector("svg, canvas")
        name = box.get_attribute("data-spec")
        assert drawn is not None, name
        size = drawn.bounding_box()
        assert size is not None and size["width"] > 100 and size["height"] > 100, name
        assert len(drawn.query_selector_all("path, text")) > 10, name
        if has_legend(json.loads(opened.page.text_content(f"#{name}") or "")):
            legends += 1
            assert drawn.query_selector(".role-legend .role-legend-label text") is not None, name
    assert legends >= 6
    opened.still_clean()


def test_controls_are_drawn_without_a_complaint(
    browser: "playwright.Browser", tmp_path: Path
) -> None:
    page = render(make_controlled(tmp_path))
    context = browser.new_context(offline=True)
    opened = Opened(context.new_page(), page.as_uri())
    assert opened.page.query_selector("#figure-faithfulness svg path[stroke-dasharray]") is not None
    opened.still_clean()
    context.close()


def test_a_token_that_looks_like_a_script_is_text(opened: Opened) -> None:
    page = opened.page
    # On an axis, where long labels are cut; in a menu's legend; and whole in a tooltip.
    assert NASTY[:7] in page.text_content("#figure-attention svg")
    page.select_option("#figure-key_query select[name=colouring]", label="token")
    for _ in range(50):  # however busy the machine is
        page.wait_for_timeout(200)
        if NASTY[:7] in page.text_content("#figure-key_query svg"):
            break
    assert NASTY[:7] in page.text_content("#figure-key_query svg")
    points = page.query_selector_all("#figure-key_query svg .mark-symbol.role-mark path")
    nasty = next(p for p in points if NASTY in (p.get_attribute("aria-label") or ""))
    nasty.evaluate("point => point.parentNode.append(point)")  # above its neighbours
    nasty.scroll_into_view_if_needed()
    place = nasty.bounding_box()
    assert place is not None
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert NASTY in page.text_content("#vg-tooltip-element")
    assert page.evaluate("document.querySelectorAll('body script:not([type])').length") == 2
    opened.still_clean()


def redrawn(page: "playwright.Page", figure: str, menu: str, text: str) -> bool:
    """Choose in the menu of a figure; gives whether it was drawn anew."""
    before = page.inner_html(f"#figure-{figure} svg")
    label = page.locator(f"#figure-{figure} .vega-bind label", has_text=menu)
    label.locator("select").select_option(label=text)
    page.wait_for_timeout(200)
    return bool(page.inner_html(f"#figure-{figure} svg") != before)


def test_menus_change_what_is_drawn(opened: Opened) -> None:
    for figure, menu, text in (
        ("faithfulness", "Metric", "attention divergence (JSD)"),
        ("gaps", "Metric", "output divergence (KL)"),
        ("who_is_right", "Proxies", "k-means · layer 1 query, key"),
        ("facets", "By", "distance"),
        ("attended_depth", "Layer.head", "0.0"),
        ("attention", "Proxy", "one-hot attention · layer 1 pattern"),
    ):
        assert redrawn(opened.page, figure, menu, text), figure
    opened.still_clean()


def test_keyboard_reaches_the_content_and_the_menus(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"BUTTON", "SUMMARY", "SELECT"} <= reached


def test_heads_are_drawn_and_their_menus_change_them(
    browser: "playwright.Browser", tmp_path: Path
) -> None:
    page = browser.new_page()
    opened = Opened(page, render(write(tmp_path / "run")).as_uri())
    for figure, menu, text in (
        ("heads_size", "At least", "90\N{NO-BREAK SPACE}% same predictions"),
        ("heads_gap", "Size", "rank 4"),
        ("heads_scores", "Simplified", "SVD · key of shared key heads"),
    ):
        assert redrawn(opened.page, figure, menu, text), figure
    opened.still_clean()
    page.close()


def test_texts_are_text_and_thousands_of_them_cost_nothing(
    browser: "playwright.Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anamorph.report.text_view.MOST_POSITIONS", 10**9)
    run = make_texts(make_run(tmp_path / "run"), sequences=2000, length=512, proxies=1)
    page = browser.new_page()
    opened = Opened(page, render(run).as_uri())
    shown = page.inner_text("#text-view-list pre >> nth=0")
    assert shown.startswith("</script><script>alert(1)</script>⟨202e⟩gnirtsnul␀<b>&amp;")
    assert page.inner_text("#text-view-list h3 >> nth=0") == "<i>0</i>"
    assert len(page.query_selector_all("#text-view-list pre")) == 5
    started = time.monotonic()
    for _ in range(20):
        page.click("#text-view-next")
    turned = time.monotonic() - started
    page.select_option("#text-view-split", index=1)
    page.check("#text-view-only")
    assert page.inner_text("#text-view-said").startswith("None"), "odd ones have no difference"
    page.select_option("#text-view-split", index=0)
    switched = time.monotonic() - started - turned
    assert page.inner_text("#text-view-said") == "1 to 5 of 1000"
    assert turned < 10, "20 pages of 5 texts of 512 tokens"
    assert switched < 5, "whether 2,000 texts have a difference"
    other = page.locator("#text-view-list pre >> nth=0").locator("span.other >> nth=0")
    other.hover()
    lines = page.inner_text("#text-view-told").splitlines()
    assert [line.split(":")[0] for line in lines] == ["here", "model", "proxy", "divergence"]
    assert lines[1].count("%") == lines[2].count("%") == 3
    assert lines[3].endswith("bits; the model is right, the proxy wrong")
    page.focus("#text-view-list pre >> nth=0")
    page.keyboard.press("Shift+ArrowRight")
    assert "other" in page.get_attribute("#text-view-list .now", "class").split()
    assert page.evaluate("document.querySelectorAll('body script:not([type])').length") == 3
    opened.still_clean()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000, 1600])
def test_fits_the_window(
    browser: "playwright.Browser", rendered: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(
        offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    opened = Opened(context.new_page(), (rendered / "report.html").as_uri())
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = opened.page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle("
        "document.querySelector('#figure-accuracy .role-axis-label text')).fill]"
    )
    dark = {"light": False, "dark": True}[scheme]
    assert (brightness(paper) < 0.5) is dark
    assert abs(brightness(paper) - brightness(ink)) > 0.35  # charts follow
    opened.still_clean()
    context.close()


def brightness(colour: str) -> float:
    """Of "rgb(r, g, b)", in [0, 1]."""
    red, green, blue = (int(part) for part in colour[4:-1].split(","))
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
