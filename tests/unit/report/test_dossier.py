"""A data officer gets one folder that other programs can read, and a page that a person can."""

import csv
import json
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import get_args

import pytest
from torch import ones

from grandrounds.core.errors import BadInput
from grandrounds.core.events import RoundFinished, RunStarted, SiteMissed, SiteTrained
from grandrounds.core.journal import Journal
from grandrounds.core.ledger import COORDINATOR, SITES_HERE, LedgerEntry
from grandrounds.core.messages import Reply, Request, Train
from grandrounds.core.run_folder import RunFolder
from grandrounds.report.dossier.facts import KINDS
from grandrounds.report.dossier.write import write_dossier
from grandrounds.site.ledger import Ledger, ledger_entry, received_entry

SITES = ("alder", "birch")
STUDY = "5" * 64
STUDY_FILE = """
name = "two"
method = { kind = "fedavg" }
task = { kind = "synthesis" }
site = [{ name = "alder", data = "simulated" }, { name = "birch", data = "simulated" }]
"""
NOISE = '[privacy]\nkind = "record"\nclip = 1.0\nnoise = 2.0\ndelta = 1e-6\n'


def unsigned(certificate: str, signature: str, statement: bytes, moment: float) -> str:
    raise ValueError("nobody signs here")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One round of two sites, as a run writes it; birch refused a request and missed another."""
    files = RunFolder(tmp_path / "run")
    files.path.mkdir()
    central = Ledger(files.ledger, COORDINATOR, STUDY, about={"sites": SITES_HERE})
    journal = Journal(files.journal)
    for number, name in enumerate(SITES):
        own = Ledger(files.site(name).ledger, name, STUDY, guards=("clip",) * number)
        if number == 0:
            started = ("two", "fedavg", 7, 1, SITES, STUDY, "0.1.0", "2.13", "cpu", "float32", 1)
            journal.append(RunStarted(*started))
        asked = Train(round=1, since=0)
        spent = 1.5 if number else None
        reply = Reply(site=name, round=1, epsilon=spent, weights={"<b>w</b>": ones(3)})
        entry = ledger_entry(COORDINATOR, asked, left=reply)
        central(received_entry(name, asked, replace(reply, ledger=own(entry))))
        journal.append(SiteTrained(1, name, 1.0, 5, 5, 12, 12))
        own(LedgerEntry("unknown", "ask", refused="<script>it is not signed</script>"))
    journal.append(SiteMissed("birch", 1, "train", "TimeoutError", "it was late", ""))
    journal.append(RoundFinished(1, "d", None, 1, 1.0))
    files.study.write_text(STUDY_FILE)
    return files.path


def test_a_dossier_says_what_left_and_from_whom(run: Path, tmp_path: Path):
    told = write_dossier(run, tmp_path / "dossier", unsigned)
    alder, birch = told.sites
    assert (alder.messages, alder.bytes, alder.epsilon, alder.refused) == (1, 12, None, 1)
    assert (birch.epsilon, birch.missed) == (1.5, ("round 1: TimeoutError",))
    assert birch.sendings[0].guards == ("clip",)
    page = (tmp_path / "dossier" / "index.html").read_text()
    assert "<b>Yes.</b> Every line of every ledger here is as it was written" in page
    assert "had no differential privacy" in page
    assert "not signed" in page
    rows = (tmp_path / "dossier" / "departures.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 + 2 * 2  # the head, the coordinator's lines, two of each site


def test_a_dossier_tells_what_noise_bounds_and_where_nothing_does(run: Path, tmp_path: Path):
    """From a hospital's own ledger, or at the coordinator of a federation from what it received."""
    RunFolder(run).study.write_text(STUDY_FILE + NOISE)
    rmtree(RunFolder(run).sites)
    told = write_dossier(run, tmp_path / "dossier", unsigned)
    assert [(site.own, site.epsilon) for site in told.sites] == [(False, None), (False, 1.5)]
    page = (tmp_path / "dossier" / "index.html").read_text()
    assert "privacy spent: epsilon 1.5 at delta 1e-06" in page
    assert page.count("no bound on what they reveal") == 1, "alder told none"
    assert "It protects each training patient with all slices" in page
    assert "had no differential privacy" not in page
    rows = csv.DictReader((tmp_path / "dossier" / "departures.csv").read_text().splitlines())
    assert [row["epsilon"] for row in rows] == ["", "1.5"]


def test_every_message_that_a_site_answers_has_a_meaning():
    assert {kind.__name__.lower() for kind in get_args(Request)} <= set(KINDS)


def test_the_page_opens_offline_and_runs_nothing_that_a_stranger_wrote(run: Path, tmp_path: Path):
    write_dossier(run, tmp_path / "dossier", unsigned)
    page = (tmp_path / "dossier" / "index.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<b>w</b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_record_that_was_changed_is_told_first(run: Path, tmp_path: Path):
    path = RunFolder(run).site("birch").ledger
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-2]))
    told = write_dossier(run, tmp_path / "dossier", unsigned)
    assert told.broken.startswith("sites/birch/ledger.jsonl: ends at line 2; the message of line 3")
    page = (tmp_path / "dossier" / "index.html").read_text()
    assert "<b>No.</b> Something in the records is not what was written" in page
    assert "<b>Yes.</b>" not in page


def test_every_file_is_in_the_crate_with_its_digest(run: Path, tmp_path: Path):
    (RunFolder(run).site("alder").path / "audit.json").write_text("{}")
    out = tmp_path / "dossier"
    write_dossier(run, out, unsigned)
    graph = json.loads((out / "ro-crate-metadata.json").read_text())["@graph"]
    files = {each["@id"]: each for each in graph if each["@type"] == "File"}
    own = {"ro-crate-metadata.json", "sha256.txt"}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(files) == found - own
    assert "audit/alder.json" in files
    for name, told in files.items():
        assert told["sha256"] == sha256((out / name).read_bytes()).hexdigest()
        assert told["contentSize"] == str((out / name).stat().st_size)
    sums = (out / "sha256.txt").read_text().splitlines()
    assert {line.split("  ")[1] for line in sums} == found - {"sha256.txt"}


@pytest.mark.slow
def test_the_package_rocrate_reads_the_crate(run: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rocrate = pytest.importorskip("rocrate.rocrate")
        write_dossier(run, tmp_path / "dossier", unsigned)
        crate = rocrate.ROCrate(str(tmp_path / "dossier"))
    assert crate.name == "What left the sites of the study two"
    assert crate.metadata["conformsTo"] == "https://w3id.org/ro/crate/1.1"
    assert crate.dereference("ledgers/birch.jsonl").type == "File"
    run_of = crate.dereference("#run")
    assert run_of["instrument"]["softwareVersion"] == "0.1.0"
    assert [each["name"] for each in run_of["agent"]] == list(SITES)
    parts = {part.id for part in crate.root_dataset["hasPart"]}
    assert {"index.html", "departures.csv", "study.toml"} <= parts


def test_a_dossier_is_never_written_over(run: Path, tmp_path: Path):
    (tmp_path / "dossier").mkdir()
    with pytest.raises(BadInput, match="is there already; choose another name"):
        write_dossier(run, tmp_path / "dossier", unsigned)
