"""Build the documentation site: python scripts/docs.py [FOLDER], by default build/docs.

The pages are docs/, the README as the home page, the changelog, the benchmarks' results, and a
reference of every package under src/grandrounds, which is read and not imported.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tomli_w

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "grandrounds"
FROM_ELSEWHERE = {  # pages of the site that are files outside docs/
    "README.md": "index.md",
    "CHANGELOG.md": "reference/changelog.md",
    "benchmarks/RESULTS.md": "reference/benchmarks.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Write the pages beside the site, then let the builder run in strict mode."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs").resolve()
    source = site.with_name(site.name + "-source")
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("*.md"))
    for page, text in {**written_pages(), **reference_pages()}.items():
        (source / "docs" / page).parent.mkdir(parents=True, exist_ok=True)
        (source / "docs" / page).write_text(text, "utf-8")
    (source / "zensical.toml").write_text(tomli_w.dumps(configuration()), "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    status = subprocess.run(command, cwd=source, check=False).returncode
    if status == 0:
        (source / "site").rename(site)
    return status


def configuration() -> dict[str, object]:
    """Read zensical.toml, and add what is found rather than listed."""
    whole = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))
    project = whole["project"]
    project["nav"][-1]["Reference"] += [
        {"Benchmarks": "reference/benchmarks.md"},
        "reference/changelog.md",
    ]
    project["nav"] += [
        {"Decisions": ["decisions/index.md", *(f"decisions/{p.name}" for p in decisions())]},
        {"API": list(reference_pages())},
    ]
    project["plugins"]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(PACKAGE.parent)]
    return whole


def written_pages() -> dict[str, str]:
    """Return the text of every page that a person wrote, its links made the site's."""
    files = {str(p.relative_to(ROOT)): str(p.relative_to(ROOT / "docs")) for p in documents()}
    places = {**FROM_ELSEWHERE, **files, "docs/decisions": "decisions/index.md"}
    pages = {
        places[file]: linked((ROOT / file).read_text("utf-8"), file, places)
        for file in [*FROM_ELSEWHERE, *files]
    }
    titles = [f"- [{title_of(p)}]({p.name})\n" for p in decisions()]
    pages["decisions/index.md"] = "# Decisions\n\nWhy it is built this way.\n\n" + "".join(titles)
    return pages


def documents() -> list[Path]:
    """List the pages of docs/."""
    return sorted((ROOT / "docs").rglob("*.md"))


def decisions() -> list[Path]:
    """List the decision records in order."""
    return [p for p in documents() if p.parent.name == "decisions"]


def title_of(page: Path) -> str:
    """Return a page's first heading."""
    return page.read_text("utf-8").splitlines()[0].lstrip("# ")


def linked(text: str, file: str, places: Mapping[str, str]) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(link_in(file, places), part) for part in parts[::2]]
    return "".join(parts)


def link_in(file: str, places: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    """Make the rule for the links of one file."""
    page = places[file]

    def new(found: re.Match[str]) -> str:
        mark, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if not target or target.startswith(("http:", "https:")):
            return found[0]
        path = os.path.normpath(Path(file).parent / target)
        if not mark and path not in places:
            return f"{words} (`{path}`)"  # a file of the repository that is no page
        place = places.get(path, path.removeprefix("docs/"))
        return f"{mark}[{words}]({os.path.relpath(place, Path(page).parent)}{anchor})"

    return new


def reference_pages() -> dict[str, str]:
    """Return a page for the package itself and one for each package in it."""
    packages = [p.parent for p in sorted(PACKAGE.glob("*/__init__.py"))]
    contents = [f"| [`{p.name}`]({p.name}.md) | {summary(p)} |\n" for p in packages]
    top = ["| package | holds |\n|---|---|\n", *contents, *described(PACKAGE.glob("*.py"), level=2)]
    pages = {"api/index.md": "# API reference\n\n" + "".join(top)}
    for package in packages:
        body = described(package.rglob("*.py"), level=1)
        pages[f"api/{package.name}.md"] = "".join(body)
    return pages


def summary(package: Path) -> str:
    """Return the first line of a package's docstring."""
    tree = ast.parse((package / "__init__.py").read_text("utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0].replace("|", r"\|")


def described(files: Iterator[Path], *, level: int) -> list[str]:
    """Ask for the description of each module: a package first, at this level of heading."""
    modules = sorted(module_of(file) for file in files)
    shown = [name for name in modules if not any(p.startswith("_") for p in name.split("."))]
    return [
        f"\n::: {name}\n    options:\n      heading_level: {level if name == shown[0] else 2}\n"
        for name in shown
    ]


def module_of(file: Path) -> str:
    """Return the dotted name of a module."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


if __name__ == "__main__":
    sys.exit(main())
