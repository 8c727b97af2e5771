"""Write the demo's numbers and picture in README and docs, or say which numbers are stale.

python scripts/results.py run      train the demo anew, and write
python scripts/results.py write    write from the demo that was trained last
python scripts/results.py check    say which numbers are of another program than this one

Stored beside the pages, in docs/results/demo: the run's own tables, and what made them. A change
that moves numbers moves the digests in tests/golden, so their SHA-256 tells whether the program
still is the one that made the tables.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tomllib
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import tomli_w
from PIL import Image

from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.paper.figures import overall_figure, panels_figure
from grandrounds.report.paper.publish import typical
from grandrounds.report.paper.style import as_files, house_style

ROOT = Path(__file__).parents[1]
RUN = ROOT / "build" / "results" / "demo"
STORED = ROOT / "docs" / "results" / "demo"
PICTURE = ROOT / "docs" / "images" / "demo.png"
PAGES = ("README.md", "docs/reference/results.md")
TABLES = ("arms.csv", "sites.csv")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
WIDTH = 1140  # pixels of the picture
SHOWN = 2  # hospitals in it
GOLDEN = ("fedavg", "pflsynth-wide")  # methods of the demo whose weights have golden digests


def main(command: str) -> int:
    match command:
        case "run":
            shutil.rmtree(RUN, ignore_errors=True)
            program = Path(sys.executable).with_name("grandrounds")
            subprocess.run([program, "demo", "--out", RUN], check=True)
            write()
        case "write":
            write()
        case _:
            return check()
    return 0


def write() -> None:
    """Store the run's tables, and write the picture and the marked blocks from them."""
    STORED.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        shutil.copyfile(RUN / "tables" / name, STORED / name)
    (STORED / "made.toml").write_text(tomli_w.dumps(program()), "utf-8")
    stacked(drawn()).save(PICTURE, optimize=True)
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text("utf-8")), "utf-8")


def program() -> dict[str, str]:
    """Return what the numbers depend on, as far as a file can tell."""
    golden = json.loads((ROOT / "tests" / "golden" / "digests.json").read_text("utf-8"))
    weights = [{name: each["digests"][name] for name in GOLDEN} for each in golden]
    study = (ROOT / "src" / "grandrounds" / "study" / "examples" / "demo.toml").read_bytes()
    return {
        "command": "grandrounds demo",
        "grandrounds": version("grandrounds"),
        "torch": version("torch"),
        "monai": version("monai"),
        "study": sha256(study).hexdigest(),
        "golden": sha256(json.dumps(weights).encode()).hexdigest(),
    }


def drawn() -> list[Image.Image]:
    """Draw the arms' scores, and what they make of a patient of each of the first hospitals."""
    facts = read_facts(RUN)
    with house_style():
        chosen = typical(facts, include_images=False)[:SHOWN]
        figures = [overall_figure(facts), panels_figure(facts, chosen)]
        files = [as_files(figure)[".png"] for figure in figures if figure]
    return [Image.open(BytesIO(file)).convert("RGB") for file in files]


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures one below the other, as wide as a page."""
    widest = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (widest, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, ((widest - picture.width) // 2, top))
        top += picture.height
    return whole.resize(
        (WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS
    )


def filled(page: str) -> str:
    """Return a page with its marked blocks made from the stored tables."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}{found[3]}", page)


def rows(name: str) -> list[dict[str, str]]:
    with (STORED / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] == "psnr"]


def arms_block() -> str:
    """Every arm: its mean over hospitals, its interval, its worst hospital."""
    lines = ["| arm | PSNR, dB | 95 % interval | worst hospital |", "|---|---|---|---|"]
    lines += [
        f"| {row['title']} | {float(row['mean']):.2f} | {float(row['interval_low']):.2f} to "
        f"{float(row['interval_high']):.2f} | {row['worst_site']}, "
        f"{float(row['worst_site_mean']):.2f} |"
        for row in rows("arms.csv")
    ]
    return "\n".join(lines) + "\n"


def sites_block() -> str:
    """Every arm at every hospital and task."""
    found = rows("sites.csv")
    arms = list(dict.fromkeys(row["title"] for row in found))
    means = {(row["site"], row["task"], row["title"]): float(row["mean"]) for row in found}
    places = list(dict.fromkeys((row["site"], row["task"]) for row in found))
    lines = [f"| hospital | task | {' | '.join(arms)} |", "|---" * (2 + len(arms)) + "|"]
    for site, task in places:
        cells = " | ".join(f"{means[site, task, arm]:.2f}" for arm in arms)
        lines.append(f"| {site} | {task.replace('->', ' to ')} | {cells} |")
    return "\n".join(lines) + "\n"


BLOCKS = {"demo/arms": arms_block, "demo/sites": sites_block}


def check() -> int:
    """Print whether this program is the one that made the tables; return 1 where it is not."""
    made = tomllib.loads((STORED / "made.toml").read_text("utf-8"))
    changed = [name for name, value in program().items() if made.get(name) != value]
    if changed:
        print(f"demo: stale; changed since it was made: {', '.join(changed)}; make results")
    else:
        print("demo: made by this program")
    print(f"{PAGES[1]}: nothing tells whether these tables are stale, for none is stored:")
    for title in without_stored_tables((ROOT / PAGES[1]).read_text("utf-8")):
        print(f"  {title}")
    return 1 if changed else 0


def without_stored_tables(page: str) -> list[str]:
    """Return the titles of a page's sections that hold a table written by hand."""
    sections = re.split(r"^#{2,3} ", BLOCK.sub("", page), flags=re.MULTILINE)[1:]
    return [section.partition("\n")[0] for section in sections if "|---" in section]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "check"))
