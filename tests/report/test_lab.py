"""The lab: its mathematics against the theory wing, its page in a real Chromium, and what the exercises' solutions say.

Trusted: `reptrace.theory` (tested against autograd in tests/theory), numpy's singular values, figures.py for colours,
and what Chromium reports of the page as jupyter-book builds it.
"""

import functools
import html
import json
import re
import shutil
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from chromium import Server, browser, element, wait_until  # noqa: F401  browser is a fixture
from limits import SOON, check_resets, serving
from matplotlib.colors import to_hex

from reptrace.measures.phases import find_phases
from reptrace.report import figures, making
from reptrace.report.profiles import ROOT
from reptrace.theory.descent import descend
from reptrace.theory.phases import Phases, turns_late
from reptrace.theory.phases import phases as phases_of
from reptrace.theory.starts import Start, constructed, start
from reptrace.theory.trajectories import Trajectories

LAB = ROOT / "book/extra/lab"
WITHIN = 1e-6  # of trajectories: the aim of the issue; rounding alone leaves 1e-13
SETTINGS = {
    "four classes in the plane": ((9, 3, 2, 1), 2, {"rate": 0.05}),
    "eight classes, balanced": ((8, 6, 5, 4, 3, 2, 2, 2), 2, {"balanced": True, "scale": 0.3, "rate": 0.1}),
    "more dimensions than classes": ((5, 3, 2), 5, {"rate": 0.1}),
    "more dimensions than samples": ((2, 1), 4, {"rate": 0.1}),
    "squared error": ((9, 3, 2, 1), 2, {"loss": "squared", "rate": 0.05}),
    "squared error, balanced, wide": ((4, 4, 4), 6, {"loss": "squared", "balanced": True, "rate": 0.05}),
    "one dimension": ((6, 2, 1), 1, {"rate": 0.05}),
    "diverges": ((9, 3, 2, 1), 2, {"loss": "squared", "rate": 0.6}),
    "Fig 4's start": ((2, 2, 1, 1), 2, {"constructed": True, "rate": 0.25 / 6}),
}


# The browser and the page


def test_a_client_that_resets_before_it_is_accepted_does_not_hold_up_the_pages(tmp_path):
    (tmp_path / "lab.html").write_text("a page")
    server = Server(tmp_path)
    check_resets(server)
    with serving(server), urlopen(f"http://127.0.0.1:{server.server_port}/lab.html", timeout=SOON) as answer:
        assert answer.read() == b"a page"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The lab's page as jupyter-book builds it (a warning fails it), in a book of two pages."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "book").mkdir()
    for name in ("_config.yml", "references.bib", "lab.md"):
        shutil.copy(ROOT / "book" / name, folder / "book")
    shutil.copytree(ROOT / "book/extra", folder / "book/extra")
    (folder / "book/_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: lab\n")
    (folder / "book/index.md").write_text("# Cited\n\n```{bibliography}\n```\n")
    (folder / "requirements.lock").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "BOOK", folder / "book")
        patch.setattr(making, "ROOT", folder)
        return making.build_book(folder / "out").parent


@pytest.fixture(scope="module")
def server(built):
    """The same page over http on loopback."""
    with serving(Server(built)) as pages:
        yield f"http://127.0.0.1:{pages.server_port}"


@pytest.fixture
def lab(browser, built):
    """A function that gives the lab in its first setting or at an address, its run done; `fresh`: the page anew."""

    def open_lab(address: str = "", at: str | None = None, fresh: bool = False):
        page = f"{at or built.as_uri()}/lab.html"
        if fresh or not browser.current_url.startswith(page):
            browser.get("about:blank")  # else a changed fragment alone would not load the page anew
            browser.get(page + address)
        else:
            browser.execute_script("document.querySelector(`button[aria-label='reset all settings']`).click()")
            if address:
                after_the_address_changes(browser, "location.hash = arguments[0]", address)
        done(browser)
        return browser

    return open_lab


def after_the_address_changes(driver, script: str, *arguments) -> None:
    """Run a script and wait until the page has taken in the new address."""
    driver.execute_async_script("const reply = arguments[arguments.length - 1];"
                                "addEventListener('hashchange', () => reply(), { once: true });" + script, *arguments)


def done(driver) -> None:
    wait_until(driver, "return window.Lab && !Lab.state.frame && Lab.state.view && Toy.finished(Lab.state.run)")


def text(driver, selector: str) -> str:
    return driver.execute_script("return document.querySelector(arguments[0]).innerText", f"#lab {selector}")


def picture(driver, name: str) -> str:
    return driver.execute_script("return document.querySelector(`canvas[aria-label='${arguments[0]}']`).toDataURL()",
                                 name)


def settings_of(driver) -> dict:
    return driver.execute_script("return Lab.state.settings")


# The mathematics


def in_javascript(driver, begun: Start, counts, width: int, steps: list[int], rate: float, loss: str) -> dict:
    script = """
        const [F, W, rest] = arguments, run = Toy.descent({ F, W, ...rest });
        Toy.advance(run);
        return { diverged: run.diverged, phases: Toy.phases(run.records.map((record) => record.centred)),
                 records: run.records.map((record) => Object.fromEntries(Object.entries(record).map(
                   ([name, value]) => [name, value.length === undefined ? value : Array.from(value)]))) };"""
    rest = {"counts": list(counts), "width": width, "record": steps, "rate": rate, "loss": loss}
    return driver.execute_script(script, begun.features[0].ravel().tolist(), begun.classifier[0].ravel().tolist(), rest)


@pytest.mark.parametrize("name", SETTINGS)
def test_javascript_and_python_go_the_same_way_from_the_same_start(lab, name):
    counts, width, options = SETTINGS[name]
    loss, rate = options.get("loss", "cross-entropy"), options["rate"]
    begun = (constructed(counts, width, seeds=[5]) if "constructed" in options else
             start(counts, width, scale=options.get("scale", 0.2), balanced="balanced" in options, seeds=[5]))
    steps = [0, 1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 140, 200, 300, 450, 700, 1000, 1500, 2000]
    there = descend(begun, rate=rate, steps=2000, loss=loss, record=steps, keep_weights=True, device="cpu")
    here = in_javascript(lab(), begun, counts, width, steps, rate, loss)
    assert (here["diverged"] or -1) == there.diverged[0] and (name == "diverges") == (there.diverged[0] >= 0)
    kept = len(here["records"])
    assert kept == (np.isfinite(there.features[0]).all((1, 2)).sum())
    pairs = {"F": there.features, "W": there.classifier, "loss": there.loss, "centred": there.rankme_centred,
             "uncentred": there.rankme_uncentred, "featureValues": there.feature_values,
             "classifierValues": there.classifier_values}
    whole = np.isfinite(there.loss[0, :kept])  # weights may be finite and their squares not, just before divergence
    for field, expected in pairs.items():
        got = np.array([record[field] for record in here["records"]], dtype=float).reshape(expected[0, :kept].shape)
        np.testing.assert_allclose(got[whole], expected[0, :kept][whole], rtol=WITHIN, atol=WITHIN, err_msg=field)
    right = np.array([record["right"] for record in here["records"]])
    np.testing.assert_array_equal(right[whole], (there.accuracy[0, :kept] @ counts).round()[whole])


def test_phases_are_those_of_the_theory(lab, rng):
    walks = [np.exp(np.cumsum(rng.standard_normal(rng.integers(2, 40))) * rng.choice([0.005, 0.02, 0.1]))
             for _ in range(400)]
    sizes = rng.choice([0.002, 0.02, 0.1], len(walks)).tolist()
    found = lab().execute_script("return arguments[0].map((walk, k) => Toy.phases(walk, arguments[1][k]))",
                                 [walk.tolist() for walk in walks], sizes)
    seen = set()
    for walk, size, got in zip(walks, sizes, found, strict=True):
        phases = phases_of(np.arange(len(walk)), walk, size)
        spans = phases_of(np.arange(len(walk)), walk[None], size).spans(0, len(walk) - 1)
        assert [(span["phase"], span["first"], span["last"]) for span in got["spans"]] == spans
        assert (got["collapseEnd"], got["turn"]) == (phases.collapse_end, phases.turn)
        assert (got["lasting"], got["passing"]) == (phases.lasting, phases.passing)
        changes = {"collapse": phases.collapse, "expansion": phases.expansion, "fall": phases.fall,
                   "remaining": phases.remaining, "anyFall": phases.any_fall}
        np.testing.assert_allclose([got[name] for name in changes], list(changes.values()), atol=1e-12)  # rounding
        seen.add((*(span[0] for span in spans), bool(phases.passing)))
    assert len(seen) >= 8, "the walks hardly differ"


def test_singular_values_are_those_of_numpy(lab, rng):
    matrices = [rng.standard_normal((7, 3)), rng.standard_normal((3, 6)), np.ones((5, 4)), np.zeros((4, 2)),
                rng.standard_normal((9, 4)) * [1, 1e-4, 1e-8, 1e-12]]
    found = lab().execute_script("return arguments[0].map((columns) => Array.from(Toy.svd(columns).values))",
                                 [matrix.T.tolist() for matrix in matrices])
    for matrix, got in zip(matrices, found, strict=True):
        expected = np.linalg.svd(matrix, compute_uv=False)
        atol = 1e-14 * max(expected[0], 1)  # some rounding errors of the largest
        np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-9, atol=atol)
        np.testing.assert_allclose(got[len(expected) :], 0, atol=atol)


def test_starts_are_normal_balanced_and_the_same_for_a_seed(lab):
    script = """const [kind, width] = arguments, setting = { counts: [12, 5, 3], width, scale: 0.5, kind };
        return [7, 7, 8].map((seed) => Toy.start({ ...setting, seed })).map(({ F, W }) => [[...F], [...W]]);"""
    for width in (2, 5):
        first, again, other = lab().execute_script(script, "balanced", width)
        assert first == again != other
        F, W = np.array(first[0]).reshape(20, width), np.array(first[1]).reshape(width, 3)
        np.testing.assert_allclose(F.T @ F, W @ W.T, atol=1e-14)  # rounding of entries near 1
    many = """return Array.from(Toy.start({ counts: [4000, 4000], width: 4, scale: 0.5, seed: 1 }).F);"""
    drawn = np.array(lab().execute_script(many)) / 0.5
    moments = [np.mean(drawn), np.mean(drawn**2) - 1, np.mean(drawn**3), np.mean(drawn**4) - 3]
    errors = np.sqrt(np.array([1, 2, 15, 96]) / len(drawn))  # of a normal sample
    assert (np.abs(moments) < 4 * errors).all()


def test_a_constructed_start_is_that_of_the_theory_but_for_its_jitter(lab):
    script = """const [counts, width, scale] = arguments;
        const { F, W } = Toy.start({ counts, width, scale, kind: "constructed", seed: 3 });
        return { F: [...F], W: [...W] };"""
    for counts, width in (((2, 2, 1, 1), 2), ((2, 2, 2, 2), 3), ((5, 4, 3, 2, 1, 1), 2), ((3, 1, 1), 1)):
        here, jittered = (lab().execute_script(script, counts, width, scale) for scale in (0, 0.01))
        there = constructed(counts, width, jitter=0.0)
        np.testing.assert_allclose(here["F"], there.features[0].ravel(), atol=1e-14)  # rounding of numbers near 1
        np.testing.assert_allclose(here["W"], there.classifier[0].ravel(), atol=1e-14)
        moved = np.subtract(jittered["F"] + jittered["W"], here["F"] + here["W"]) / 0.01
        assert moved.std() == pytest.approx(1, rel=5 / np.sqrt(2 * len(moved)))  # five standard errors


def test_class_counts_are_whole_positive_and_near_their_shares(lab):
    cases = [(samples, classes, skew) for samples in (4, 15, 60) for classes in (2, 4) for skew in (0, 0.7, 1.5, 5)]
    found = lab().execute_script("return arguments[0].map((one) => Toy.zipfCounts(...one))", cases)
    for (samples, classes, skew), counts in zip(cases, found, strict=True):
        shares = np.arange(1, classes + 1.0) ** -skew
        assert sum(counts) == samples and min(counts) >= 1 and sorted(counts, reverse=True) == counts
        assert (np.abs(np.array(counts) - 1 - (samples - classes) * shares / shares.sum()) < 1).all()


# The page


def test_colours_line_styles_and_shade_are_those_of_the_figures():
    source = (LAB / "plot.js").read_text()
    style = json.loads(re.search(r"const STYLE = (\{.*?\n  \});", source, re.DOTALL)[1])
    assert style["phase_colours"] == figures.PHASE_COLOURS and style["phase_lines"] == figures.PHASE_LINES
    assert style["palette"] == [to_hex(colour) for colour in figures.palette(list("abcdefghijkl")).values()]
    table = pd.DataFrame({"tokens": range(6), "rankme": [9, 5, 2, 5, 9, 9.0], "rankme_stderr": 0.01, "status": ""})
    _, axes = figures.grid(1, 1)
    figures.trajectory(axes[0, 0], table, "rankme", find_phases(table.tokens, table.rankme, table.rankme_stderr))
    assert {patch.get_alpha() for patch in axes[0, 0].patches} == {float(re.search(r"SHADE = ([\d.]+)", source)[1])}


def severe(driver) -> set[str]:
    """Errors on the console, without the names of the pages."""
    lines = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return {re.sub(r"\S*(lab|index)\.html\S* \S+ ", "", line) for line in lines}


@pytest.mark.parametrize("way", ["file", "http"])
def test_no_console_errors_and_nothing_fetched_from_elsewhere(lab, built, server, way):
    base = built.as_uri() if way == "file" else server
    driver = lab("", base)
    severe(driver)  # what came before
    driver.get(f"{base}/index.html")
    theme = severe(driver)  # the theme's own: icon fonts over file://, and the like
    lab("#V=8&b=32", base, fresh=True)
    element(driver, "#lab-d").send_keys("\ue014")  # arrow right
    element(driver, ".lab-stage").send_keys(" ")
    wait_until(driver, "return Lab.state.frames > 5")
    element(driver, ".lab-stage").send_keys(" ")
    assert severe(driver) - theme == set()
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith((base, "data:"))] == []
    assert way == "file" or any(name.endswith("/lab/toy.js") for name in fetched)


def test_a_moved_slider_changes_curves_counts_and_address(lab):
    driver = lab()
    before = {name: picture(driver, name) for name in ("RankMe by step", "loss by step")}
    counts = text(driver, ".lab-counts")
    element(driver, "#lab-skew").send_keys("\ue011")  # Home: skew 0
    done(driver)
    assert settings_of(driver)["skew"] == 0 and "skew=0&" in driver.current_url
    assert all(picture(driver, name) != old for name, old in before.items())
    assert text(driver, ".lab-counts") != counts
    element(driver, "#lab-rate").send_keys("\ue014")  # arrow right, along 1, 2, 5
    assert settings_of(driver)["rate"] == 0.1


def test_every_control_changes_the_run(lab):
    driver = lab()
    begun = settings_of(driver)
    losses = "return [Lab.state.run.record.length, ...Lab.state.run.records.map((record) => record.loss)]"
    first, phases = driver.execute_script(losses), text(driver, ".lab-phases")
    for key in begun:
        lab()
        assert driver.execute_script(losses) == first, key
        control = element(driver, f"#lab-{key}")
        if control.tag_name == "select":
            choices = [option.text for option in control.find_elements("css selector", "option")]
            control.send_keys(next(name for name in choices if name != begun[key]))
        else:
            control.send_keys("\ue010")  # End: the largest
        done(driver)
        assert settings_of(driver)[key] != begun[key]
        if key in ("rankme", "size"):  # how the run is looked at
            assert driver.execute_script(losses) == first and text(driver, ".lab-phases") != phases, key
        else:
            assert driver.execute_script(losses) != first, key


def test_a_shared_address_restores_setting_and_run(lab):
    driver = lab("#V=5&b=25&skew=0.35&d=3&scale=0.037&start=free&rate=0.013&steps=700&loss=squared&seed=12"
                 "&rankme=uncentred&size=0.5")
    element(driver, "#lab-seed").send_keys("\ue014")
    done(driver)
    records = "return Lab.state.run.records.map((record) => [...record.F, ...record.W])"
    shared, run = driver.current_url, driver.execute_script(records)
    driver.execute_script("document.querySelector(`button[aria-label='copy the address of this setting']`).click()")
    wait_until(driver, "return document.querySelector('#lab [role=status]').textContent")  # copied, or why not
    lab()
    lab("#" + shared.split("#")[1], fresh=True)
    assert settings_of(driver) == {"V": 5, "b": 25, "skew": 0.35, "d": 3, "scale": 0.037, "start": "free",
                                   "rate": 0.013, "steps": 700, "loss": "squared", "seed": 13,
                                   "rankme": "uncentred", "size": 0.5}
    assert driver.execute_script(records) == run


def test_a_bad_address_is_answered_clearly_and_the_rest_of_it_is_used(lab):
    driver = lab("#V=1&d=0&rate=fast&b=-3&scale=&loss=hinge&colour=red&seed=7")
    message = text(driver, ".lab-message")
    for part in ("V = “1”: expected a whole number from 2 to 12; 4 is used", "d = “0”: expected a whole number from 1",
                 "rate = “fast”: expected a number from", "b = “-3”", "scale = “”", "one of cross-entropy, squared",
                 "“colour” is no setting"):
        assert part in message
    defaults = driver.execute_script("return Settings.DEFAULTS")
    assert settings_of(driver) == defaults | {"seed": 7}
    assert "each class needs one; b = 9 is used" in text(lab("#V=9&b=3"), ".lab-message")
    assert "beside the two rare ones; V = 3 is used" in text(lab("#V=2&start=constructed"), ".lab-message")
    lab("#exercises", fresh=True)  # an anchor
    assert settings_of(driver) == defaults and not element(driver, ".lab-message").is_displayed()


def test_divergence_is_reported_with_its_step(lab):
    driver = lab("#loss=squared&rate=0.5")
    begun = driver.execute_script("""const { V, b, skew, d, scale, seed } = Lab.state.settings;
        const counts = Toy.zipfCounts(b, V, skew);
        const start = Toy.start({ counts, width: d, scale, kind: "balanced", seed });
        return { counts, F: [...start.F], W: [...start.W] };""")
    labels = np.repeat(np.arange(4), begun["counts"])
    here = Start(np.reshape(begun["F"], (1, 20, 2)), np.reshape(begun["W"], (1, 2, 4)), labels, (0,))
    step = descend(here, rate=0.5, steps=2000, loss="squared", record=2, device="cpu").diverged[0]
    assert step > 0 and f"Diverged at step {step}:" in text(driver, ".lab-message:not([hidden])")
    assert "cannot be told: the run diverges" in text(driver, "[data-phase=warmup]")
    drawn = driver.execute_script("return Lab.state.view.records.map((record) => record.loss)")
    assert len(drawn) > 2 and max(drawn) < 10 * drawn[0]  # else the curves would be flat but for the last steps


@pytest.mark.parametrize("address", ["#loss=squared&rate=0.5", "#loss=squared&rate=3&scale=3", "#rate=3&scale=3"])
def test_a_run_that_diverges_fills_its_charts_with_what_there_is(lab, address):
    """The drawn steps span the axis, from its left end to its right; a blank canvas has no such line."""
    driver = lab(address)
    steps = driver.execute_script("return Lab.state.view.steps")
    if driver.execute_script("return Lab.state.run.diverged") is None:
        assert steps[-1] == 2000
        return
    assert f"Drawn: steps 0 to {steps[-1]}" in text(driver, ".lab-message:not([hidden])")
    ends = driver.execute_script("return Lab.state.view.steps.map((step) => Lab.curves()[2].at.x(step))")
    left, right = driver.execute_script("const { at } = Lab.curves()[2]; return [at.left, at.right]")
    assert ends[0] == pytest.approx(left) and (len(steps) == 1 or ends[-1] == pytest.approx(right))


def test_the_advised_rate_is_the_limit_that_the_solution_names(lab):
    limit = re.search(r"= (0\.\d+)\$. At 0\.25 all is well", exercises()[7][1])[1]
    for address in ("#loss=squared&rate=0.35", "#loss=squared&rate=0.5"):
        assert f"Try a rate below {limit}" in text(lab(address), ".lab-message:not([hidden])")


def test_the_fall_is_said_to_end_where_rankme_grows_again(lab):
    for address in ("", "#rate=0.0417&b=6&scale=0.001&start=constructed&steps=1000&rankme=uncentred&size=0.2"):
        driver = lab(address)
        script = "return Lab.state.view.records.map((record) => record[Lab.state.settings.rankme])"
        values = np.array(driver.execute_script(script))
        steps = np.array(driver.execute_script("return Lab.state.view.steps"))
        turn = values.argmax()
        lowest = turn + values[turn:].argmin()
        assert values[-1] > 1.002 * values[lowest], "RankMe does not grow again"
        said = text(driver, "[data-phase=compression-seeking]")
        assert f"steps {steps[turn]} to {steps[lowest]}: RankMe falls" in said
        assert f"steps {steps[lowest]} to {steps[-1]}: RankMe grows" in text(driver, "[data-phase=later]")
    outgrown = lab("#b=8&skew=0&scale=0.001&start=constructed&rate=0.0417&steps=300&rankme=uncentred&size=0.2")
    assert "does not last: a fall of 0." in text(outgrown, "[data-phase=compression-seeking]")


@pytest.mark.parametrize("exercise", [4, 5, 9])
def test_a_link_works_a_second_time(lab, exercise):
    driver = lab(fresh=True)
    click = "document.querySelectorAll(`a[href='${arguments[0]}']`)[0].click()"
    part = re.split(r"^### ", (ROOT / "book/lab.md").read_text(), flags=re.MULTILINE)[exercise]
    href = html.unescape(re.search(r'href="(#[^"]+)"', part)[1])
    for _ in range(3):
        driver.execute_script(click, href)
        wait_until(driver, "return Lab.state.frame !== null || Lab.state.cursor > 0")
        done(driver)
        assert shown(driver) == settings_of(driver)["steps"]
        assert driver.execute_script("return document.querySelector('#lab').getBoundingClientRect().top < innerHeight")
        element(driver, ".lab-stage").send_keys("\ue011")  # Home: another moment, the address stays
        driver.execute_script("scrollTo(0, document.body.scrollHeight)")
        assert shown(driver) == 0


def luminance(colour) -> float:
    parts = np.array(colour[:3]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(one, other) -> float:
    """As WCAG 2 defines it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_are_readable_in_the_books_light_and_dark_theme(lab, theme):
    driver = lab("#V=8&b=32&skew=1")
    try:
        driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        done(driver)
        behind = driver.execute_script("return getComputedStyle(document.querySelector('#lab')).backgroundColor")
        behind = [int(part) for part in re.findall(r"\d+", behind)[:3]]
        drawn = driver.execute_script("""const canvas = document.querySelector("canvas[aria-label='RankMe by step']");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), seen = {};
            for (let k = 0; k < data.length; k += 4) seen[data.slice(k, k + 4)] = (seen[data.slice(k, k + 4)] || 0) + 1;
            return Object.entries(seen).map(([pixel, count]) => [...pixel.split(",").map(Number), count]);""")
        clear = sum(count for *_, alpha, count in drawn if alpha == 0)
        assert clear > 0.2 * sum(count for *_, count in drawn), "the paper is not the page's"
        ink = max((one for one in drawn if one[3] == 255), key=lambda one: one[4])
        assert contrast(ink, behind) > 7
        colours = driver.execute_script("return Array.from({ length: 8 }, (_, k) => Plot.colour(k, 8))")
        colours += driver.execute_script("return [Plot.theme().faint]")
        least = 3 if theme == "dark" else 1.9  # WCAG for graphics; the book's palette is paler for rare classes
        for colour in colours:
            assert contrast([int(colour[k : k + 2], 16) for k in (1, 3, 5)], behind) > least, colour
        paper = driver.execute_script("return Plot.theme().paper")
        assert contrast([int(paper[k : k + 2], 16) for k in (1, 3, 5)], behind) < 1.05  # rims of the points
    finally:
        driver.execute_script("delete document.documentElement.dataset.theme")


def test_keys_play_pause_and_step(lab):
    driver = lab()
    stage, root = element(driver, ".lab-stage"), element(driver, "#lab")
    stage.send_keys("\ue011")  # Home
    assert shown(driver) == 0
    stage.send_keys("\ue014")
    assert shown(driver) == 1
    stage.send_keys("\ue014\ue014\ue012")  # two on, one back
    assert shown(driver) == 2
    before = picture(driver, "class vectors and features in the plane")
    stage.send_keys(" ")
    assert root.get_attribute("data-playing") == "true"
    wait_until(driver, "return Lab.state.frames > 5 && Lab.state.cursor > 4")
    stage.send_keys(" ")
    assert root.get_attribute("data-playing") == "false" and shown(driver) > 2
    assert picture(driver, "class vectors and features in the plane") != before
    stage.send_keys("\ue010")  # End
    assert shown(driver) == 2000


def shown(driver) -> int:
    """The step on the page, once the frame that the last key asked for is drawn."""
    wait_until(driver, "return !Lab.state.frame")
    return int(element(driver, "#lab").get_attribute("data-step"))


def test_a_narrow_screen_needs_no_scrolling_sideways(lab):
    driver = lab()
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver.refresh()
        done(driver)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        widths = driver.execute_script("return [...document.querySelectorAll('#lab canvas, #lab input, #lab button')]"
                                       ".map((node) => node.getBoundingClientRect().right)")
        assert max(widths) <= 360
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_label(lab):
    unlabelled = lab().execute_script("return [...document.querySelectorAll('#lab input, #lab select, #lab button')]"
                                      ".filter((node) => !node.labels?.length && !node.getAttribute('aria-label'))"
                                      ".map((node) => node.outerHTML)")
    assert unlabelled == []


def test_a_buttons_name_contains_what_is_seen_on_it(lab):
    """axe's label-content-name-mismatch: who speaks to a computer says what they read. Signs are hidden from it."""
    names = lab().execute_script("""return [...document.querySelectorAll("#lab button")].map((node) => {
        const seen = node.cloneNode(true);
        seen.querySelectorAll("[aria-hidden=true]").forEach((sign) => sign.remove());
        return [seen.textContent, node.getAttribute("aria-label")];
    })""")
    assert len(names) >= 6
    for seen, name in names:
        assert name and seen in name and (not seen or seen.isascii())


# The exercises


def number_or_name(text: str) -> int | float | str:
    return int(text) if text.isdigit() else float(text) if re.fullmatch(r"[\d.]+", text) else text


@functools.cache
def exercises() -> dict[int, tuple[list[dict], str]]:
    """The settings that the links of each exercise open, and its solution in one line."""
    literal = re.search(r"DEFAULTS = (\{.*?\});", (LAB / "settings.js").read_text(), re.DOTALL)[1]
    defaults = json.loads(re.sub(r"(\w+):", r'"\1":', literal))
    found = {}
    for part in re.split(r"^### ", (ROOT / "book/lab.md").read_text(), flags=re.MULTILINE)[1:]:
        links = [dict(pair.split("=") for pair in html.unescape(link).split("&"))
                 for link in re.findall(r'<a\s+href="#([^"]+)">', part)]
        settings = [defaults | {key: number_or_name(value) for key, value in link.items()} for link in links]
        found[int(part.split(".")[0])] = (settings, " ".join(part.split("Solution")[1].split()))
    return found


@functools.cache
def counts_of(b: int, classes: int, skew: float) -> tuple[int, ...]:
    """As zipfCounts of toy.js; the browser's test above is of that one."""
    exact = (b - classes) * np.arange(1, classes + 1.0) ** -skew / (np.arange(1, classes + 1.0) ** -skew).sum()
    counts = 1 + np.floor(exact).astype(int)
    counts[np.argsort(np.floor(exact) - exact, kind="stable")[: b - counts.sum()]] += 1
    return tuple(int(count) for count in counts)


def seeds_of(exercise: int, link: int = 0) -> tuple[Trajectories, Phases]:
    """64 seeds of `reptrace.theory` in the setting of an exercise's link."""
    setting = exercises()[exercise][0][link]
    runs = descended(*(setting[name] for name in ("b", "V", "skew", "d", "scale", "start", "rate", "steps", "loss")))
    return runs, phases_of(runs.steps, getattr(runs, f"rankme_{setting['rankme']}"), setting["size"] / 100)


@functools.cache
def descended(b, classes, skew, width, scale, begin, rate, steps, loss) -> Trajectories:
    counts = counts_of(b, classes, skew)
    begun = (constructed(counts, width, jitter=scale, seeds=64) if begin == "constructed" else
             start(counts, width, scale=scale, balanced=begin == "balanced", seeds=64))
    return descend(begun, rate=rate, steps=steps, loss=loss, record=120, keep_weights=True, device="cpu")


def says(exercise: int, *parts: str) -> None:
    for part in parts:
        assert part in exercises()[exercise][1], f"solution {exercise} does not say {part!r}"


def test_solution_1_equal_classes():
    runs, phases = seeds_of(1)
    assert not phases.shows_fall.any() and np.abs(runs.rankme_centred[:, -1] - 2).max() < 0.01
    assert 0.55 < phases.shows_collapse.mean() < 0.65
    says(1, "of 64 seeds none shows a later fall", "about six seeds of ten")
    runs, phases = seeds_of(1, 1)
    assert counts_of(8, 4, exercises()[1][0][1]["skew"]) == (2, 2, 2, 2) and not phases.shows_fall.any()
    falls = phases.shows_expansion & phases.shows_any_fall & turns_late(phases.any_turn, runs.loss)
    says(1, f"in {falls.sum()} of 64 seeds, by {100 * np.median(phases.any_fall[falls]):.1f} % in the median")


@pytest.mark.parametrize("link", [0, 1])
def test_solution_2_no_bottleneck(link):
    runs, phases = seeds_of(2, link)
    assert not phases.shows_fall.any() and runs.rankme_centred[:, -1].max() < 3
    says(2, "of 64 seeds none shows a fall")


def test_solution_3_one_class_has_nine_tenths():
    runs, _ = seeds_of(3)
    lowest, usual = (np.median(r.rankme_centred.min(1)) for r in (runs, seeds_of(5)[0]))
    says(3, f"{lowest:.2f} in the median of 64 seeds", f"against {usual:.2f} in the first setting")
    assert counts_of(40, 4, 5.0)[0] == 36 and runs.rankme_centred[:, -1].min() > 1.85


def test_solution_4_the_largest_class_is_first():
    runs, phases = seeds_of(4)
    lengths = np.linalg.norm(runs.classifier, axis=2)[np.arange(64), np.maximum(phases.collapse_end, 0)]
    says(4, f"in {(lengths.argmax(1) == 0).sum()} of 64 seeds")
    runs, phases = seeds_of(1)  # equal classes: none is favoured beyond chance, p = 1/4, four standard errors
    lengths = np.linalg.norm(runs.classifier, axis=2)[np.arange(64), np.maximum(phases.collapse_end, 0)]
    assert (np.bincount(lengths.argmax(1), minlength=4) < 16 + 4 * np.sqrt(12)).all()


def test_solution_5_the_fall_is_rare():
    _, phases = seeds_of(5)
    assert phases.shows_collapse.mean() > 0.9 and phases.shows_expansion.all()
    says(5, f"of 64 seeds in this setting {phases.shows_fall.sum()} do")


def test_solution_6_squared_error_falls_to_what_the_counts_say():
    runs, phases = seeds_of(6)
    first, second, *rest = counts_of(20, 4, 1.5)
    features = np.zeros((20, 2))
    features[:first, 0], features[first : first + second, 1] = first**-0.25, second**-0.25
    shares = np.linalg.eigvalsh(np.cov(features.T))
    expected = np.exp(-(shares / shares.sum() * np.log(shares / shares.sum())).sum())
    np.testing.assert_allclose(runs.rankme_centred[:, -1], expected, atol=0.003)  # a rate of 0.05, after 2,000 steps
    np.testing.assert_allclose(runs.loss[:, -1], sum(rest) / 2, rtol=1e-6)
    says(6, "By centred RankMe", f"in {phases.shows_fall.sum()} of 64 seeds", f"falls to {expected:.2f}",
         f"{sum(rest) / 2}")


def test_solution_7_the_limit_of_the_rate():
    largest = counts_of(20, 4, 1.5)[0]
    calm, leaping, gone = (seeds_of(7, link)[0] for link in range(3))
    rates = [float(setting["rate"]) for setting in exercises()[7][0]]
    assert rates[0] < 1 / np.sqrt(largest) < rates[1]
    says(7, f"{1 / np.sqrt(largest):.2f}", "in all of 64 seeds")
    np.testing.assert_allclose(calm.loss[:, -1], 2.5, rtol=1e-6)
    assert (leaping.loss[:, -1] > 2.6).all() and (leaping.diverged < 0).all() and (gone.diverged > 0).all()


def test_solution_8_what_balance_keeps():
    balanced, free, fast = (seeds_of(8, link)[0] for link in range(3))

    def apart(runs):
        return np.abs(runs.feature_values - runs.classifier_values).max((1, 2)) / runs.feature_values.max((1, 2))

    assert apart(balanced).max() < 0.04 and np.median(apart(fast)) > 3 * np.median(apart(balanced))
    F, W = free.features, free.classifier
    kept = F.swapaxes(2, 3) @ F - W @ W.swapaxes(2, 3)
    drift = np.abs(kept - kept[:, :1]).max((1, 2, 3))
    assert (drift < 0.05 * free.feature_values[:, -1, 0] ** 2).all()


def test_solution_9_the_start_of_fig_4():
    usual, coarse, longer, jittered, centred = (seeds_of(9, link)[1] for link in range(5))
    says(9, f"of 64 seeds {usual.lasting.sum()} show all three phases",
         f"a fall of {100 * np.median(usual.any_fall):.1f} % in the median")
    says(9, f"{(jittered.lasting | jittered.passing).sum()} of 64 shows the phases", "By changes of 2 % none does",
         "RankMe has grown again in all 64", "it does not collapse first, so that none shows all three phases")
    assert not (coarse.lasting | coarse.passing).any() and longer.passing.all()
    assert not (centred.shows_collapse | centred.all_three).any()
    assert counts_of(6, 4, exercises()[9][0][0]["skew"]) == (2, 2, 1, 1)
    runs = seeds_of(9)[0]  # the fall begins as the two rare classes part, by the cosine of their weights
    one, two = runs.classifier[..., 2], runs.classifier[..., 3]
    cosine = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
    at = usual.turn[usual.lasting]
    assert np.median(cosine[usual.lasting][np.arange(len(at)), at // 2]) > 0.9
    assert np.median(cosine[usual.lasting][:, -1]) < 0.3


@pytest.mark.parametrize("exercise", range(1, 10))
def test_the_links_of_an_exercise_open_the_lab_as_its_solution_says(lab, exercise):
    driver, found = lab(), []
    for number, setting in enumerate(exercises()[exercise][0]):
        click = """const titles = [...document.querySelectorAll("h3")], [name, number] = arguments;
            const section = titles.find((title) => title.textContent.startsWith(name)).parentElement;
            section.querySelectorAll("a[href*='=']")[number].click();"""
        after_the_address_changes(driver, click, f"{exercise}.", number)
        done(driver)
        assert settings_of(driver) == setting
        alerts = driver.execute_script("return document.querySelectorAll('[role=alert]:not([hidden])').length")
        assert alerts == (exercise == 7 and number > 0)
        found.append(driver.execute_script("""return { diverged: Lab.state.run.diverged,
            phases: Lab.state.view.spans.map((span) => span.phase), last: Lab.state.view.records.at(-1).centred,
            loss: Lab.state.view.records.at(-1).loss }"""))
    fall = "compression-seeking"
    assert {1: lambda one: fall not in one["phases"] and one["last"] > 1.99,
            2: lambda one: fall not in one["phases"] and one["last"] < 3,
            3: lambda one: one["phases"][:2] == ["warmup", "entropy-seeking"] and one["last"] > 1.85,
            4: lambda one: one["phases"][0] == "warmup",
            5: lambda one: one["phases"][:3] == ["warmup", "entropy-seeking", fall],
            6: lambda one: fall in one["phases"] and abs(one["last"] - 1.70) < 0.005,
            7: lambda one: not one["diverged"] and abs(one["loss"] - 2.5) < 1e-6,
            8: lambda one: one["diverged"] is None,
            9: lambda one: one["phases"][:3] == ["warmup", "entropy-seeking", fall]}[exercise](found[0])
    if exercise == 7:
        assert found[1]["loss"] > 2.6 and found[1]["diverged"] is None and found[2]["diverged"]
