"""A dossier is written here: copies of the records, tables of them, and a page to read."""

import csv
import io
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import create_whole
from grandrounds.core.ledger import NOTES, VerifySignature, read_ledger
from grandrounds.core.run_folder import RunFolder
from grandrounds.report.dossier.crate import METADATA, crate_metadata
from grandrounds.report.dossier.facts import Dossier, read_dossier
from grandrounds.report.prose import privacy, vocabulary

DOSSIER_PAGE = "index.html"
_SUMS = "sha256.txt"
_COLUMNS = (
    *("ledger", "line", "time", "other_party", "asked", "round", "tensors", "bytes", "scores"),
    *("to", "guards", "epsilon", "digest", "listing", "refused", "failed"),
)
_RECORDS = {
    RunFolder.study: "The study file, as all sites accepted it",
    RunFolder.journal: "What happened in the run, event by event",
    RunFolder.rounds: "Who took part in which round, with seconds and bytes",
    RunFolder.digests: "The digest of all weights after each round",
}
_WHOSE = "Ledger of {name}: each message, chained by SHA-256"
_ANNEX = "What attacks on the part of {name} found: counts and rates"


def write_dossier(folder: Path, out: Path, verify: VerifySignature) -> Dossier:
    """Write the dossier of a run as a new folder, whole or not at all; return what it tells.

    Raises `BadFolder` where the run has no ledger, `BadInput` where `out` is there already.
    """
    dossier = read_dossier(folder, verify)
    with create_whole(out) as path:
        path.mkdir()
        files = dict(_copied(dossier, path))
        (path / "departures.csv").write_text(_departures(dossier), "utf-8")
        (path / "tensors.csv").write_text(_tensors(dossier), "utf-8")
        files["departures.csv"] = "Every message of every ledger here, one row each"
        files["tensors.csv"] = "The name, type and shape of every tensor that left"
        (path / DOSSIER_PAGE).write_text(render_dossier(dossier, files), "utf-8")
        described = {
            DOSSIER_PAGE: "The dossier as a page to read; opens without a network",
            **files,
        }
        (path / METADATA).write_text(crate_metadata(dossier, path, described), "utf-8")
        (path / _SUMS).write_text(_sums(path), "utf-8")
    return dossier


def _copied(dossier: Dossier, path: Path) -> Iterator[tuple[str, str]]:
    """Copy the records of a run, and yield each name with what it is."""
    for name, words in _RECORDS.items():
        if (dossier.run / name).exists():
            shutil.copyfile(dossier.run / name, path / name)
            yield name, words
    (path / "ledgers").mkdir()
    for party, file in dossier.ledgers.items():
        shutil.copyfile(file, path / "ledgers" / f"{party}.jsonl")
        yield f"ledgers/{party}.jsonl", _WHOSE.format(name=party)
    for file in sorted((dossier.run / RunFolder.sites).glob("*/audit.json")):
        (path / "audit").mkdir(exist_ok=True)
        name = f"audit/{file.parent.name}.json"
        shutil.copyfile(file, path / name)
        yield name, _ANNEX.format(name=file.parent.name)


def _departures(dossier: Dossier) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for party, path in dossier.ledgers.items():
        for line in read_ledger(path):
            entry = line.entry
            if entry.asked in NOTES:
                continue
            when = datetime.fromtimestamp(line.time, UTC).isoformat(timespec="milliseconds")
            spent = "" if entry.epsilon is None else entry.epsilon
            table.writerow(
                (
                    *(party, line.number, when, entry.who, entry.asked, entry.round),
                    *(entry.tensors, entry.bytes, entry.scores, " ".join(entry.to)),
                    *("; ".join(entry.guards), spent, entry.digest, entry.listing),
                    *(entry.refused, entry.failed),
                )
            )
    return text.getvalue()


def _tensors(dossier: Dossier) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("name", "type_and_shape"))
    table.writerows(dossier.named.items())
    return text.getvalue()


def _sums(path: Path) -> str:
    """Return the SHA-256 of each file, as `sha256sum --check` reads it."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return "".join(
        f"{sha256(file.read_bytes()).hexdigest()}  {file.relative_to(path)}\n" for file in files
    )


def render_dossier(dossier: Dossier, files: dict[str, str]) -> str:
    """Return the page of a dossier."""
    own = Path(__file__).parent / "templates"
    shared = Path(__file__).parent.with_name("page") / "templates"
    environment = Environment(
        loader=FileSystemLoader([own, shared]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("dossier.html.j2").render(
        found=dossier,
        files=files,
        words=vocabulary,
        privacy=privacy,
        audited=any(name.startswith("audit/") for name in files),
    )
