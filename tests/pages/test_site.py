"""The documentation site builds without a warning, and a real browser finds its pages whole, without reaching another server.

The browser is Debian's Chromium. Without it, the tests are skipped, unless CUPYCORR_REQUIRE_BROWSER is 1.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import waiting

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
WIDTHS = (400, 1400)  # pixels
REQUIRED = os.environ.get("CUPYCORR_REQUIRE_BROWSER") == "1"
in_browser = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="there is no Chromium")

# The links, the names of targets of links, and the pictures that were not loaded, of the page that is open.
CONTENT = """() => ({
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
    targets: [...document.querySelectorAll("[id], a[name]")].map(target => target.id || target.name),
    broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src),
})"""
FITS = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The address of a server of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(address):
    """A tab of the browser, whose attribute ``problems`` collects errors of the console and of loading."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM or "chromium", args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page()
        tab.set_default_timeout(1000 * waiting.STUCK)
        tab.problems = []
        tab.on("console", lambda message: message.type == "error" and tab.problems.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: tab.problems.append(f"error: {error}"))
        tab.on("request", lambda sent: sent.url.startswith((address, "data:")) or tab.problems.append(f"foreign: {sent.url}"))
        tab.on("response", lambda got: got.status >= 400 and tab.problems.append(f"status {got.status}: {got.url}"))
        yield tab
        browser.close()


def visit(page, url):
    """Return the content of a page, after noting among its problems what is missing or too wide."""
    page.goto(url)
    found = page.evaluate(CONTENT)
    page.problems += [f"{url}: no picture: {source}" for source in found["broken"]]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        try:
            page.wait_for_function(FITS, timeout=30_000)  # after transitions of the layout, which take a quarter of a second
        except playwright.TimeoutError:
            page.problems.append(f"{url}: wider than {width} pixels")
    return found


def broken_links(visited, site, address):
    """Yield the internal links that lead to no file, or to no target in their page."""
    for here, found in visited.items():
        for link in found["links"]:
            if link.startswith(address):
                url, anchor = urldefrag(link)
                url += "index.html" if url.endswith("/") else ""
                exists = (site / url.removeprefix(address)).is_file()
                if not exists or (anchor and url in visited and anchor not in visited[url]["targets"]):
                    yield f"{here} -> {link}"


# One test, because each worker of the suite that runs a part of it would build and visit the whole site.
@in_browser
def test_pages_have_no_error_fit_into_narrow_and_wide_windows_and_their_pictures_and_links_are_there(site, address, page):
    pages = [file.relative_to(site) for file in sorted(site.rglob("*.html")) if file.name != "404.html"]
    assert len(pages) > 20
    visited = {f"{address}{name}": visit(page, f"{address}{name}") for name in pages}
    assert not page.problems
    assert not [*broken_links(visited, site, address)]


@in_browser
def test_the_search_box_finds_a_function_in_the_reference(page, address):
    page.problems.clear()
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"{address}index.html")
    page.locator(".md-search__input").click()
    page.keyboard.type("correlation_soft_argmax")
    result = page.locator(".md-search-result__link[href*='api/']").first
    result.wait_for()
    result.click()
    page.wait_for_url("**/api/*")
    assert not page.problems


def test_every_public_object_is_in_the_reference_once():
    modules = ("cupycorr", "cupycorr.compat", "cupycorr.dask", "cupycorr.torch", "cupycorr.variants")
    public = {f"{name}.{each}" for name in modules for each in importlib.import_module(name).__all__}
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: (.*)$", pages, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert public <= set(listed)


@pytest.mark.parametrize("wanted", ["install.md", "migrating.md", "benchmarks.md", "tutorials/variants.md", "variants.md"])
def test_what_a_new_user_looks_for_is_at_most_three_clicks_in_the_text_from_the_front_page(wanted):
    docs = ROOT / "docs"
    clicks, waiting = {docs / "index.md": 0}, deque([docs / "index.md"])
    while waiting:
        here = waiting.popleft()
        for link in re.findall(r"\]\(([^)#:]+\.md)", here.read_text(encoding="utf-8")):
            found = (here.parent / link).resolve()
            if found not in clicks:
                clicks[found] = clicks[here] + 1
                waiting.append(found)
    assert clicks[docs / wanted] <= 3
