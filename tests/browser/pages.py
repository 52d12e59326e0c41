#!/usr/bin/env python3
"""Opens the pages of paring in a real browser, uses them and takes screenshots.

    python3 tests/browser/pages.py --paring target/release/paring [--shots DIR] [--data testdata]

Makes pages of the models in testdata, and of one whose names try to break out of the page, and
opens each at 1280 and at 400 pixels, light and dark. No page may log an error, ask for anything
but itself, show a dialog, be wider than the window or weigh more than 5 MB; rows must open,
columns sort, searches find, and a click on a change must show it in both graphs.

The browser is the one of the variable PARING_BROWSER, or the first Chromium on the path, or the
one that playwright downloads. Where none can be had, the script says so and checks nothing.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import onnx
from playwright.sync_api import Browser, Error, Page, Playwright, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
MOST_BYTES = 5_000_000
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e"


def launch(playwright: Playwright) -> Browser | None:
    """A headless browser, wherever it comes from."""
    named = os.environ.get("PARING_BROWSER")
    found = [named] if named else [path for name in BROWSERS if (path := shutil.which(name))]
    # A browser that runs as root, as in containers, has no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    for path in found:
        return playwright.chromium.launch(executable_path=path, args=arguments)
    for install in (False, True):
        if install:
            command = [sys.executable, "-m", "playwright", "install", "chromium"]
            if subprocess.run(command, capture_output=True, timeout=600).returncode != 0:
                return None
        try:
            return playwright.chromium.launch(args=arguments)
        except Error:
            continue
    return None


def hostile(model: pathlib.Path, target: pathlib.Path) -> None:
    """A copy of a model in which every operator, value and the producer has a hostile name."""
    proto = onnx.load(model)
    proto.producer_name = HOSTILE
    names: dict[str, str] = {"": ""}
    rename = lambda name: names.setdefault(name, f"{HOSTILE}{len(names)}")
    graph = proto.graph
    for node in graph.node:
        node.name = rename(node.name or node.output[0])
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = rename(value.name)
    del graph.value_info[:]
    onnx.save(proto, target)


def make_pages(paring: str, data: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """All pages, by name."""

    def run(*arguments: object, codes: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run([paring, *map(str, arguments), "-q"], capture_output=True, text=True)
        if done.returncode not in codes:
            raise SystemExit(f"paring {arguments}: exit {done.returncode}\n{done.stderr}")

    pages = {}
    net = data / "fmnist_mobilenet_bn.onnx"
    bad = folder / "hostile.onnx"
    hostile(net, bad)
    for name, model in (("net", net), ("hostile", bad)):
        result = folder / f"{name}-small.onnx"
        pages[f"inspect-{name}"] = folder / f"inspect-{name}.html"
        run("inspect", model, "--profile", "--html", pages[f"inspect-{name}"])
        pages[f"optimize-{name}"] = folder / f"optimize-{name}.html"
        run("optimize", model, "-o", result, "--recipe", "prune", "--no-time",
            "--report", pages[f"optimize-{name}"])
        pages[f"diff-{name}"] = folder / f"diff-{name}.html"
        run("diff", model, result, "--html", pages[f"diff-{name}"], codes=(1,))
    transformer, result = data / "langid_transformer.onnx", folder / "transformer.onnx"
    pages["optimize-transformer"] = folder / "optimize-transformer.html"
    run("optimize", transformer, "-o", result, "--data", data / "langid_calib.npz",
        "--eval", data / "langid_test.npz", "--report", pages["optimize-transformer"])
    pages["diff-transformer"] = folder / "diff-transformer.html"
    run("diff", transformer, result, "--html", pages["diff-transformer"], codes=(1,))
    return pages


class Failure(Exception):
    """A page does not do what it must."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Failure(what)


def use_table(page: Page, table: str) -> None:
    """Opens a row, sorts by a column, searches."""
    body = page.locator(f"#{table} tbody.opens:visible").first
    body.locator("button.opener").click()
    expect(body.locator("td.detail").is_visible(), f"a row of {table} does not open")
    body.locator("button.opener").click()
    expect(not body.locator("td.detail").is_visible(), f"a row of {table} does not close")
    first = lambda: page.locator(f"#{table} tbody").first.inner_text()
    column = page.locator(f"#{table} th.n:visible button").first
    column.click()
    falling = first()
    column.click()
    expect(first() != falling, f"{table} does not sort")
    field = page.locator(f'.tools[data-for="{table}"] input')
    total = page.locator(f"#{table} tbody").count()
    field.fill("no such thing")
    expect(page.locator(f"#{table} tbody:visible").count() == 0, f"the search of {table} finds nothing")
    field.fill("conv")
    hits = page.locator(f"#{table} tbody:visible").count()
    expect(0 < hits <= total, f"the search of {table} finds no conv")
    field.fill("")


def use_viewer(page: Page, narrow: bool) -> None:
    """Clicks changes, operators and folded boxes, zooms and searches."""
    page.locator("#viewer").scroll_into_view_if_needed()
    page.wait_for_selector("#viewer svg .cell:visible")
    for button in page.locator("#viewer .changes button:visible").all()[:12]:
        button.click()
        expect(button.get_attribute("aria-pressed") == "true", "a change is not marked")
        for side in (0, 1):
            if narrow:
                page.locator("#viewer .tabs button").nth(side).click()
            expect(page.locator("#viewer .pane").nth(side).is_visible(), "a side is hidden")
        expect(page.locator("#viewer svg .cell").count() > 0, "nothing is drawn")
    page.locator("#viewer .changes button[data-change]").first.click()
    pane = page.locator("#viewer .pane:visible").last
    pane.locator(".cell[data-node]").first.dispatch_event("click")
    expect(page.locator("#viewer .details h3").inner_text(), "an operator has no details")
    drawn = page.locator("#viewer svg .cell").count()
    folded = pane.locator(".cell.folded")
    if folded.count():
        folded.first.dispatch_event("click")
        expect(page.locator("#viewer svg .cell").count() > drawn, "a box does not unfold")
    view = lambda: pane.locator("svg > g").get_attribute("transform")
    before = view()
    page.locator("#viewer .zoom-in").click()
    expect(view() != before, "the view does not zoom")
    before = view()
    box = pane.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 80, steps=4)
    page.mouse.up()
    expect(view() != before, "the view does not move")
    both = page.locator("#viewer .pane > svg > g").evaluate_all(
        "all => all.map(g => g.getAttribute('transform'))")
    expect(both[0] == both[1], "the two sides do not move together")
    search = page.locator("#viewer input[type=search]")
    search.fill("no such thing")
    expect(page.locator("#viewer .changes button[data-change]:visible").count() == 0,
           "the search of changes finds nothing")
    search.fill("")
    expect(page.locator("#viewer .changes button[data-change]:visible").count() > 0,
           "changes don't come back")


def check(browser: Browser, name: str, path: pathlib.Path, shots: pathlib.Path) -> int:
    """Checks one page in every form; gives the number of failures."""
    failures = 0
    size = path.stat().st_size
    if size > MOST_BYTES:
        print(f"FAIL {name}: {size} bytes")
        failures += 1
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            trouble: list[str] = []
            page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
            page.on("pageerror", lambda e: trouble.append(str(e)))
            page.on("dialog", lambda d: (trouble.append(f"dialog: {d.message}"), d.dismiss()))
            page.on("request", lambda r: r.url != path.as_uri() and trouble.append(f"asked for {r.url}"))
            where = f"{name} at {width} px, {scheme}"
            try:
                page.set_default_timeout(10_000)
                page.goto(path.as_uri())
                wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                expect(wider <= 0, f"{wider} px wider than the window")
                page.screenshot(path=shots / f"{name}-{width}-{scheme}.png", full_page=True)
                if name.startswith("inspect"):
                    use_table(page, "layers-table")
                else:
                    use_viewer(page, width < 720)
                page.locator("#theme").click()
                other = page.evaluate("document.documentElement.style.colorScheme")
                expect(other == ("dark" if scheme == "light" else "light"), "the theme does not change")
            except (Failure, Error) as e:
                trouble.append(str(e).splitlines()[0])
            page.close()
            for text in trouble:
                print(f"FAIL {where}: {text}")
            failures += len(trouble)
    if failures == 0:
        print(f"ok   {name}: {size / 1000:.0f} kB")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paring", required=True)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("testdata"))
    parser.add_argument("--shots", type=pathlib.Path, help="where screenshots go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            print("SKIPPED: no browser can be had, so NO PAGE WAS CHECKED; install chromium")
            return 0
        folder = pathlib.Path(temporary)
        shots = arguments.shots or folder
        shots.mkdir(parents=True, exist_ok=True)
        pages = make_pages(arguments.paring, arguments.data.resolve(), folder)
        failed = [name for name, path in pages.items() if check(browser, name, path, shots)]
        browser.close()
    print(f"{len(pages) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
