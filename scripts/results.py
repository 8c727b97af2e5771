"""Write the numbers of runs in README and docs, or say which numbers are stale.

python scripts/results.py run [demo|depth|wide]      train anew what was chosen, and write
python scripts/results.py write [demo|depth|wide]    write from what was trained last
python scripts/results.py keep [wide]                pack the finished runs of one that goes on
python scripts/results.py check                      say which numbers are of another program

`demo` is the main job; `depth` compares how deep arms are trained, over three seeds, and `wide` the
same at 128 pixels, with one seed so far, for it takes an hour for each: what `keep` has packed is
not trained again. Stored beside
the pages, in docs/results: each one's own tables, and what made them. A change that moves numbers
moves the digests in tests/golden, so their SHA-256, by kind of processor, tells whether the program
still is the one that made the tables.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import tomli_w
from PIL import Image

from grandrounds.core.run_folder import RunFolder
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.paper.figures import overall_figure, panels_figure
from grandrounds.report.paper.publish import typical
from grandrounds.report.paper.style import as_files, house_style

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "src" / "grandrounds" / "study" / "examples"
PICTURE = ROOT / "docs" / "images" / "demo.png"
PAGES = ("README.md", "docs/reference/results.md")
TABLES = ("arms.csv", "sites.csv", "pairs.csv", "costs.csv")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
WIDTH = 1140  # pixels of the picture
SHOWN = 2  # hospitals in it
FLAGSHIP = "pflsynth@relay:split=wide:topology.groups=4"
TWO_GROUPS = "pflsynth@relay:split=wide:topology.groups=2"
STAR, PLAIN = "pflsynth:split=wide:aggregation.rate", "aggregation.rate=1.0"
ALONE, AFTER = "local:task.generator=personalised", "task.block_place=after"
DEPTH = (
    *("compare", "studies/comparison.toml", "--seeds", "3"),
    *("--set", "elements.size=[64,64]", "--set", "elements.spacing=[3.5,3.5]"),
    *("--set", "task.adversarial=0", "--set", "rounds=40", "--arms"),
)
DEPTH_ARMS = (
    *(FLAGSHIP, f"{TWO_GROUPS}:{PLAIN}", f"{TWO_GROUPS}:aggregation.rate=measured"),
    *(f"{STAR}=measured", f"{STAR}=1.0", ALONE, f"{ALONE}:steps=x2", f"{ALONE}:steps=x4", "alone"),
    *("central:task.generator=personalised", f"pflsynth:split=wide:{AFTER}:{PLAIN}"),
    f"{ALONE}:{AFTER}",
)
WIDE_ARMS = (  # at 128 pixels, with the adversarial term
    *(FLAGSHIP, TWO_GROUPS, f"{STAR}=measured", f"{STAR}=1.0"),
    f"{STAR}=measured:training.epochs=8",
    *(ALONE, f"{ALONE}:steps=x2", f"{ALONE}:steps=x4", "local", "local:steps=x2", "local:steps=x4"),
    *("alone", "central:task.generator=personalised"),
)
WHY = (0, 3, 4, 11, 8)  # rows of the README: relay, star with either rate, alone (last), pooled


@dataclass(frozen=True)
class Source:
    """What a set of tables comes from: words of the command line, a study, methods in `golden`."""

    name: str
    words: tuple[str, ...]
    study: str
    golden: tuple[str, ...]

    @property
    def run(self) -> Path:
        return ROOT / "build" / "results" / self.name

    @property
    def stored(self) -> Path:
        return ROOT / "docs" / "results" / self.name

    @property
    def packed(self) -> Path:
        """Return the file of finished runs of a comparison that goes on."""
        return self.stored / "finished.tar.xz"


SOURCES = {
    source.name: source
    for source in (
        Source("demo", ("demo",), "demo", ("fedavg", "pflsynth-wide")),
        Source(
            "depth",
            (*DEPTH, ",".join(DEPTH_ARMS)),
            "comparison",
            ("fedavg", "pflsynth-wide"),
        ),
        Source(
            "wide",
            (
                *("compare", "studies/comparison.toml", "--seeds", "1", "--unequal", "--arms"),
                ",".join(WIDE_ARMS),
            ),
            "comparison",
            ("fedavg", "pflsynth-wide"),
        ),
    )
}


def main(command: str, name: str) -> int:
    source = SOURCES[name]
    match command:
        case "run":
            shutil.rmtree(source.run, ignore_errors=True)
            if source.packed.exists():
                with tarfile.open(source.packed) as packed:
                    packed.extractall(source.run, filter="data")
            program = Path(sys.executable).with_name("grandrounds")
            subprocess.run([program, *source.words, "--out", source.run], check=True, cwd=ROOT)
            write(source)
        case "write":
            write(source)
        case "keep":
            keep(source)
        case _:
            return check()
    return 0


def write(source: Source) -> None:
    """Store the run's tables, and write the marked blocks, and the demo's picture, from them."""
    source.stored.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        shutil.copyfile(source.run / "tables" / name, source.stored / name)
    (source.stored / "made.toml").write_text(tomli_w.dumps(program(source)), "utf-8")
    if source.name == "demo":
        stacked(drawn(source.run)).save(PICTURE, optimize=True)
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text("utf-8")), "utf-8")


def keep(source: Source) -> None:
    """Pack the finished runs of a comparison, without their models, so that it can go on later."""
    source.stored.mkdir(parents=True, exist_ok=True)
    scored = [path.parent for path in sorted(source.run.glob("arms/*/seed-*/scores.csv"))]
    finished = [run for run in scored if not RunFolder(run).derived.exists()]
    with tarfile.open(source.packed, "w:xz") as packed:
        for path in sorted(source.run.rglob("*")):
            ours = any(run in path.parents for run in finished)
            if ours and path.is_file() and path.suffix in (".csv", ".json", ".jsonl", ".toml"):
                packed.add(path, path.relative_to(source.run))
    print(f"{source.packed}: {len(finished)} finished runs, {source.packed.stat().st_size} bytes")


def program(source: Source) -> dict[str, str]:
    """Return what the numbers depend on, as far as a file can tell."""
    golden = json.loads((ROOT / "tests" / "golden" / "digests.json").read_text("utf-8"))
    weights = {
        f"golden, {' '.join(each['platform'].values())}": [
            each["digests"].get(name) for name in source.golden
        ]
        for each in golden
    }
    return {
        "command": " ".join(("grandrounds", *source.words)),
        "grandrounds": version("grandrounds"),
        "torch": version("torch"),
        "monai": version("monai"),
        "study": sha256((STUDIES / f"{source.study}.toml").read_bytes()).hexdigest(),
        **{
            platform: sha256(json.dumps(digests).encode()).hexdigest()
            for platform, digests in weights.items()
            if None not in digests
        },
    }


def drawn(run: Path) -> list[Image.Image]:
    """Draw the arms' scores, and what they make of a patient of each of the first hospitals."""
    facts = read_facts(run)
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


def rows(source: str, name: str) -> list[dict[str, str]]:
    with (SOURCES[source].stored / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("metric", "psnr") == "psnr"]


def arms_block(source: str) -> str:
    """Every arm: its mean over hospitals, its interval, its worst hospital, its steps."""
    lines = [
        "| arm | PSNR, dB | 95 % interval | worst hospital | steps of a hospital | in a row |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {row['title']} | {float(row['mean']):.2f} | {interval(row, '')} | {row['worst_site']}, "
        f"{float(row['worst_site_mean']):.2f} | {span(row, 'local_steps')} | "
        f"{span(row, 'steps_in_a_row')} |"
        for row in rows(source, "arms.csv")
    ]
    return "\n".join(lines) + "\n"


def interval(row: dict[str, str], of: str) -> str:
    """Write an interval of a table with two decimals."""
    return f"{float(row[f'{of}interval_low']):.2f} to {float(row[f'{of}interval_high']):.2f}"


def span(row: dict[str, str], name: str) -> str:
    """Write how many steps, from the fewest to the most."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return (low if low == high else f"{low} to {high}") or "by validation"


def gains_block(source: str) -> str:
    """How much better the first arm is than each other, by patient."""
    first, *others = rows(source, "arms.csv")
    lines = [f"| {first['title']} is better than | by, dB | 95 % interval |", "|---|---|---|"]
    lines += [
        f"| {row['title']} | {float(row['difference']):+.2f} | {interval(row, 'difference_')} |"
        for row in others
    ]
    return "\n".join(lines) + "\n"


def why_block(source: str) -> str:
    """What taking part brings: of a few arms, the hospitals that would be better alone."""
    found = rows(source, "arms.csv")
    lines = [
        "| trained | PSNR, dB | hospitals better alone | steps of a hospital | in a row |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| {row['title']} | {float(row['mean']):.2f} | {better_alone(row)} | "
        f"{span(row, 'local_steps')} | {span(row, 'steps_in_a_row')} |"
        for row in (found[place] for place in WHY)
    ]
    return "\n".join(lines) + "\n"


def better_alone(row: dict[str, str]) -> str:
    """Write at how many hospitals an arm is worse than training alone, where it is a rival."""
    compared = not row["arm"].startswith(("alone", "local", "central"))
    return f"{row['sites_worse_than_local']} of {row['sites']}" if compared else ""


def sites_block(source: str) -> str:
    """Every arm at every hospital and task."""
    found = rows(source, "sites.csv")
    arms = list(dict.fromkeys(row["title"] for row in found))
    means = {(row["site"], row["task"], row["title"]): float(row["mean"]) for row in found}
    places = list(dict.fromkeys((row["site"], row["task"]) for row in found))
    lines = [f"| hospital | task | {' | '.join(arms)} |", "|---" * (2 + len(arms)) + "|"]
    for site, task in places:
        cells = " | ".join(f"{means[site, task, arm]:.2f}" for arm in arms)
        lines.append(f"| {site} | {task.replace('->', ' to ')} | {cells} |")
    return "\n".join(lines) + "\n"


BLOCKS = {
    f"{source}/{name}": partial(block, source)
    for source in SOURCES
    for name, block in (
        ("arms", arms_block),
        ("gains", gains_block),
        ("why", why_block),
        ("sites", sites_block),
    )
}


def check() -> int:
    """Print whether this program is the one that made the tables; return 1 where it is not."""
    made = [each for each in SOURCES.values() if (each.stored / "made.toml").exists()]
    stale = [source for source in made if is_stale(source)]
    print(f"{PAGES[1]}: nothing tells whether these tables are stale, for none is stored:")
    for title in without_stored_tables((ROOT / PAGES[1]).read_text("utf-8")):
        print(f"  {title}")
    return 1 if stale else 0


def is_stale(source: Source) -> bool:
    made = tomllib.loads((source.stored / "made.toml").read_text("utf-8"))
    now = program(source)  # digests of a further kind of processor change nothing
    changed = [name for name, value in made.items() if now.get(name) != value]
    if changed:
        print(
            f"{source.name}: stale; changed since it was made: {', '.join(changed)}; "
            f"python scripts/results.py run {source.name}"
        )
    else:
        print(f"{source.name}: made by this program")
    return bool(changed)


def without_stored_tables(page: str) -> list[str]:
    """Return the titles of a page's sections that hold a table written by hand."""
    sections = re.split(r"^#{2,3} ", BLOCK.sub("", page), flags=re.MULTILINE)[1:]
    return [section.partition("\n")[0] for section in sections if "|---" in section]


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] + ["check", "demo"][len(sys.argv) - 1 :])))
