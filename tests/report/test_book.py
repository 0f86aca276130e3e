"""The pages of a built book in a real Chromium: readable, reachable by keyboard, whole without a network.

By default a small book: prose pages, and one notebook, executed here. `make browser` takes
the newest whole book instead, by the variable REPTRACE_BOOK (a folder with index.html).

Trusted: axe-core for what people with other eyes or hands cannot use, and what Chromium reports of a page.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from chromium import browser, element, wait_until  # noqa: F401  browser is a fixture

from reptrace.report import making, pages
from reptrace.report.executing import execute, page_of
from reptrace.report.profiles import ROOT

pytestmark = pytest.mark.timeout(1200)  # the whole book takes three minutes on a quiet machine
PROSE = ["method", "own_model", "own_posttraining", "posttraining_paper", "refused", "glossary", "references"]
NOTEBOOK = "notebooks/trace_real_suite"  # in its place, for own_model.md links to it
LINKED = "notebooks/estimators"  # the same again, for method.md links there
DESKTOP, PHONE = (1400, 1000, False), (390, 844, True)  # width, height, whether it is a phone
LAPTOP = (1300, 900, False)
CELLS = ["""
from reptrace.report import figures
import pandas as pd
n = 3
with figures.style():
    figure, axes = figures.grid(2, 3)
    for ax in axes.flat:
        ax.plot([1, 2, 3], [n, 2, 1], color=figures.OURS)
figures.show(figure, caption=f"**RankMe** by $x^2$, to {n / 7:.3f} {{cite}}`li2025tracing`, see [](../method.md).",
             alt=f"All six curves fall from {n} to 1 & \\"stay\\"")
""", """
words = ["none", "step0 has the weights of step1, as they were published, which is a long sentence"]
frame = pd.DataFrame({"tokens": [12001.2, 802.9], "seeds": ["3 of 3", "2 of 3"], "known faults": words,
                      **{f"another column {k}": [k / 7, None] for k in range(6)}}, index=["d = 16", "d = 32, seed 1"])
figures.table(frame, "Runs, <one> a row & more", {"tokens": "{:,.0f}"})
"""]


# The book and a walk through its pages


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Folder of the pages."""
    if os.environ.get("REPTRACE_BOOK"):
        return Path(os.environ["REPTRACE_BOOK"]).resolve()
    folder = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book", folder / "book")
    (folder / "book/index.md").write_text("# A small book\n\n{cite:t}`li2025tracing`\n")
    parts = [{"caption": "All", "chapters": [{"file": name} for name in [NOTEBOOK, LINKED, *PROSE]]}]
    (folder / "book/_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "index", "parts": parts}))
    (folder / "requirements.lock").write_text("")
    (folder / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# One"), *map(nbformat.v4.new_code_cell, CELLS)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    for name in (NOTEBOOK, LINKED):
        nbformat.write(notebook, folder / f"{name}.ipynb")
        list(execute([page_of(folder / f"{name}.ipynb", {}, folder / f"out/source/{name}.ipynb", [])]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "BOOK", folder / "book")
        patch.setattr(making, "ROOT", folder)
        return making.build_book(folder / "out").parent


@dataclass
class Seen:
    """What Chromium shows of a page."""

    axe: list = field(default_factory=list)
    console: list = field(default_factory=list)
    elsewhere: list = field(default_factory=list)  # addresses asked for outside of the book
    wide: list = field(default_factory=list)  # what reaches beyond the screen or is cut off without a frame
    frames: list = field(default_factory=list)  # what scrolls and is no stop of the Tab key, or has no name
    small: list = field(default_factory=list)  # figures too small to be read
    unnamed: list = field(default_factory=list)  # figures and tables without caption, or without alternative text


@pytest.fixture(scope="module")
def seen(browser, book) -> dict[str, Seen]:
    """Every page, on a desktop, on a phone and in the dark, all that is folded opened, the network blocked."""
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*", "ws://*", "wss://*"]})
    axe = (Path(find_spec("axe_core_python").origin).parent / "axe.min.js").read_text()
    found = {str(page.relative_to(book)): look(browser, page, book, axe) for page in all_pages(book)}
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    return found


def all_pages(folder: Path) -> list[Path]:
    return sorted(page for page in folder.rglob("*.html") if not {"_static", "_sources"} & set(page.parts))


def look(driver, page: Path, folder: Path, axe: str) -> Seen:
    seen = Seen()
    driver.get_log("browser")
    screen(driver, DESKTOP)
    driver.get(page.as_uri())
    driver.execute_script(axe)
    driver.execute_script("""document.documentElement.dataset.theme = 'light';
        document.head.append(Object.assign(document.createElement('style'), { textContent: '* { transition: none ' +
          '!important; }' }));  // else colours on their way to the dark are measured
        document.querySelectorAll('details').forEach((one) => { one.open = true; });
        document.querySelectorAll('.toggle-hidden').forEach((one) => one.classList.remove('toggle-hidden'));""")
    driver.execute_async_script("(window.MathJax?.startup?.promise || Promise.resolve()).then(() => arguments[0]())")
    for place, size in (("phone", PHONE), ("desktop", DESKTOP)):
        screen(driver, size)
        driver.execute_async_script("setTimeout(arguments[0], 400)")  # the theme waits before it looks what scrolls
        seen.axe += [f"{place}: {line}" for line in violations(driver)]
        seen.wide += [f"{place}: {line}" for line in driver.execute_script(WIDE)]
        seen.frames += [f"{place}: {line}" for line in driver.execute_script(FRAMES)]
        seen.small += [f"{place}: {line}" for line in driver.execute_script(SMALL)]
    driver.execute_script("document.documentElement.dataset.theme = 'dark'")  # which differs in colours alone
    seen.axe += [f"dark: {line}" for line in violations(driver, {"runOnly": ["color-contrast"]})]
    seen.unnamed = driver.execute_script(UNNAMED)
    seen.console = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    seen.elsewhere = [name for name in asked if not name.startswith((folder.as_uri(), "data:", "blob:"))]
    return seen


def screen(driver, size) -> None:
    width, height, phone = size
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone})
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def violations(driver, rules: dict | None = None) -> list[str]:
    """What axe-core calls critical or serious, by its rules, and whether what a button shows is in its name."""
    rules = rules or {"rules": {"label-content-name-mismatch": {"enabled": True}}}
    script = """const [rules, reply] = arguments;
        const options = { ...rules, resultTypes: ['violations'], iframes: false, preload: false };
        axe.run({ exclude: [['mjx-container']] }, options).then(
          (found) => reply(found.violations.filter((one) => ['critical', 'serious'].includes(one.impact))
            .flatMap((one) => one.nodes.map((node) => `${one.id} ${node.target} ${node.html.slice(0, 120)} ` +
              node.failureSummary.split('\\n').slice(-1)))), (error) => reply([String(error)]));"""
    return driver.execute_async_script(script, rules)


WIDE = """const width = document.documentElement.clientWidth, found = [];
    if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth}`);
    for (const one of document.querySelectorAll('.bd-article table, .bd-article img'))
      if (one.getBoundingClientRect().width > 0 && one.getBoundingClientRect().right > width + 1
          && !one.closest('.edge.more-right')) found.push(one.outerHTML.slice(0, 120));
    return found;"""
FRAMES = """const scrolls = (one) => one.scrollWidth > one.clientWidth + 1, all = (names) =>
        [...document.querySelectorAll(names)].filter(scrolls);
    return [...all('.bd-article .frame').filter((one) => !one.ariaLabel || one.getAttribute('role') !== 'region'),
            ...all('.bd-article :is(.frame, pre)').filter((one) => one.tabIndex !== 0)]
        .map((one) => one.outerHTML.slice(0, 200));"""
SMALL = """return [...document.querySelectorAll('.bd-article figure img')].filter((one) => one.clientWidth > 0
    && one.clientWidth < 0.59 * one.naturalWidth && !one.src.endsWith('.svg')).map((one) => one.src);"""
UNNAMED = """const found = [];
    for (const one of document.querySelectorAll('.bd-article img')) {
      const number = one.closest('figure')?.querySelector('figcaption .caption-number')?.textContent;
      if (!/^Figure R\\d+ $/.test(number)) found.push('no number: ' + one.outerHTML.slice(0, 160));
      if (one.alt.length < 20 || !one.alt.includes(' ')) found.push('no alt: ' + one.outerHTML.slice(0, 160));
    }
    for (const one of document.querySelectorAll('.bd-article table'))
      if (!one.querySelector('caption')?.innerText.trim()) found.push('no caption: ' + one.outerHTML.slice(0, 160));
    return found;"""


def nothing(seen: dict[str, Seen], what: str) -> None:
    """That no page shows anything of the kind, or a failure that lists it, page by page."""
    lines = [f"{page}: {line}" for page, one in seen.items() for line in getattr(one, what)]
    assert not lines, "\n".join([f"{len(lines)} in all", *lines[:60]])


# What every page must be


def test_the_book_has_pages(seen):
    assert {"index.html", "references.html", "glossary.html"} <= set(seen)


def test_axe_finds_nothing_critical_or_serious(seen):
    nothing(seen, "axe")


def test_the_console_shows_no_errors_and_nothing_is_asked_of_the_network(seen):
    nothing(seen, "console")
    nothing(seen, "elsewhere")


def test_nothing_is_cut_off_on_a_desktop_or_a_phone(seen):
    nothing(seen, "wide")
    nothing(seen, "small")


def test_what_scrolls_is_reached_by_the_tab_key_and_has_a_name(seen):
    nothing(seen, "frames")


def test_every_figure_has_a_number_a_caption_and_an_alternative_and_every_table_a_caption(seen):
    nothing(seen, "unnamed")


def test_words_of_a_figure_and_columns_of_a_table_come_out_as_they_were_given(book, browser):
    if os.environ.get("REPTRACE_BOOK"):
        pytest.skip("of the notebook in the small book")
    screen(browser, DESKTOP)
    browser.get((book / f"{NOTEBOOK}.html").as_uri())
    assert element(browser, "figure img").get_attribute("alt") == 'All six curves fall from 3 to 1 & "stay"'
    caption = element(browser, "figcaption")
    assert caption.text.startswith("Figure R1 RankMe by") and "to 0.429" in caption.text
    for part in ("strong", ".math", "a[href*='references.html#']", "a[href*='method.html']"):
        assert caption.find_elements("css selector", part), part
    assert element(browser, "table caption").text == "Runs, <one> a row & more"
    aligned = """return [...document.querySelectorAll('table tr')].map((row) => [...row.children].map((cell) =>
        [getComputedStyle(cell).textAlign, parseFloat(getComputedStyle(cell).paddingLeft)]))"""
    for row in browser.execute_script(aligned):
        assert [side for side, _ in row[1:4]] == ["right", "right", "left"] and min(air for _, air in row) >= 7
    text = [cell.text for cell in browser.find_elements("css selector", "table tbody tr:first-child *")]
    assert text[:3] == ["d = 16", "12,001", "3 of 3"]
    assert element(browser, "table tbody tr:last-child td:last-child").text == "–"


class Addresses(HTMLParser):
    """Ids of a page, and what it links to."""

    def __init__(self, page: Path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


def broken(book: Path) -> list[str]:
    """Links of a book's pages that lead nowhere in it, or are no well-formed addresses elsewhere."""
    known, found = {page: Addresses(page) for page in all_pages(book)}, []
    for page, addresses in known.items():
        for link in addresses.links:
            there = urlsplit(link)
            if there.scheme in ("http", "https"):
                good = re.fullmatch(r"[\w-]+(\.[\w-]+)+", there.netloc) and not re.search(r"\s", link)
            elif there.scheme in ("data", "mailto"):
                good = True
            else:
                target = (page.parent / unquote(there.path)).resolve() if there.path else page
                fragment = unquote(there.fragment)
                setting = "=" in fragment and "lab" in known.get(target, addresses).ids  # of the lab
                good = target.is_file() and (not fragment or setting or target not in known
                                             or fragment in known[target].ids)
            if not good:
                found.append(f"{page.relative_to(book)}: {link}")
    return found


def test_every_link_leads_somewhere(book):
    assert broken(book) == []


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here"></a><a href="#gone"></a><a href="b.html"></a>'
                                     '<a href="a.html#here"></a><a href="https://arxiv.org/abs/1"></a><a href="http://no">')
    assert broken(tmp_path) == ["a.html: #gone", "a.html: b.html", "a.html: http://no"]


def test_arxiv_numbers_and_dois_are_links(book):
    text = (book / "references.html").read_text()
    unlinked = re.sub(r"<a [^>]*>.*?</a>|<[^>]*>", "", text, flags=re.DOTALL)
    assert re.findall(r"arXiv:? ?\d{4}\.\d+|doi:\S+", unlinked) == []
    assert text.count('href="https://arxiv.org/abs/') >= 10 and text.count('href="https://doi.org/10.') >= 8


def test_what_was_found_is_on_the_first_screen(book, browser):
    screen(browser, LAPTOP)
    browser.get((book / "index.html").as_uri())
    lowest = browser.execute_script("""const all = [...document.querySelectorAll('div.marks, div.found, div.foot')];
        return all.length ? Math.max(...all.map((each) => each.getBoundingClientRect().bottom)) : null""")
    if lowest is None:
        pytest.skip("the small book says nothing of what was found: make browser takes the whole one")
    assert lowest <= LAPTOP[1]


# Keyboard


def test_the_first_tab_stop_skips_to_the_content_and_can_be_seen(book, browser):
    screen(browser, DESKTOP)
    browser.get((book / "references.html").as_uri())
    element(browser, "body").send_keys("\ue004")  # Tab
    skip = browser.switch_to.active_element
    wait_until(browser, "return document.activeElement.getBoundingClientRect().top >= 0")  # it glides into sight
    assert skip.text == "Skip to main content"
    skip.send_keys("\ue007")  # Enter
    browser.switch_to.active_element.send_keys("\ue004")
    focused = browser.switch_to.active_element
    assert browser.execute_script("return document.querySelector('#main-content').contains(arguments[0])", focused)
    assert browser.execute_script("const style = getComputedStyle(arguments[0]);"
                                  "return style.outlineStyle !== 'none' || style.boxShadow !== 'none'", focused)


def test_a_table_that_scrolls_does_so_by_keys_and_its_row_names_stay(book, browser):
    page = next((page for page in all_pages(book) if "row_heading" in page.read_text()), None)
    assert page, "no page with a table of a notebook"
    screen(browser, PHONE)
    browser.get(page.as_uri())
    wait_until(browser, "return document.querySelector('.edge.more-right .frame.cut th.row_heading')")
    place = "const frame = document.querySelector('.edge.more-right .frame.cut:has(th.row_heading)')"
    frame = browser.execute_script(f"{place}; frame.focus(); return frame")
    names = """return [arguments[0].scrollLeft,
        arguments[0].querySelector('th.row_heading').getBoundingClientRect().left]"""
    before = browser.execute_script(names, frame)
    frame.send_keys("\ue014" * 8)  # arrow right
    browser.execute_async_script("setTimeout(arguments[0], 400)")  # it glides
    after = browser.execute_script(names, frame)
    assert after[0] > before[0] == 0 and after[1] == pytest.approx(before[1], abs=8)  # its own edge, at the most


def test_the_labs_controls_are_tab_stops(book, browser):
    if not (book / "lab.html").exists():
        pytest.skip("the small book has no lab: tests/report/test_lab.py builds one")
    browser.get((book / "lab.html").as_uri())
    wait_until(browser, "return document.querySelectorAll('#lab input').length")
    controls = browser.execute_script("""return [
        ...document.querySelectorAll('#lab :is(input, select, button, .lab-stage)')].filter((one) => one.offsetParent)
        .map((one) => [one.tabIndex, one.outerHTML.slice(0, 80)])""")
    assert len(controls) > 10 and [markup for tab, markup in controls if tab < 0] == []


# What is done to pages, and what fails the build


def test_pages_mended_once_are_mended(book):
    before = {page: page.read_bytes() for page in all_pages(book)}
    pages.mend(book)
    assert {page: page.read_bytes() for page in all_pages(book)} == before


def page_with(tmp_path, output, metadata=None):
    cell = {"cell_type": "code", "source": ["draw()\n"], "outputs": output, "metadata": metadata or {}}
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": [cell]}))
    return tmp_path / "page.ipynb"


def test_a_figure_or_table_without_words_fails_the_build(tmp_path):
    figure = {"output_type": "display_data", "data": {"image/png": "", "text/plain": ["<Figure>"]}}
    table = {"output_type": "execute_result", "data": {"text/html": ["<table>", "</table>"]}}
    said = {"mystnb": {"figure": {"caption": "c"}, "image": {"alt": "a"}}}
    with pytest.raises(ValueError, match=r"page\.ipynb, cell 0 .*draw.*without caption and alternative text"):
        pages.check(page_with(tmp_path, [figure]))
    with pytest.raises(ValueError, match="more than its figure"):
        pages.check(page_with(tmp_path, [figure, table], said))
    with pytest.raises(ValueError, match=r"cell 0 .*a table without a caption"):
        pages.check(page_with(tmp_path, [table]))
    pages.check(page_with(tmp_path, [figure], said))
    table["data"]["text/html"].insert(1, "<caption>c</caption>")
    pages.check(page_with(tmp_path, [table]))
