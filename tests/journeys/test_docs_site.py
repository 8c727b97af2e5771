"""The documentation site: built from the repository as it is, whole, and sufficient to itself."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "grandrounds"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once in strict mode: a broken link or an unknown name fails."""
    if importlib.util.find_spec("zensical") is None:
        reason = "the site builder is not installed: make .venv/docs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, ROOT / "scripts" / "docs.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def attributes(page: Path, tags: dict[str, str]) -> Iterator[str]:
    """List what a page names in one attribute of each kind of tag."""
    values: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            value = dict(attrs).get(tags.get(tag, ""))
            if value:
                values.append(value)

    Reader().feed(page.read_text("utf-8"))
    yield from values


def test_every_page_of_docs_is_in_the_navigation(site: Path):
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    home = (site / "index.html").read_text("utf-8")
    navigation = home.partition("md-nav--primary")[2].partition("<article")[0]
    linked = {Path(link.split("#")[0]) for link in re.findall(r'href="([^"]+)"', navigation)}
    assert pages - linked == set()


def test_every_public_module_is_in_the_reference(site: Path):
    reference = "".join(page.read_text("utf-8") for page in site.glob("api/*.html"))
    modules = {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in PACKAGE.glob("*/**/*.py")
    }
    assert {name for name in modules if f'id="{name}"' not in reference} == set()
    assert re.search(r'id="grandrounds[a-z_.]*\.GrandRoundsError"', reference)


def test_every_public_name_has_its_signature_and_docstring_on_one_page(site: Path):
    page = (site / "reference" / "api.html").read_text("utf-8")
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text("utf-8"), re.M)
    assert len(named) > 20
    for name in named:
        described = page.partition(f'id="{name}"')[2].partition('<h3 id="')[0]
        assert "<p>" in described, name
    assert 'id="grandrounds.LocalRound.network"' in page


def test_a_word_is_found_by_the_search_in_the_glossary(site: Path):
    index = json.loads((site / "search.json").read_text("utf-8"))
    found = [item["location"] for item in index["items"] if "quorum" in item["text"].lower()]
    assert any(location.startswith("reference/glossary.html") for location in found)
    assert (site / "search.js").is_file()  # the same, for pages opened from a disk


def test_no_page_loads_anything_from_elsewhere(site: Path):
    pages = sorted(site.glob("**/*.html"))
    assert pages
    for page in pages:
        for address in attributes(page, LOADED):
            assert not re.match(r"([a-z]+:)?//", address), f"{page.name} loads {address}"
            if page.name != "404.html" and address.partition(":")[0] != "data":
                assert (page.parent / address.split("#")[0].split("?")[0]).exists(), address
    for style in site.glob("**/*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text("utf-8")), style.name
