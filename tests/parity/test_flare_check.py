"""Statistics over a provisioned federation: as in one process, of sites that accepted alone."""

import json
import shutil
from pathlib import Path

import pytest

from grandrounds.runs.survey import RELEASES
from grandrounds.study.file import read_study
from tests.helpers.command import Done
from tests.helpers.flare_federation import (
    SERVER,
    Town,
    commanded,
    needs_flare,
    provisioned,
    wait_until,
)
from tests.helpers.surveyed_sites import Hospital, write_study

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, needs_flare]
ALDER = Hospital("alder", odd={2: {"MagneticFieldStrength": 1.5}})
BIRCH = Hospital("birch", patients=16, flair=4, gain=1.5)


def test_a_federation_s_statistics_are_those_of_one_process_and_need_an_acceptance(tmp_path: Path):
    path = write_study(tmp_path)
    files = {each.name: each.write(tmp_path / "data") for each in (ALDER, BIRCH)}
    study = read_study(path)
    words = [word for file in files.values() for word in ("--site", file)]
    here = commanded("check", path, *words, "--json")
    assert here.code == 0, here.err
    with provisioned(study, tmp_path / "town") as town:
        for name, file in files.items():
            place(town, name, file)
        town.start(SERVER, *files)
        wait_until(lambda: all_answer(town, len(files)))
        accepted(town, path, "alder")
        unsigned = asked(town, path)
        assert unsigned.code == 1
        assert "site 'birch' cannot open: it has not accepted this study" in unsigned.err
        assert not list(town.kit("birch").glob(f"local/{RELEASES}/*"))
        accepted(town, path, "birch")
        there = asked(town, path, "--page", tmp_path / "page.html")
        assert there.code == 0, there.err
        told = json.loads(there.out)
        assert told == json.loads(here.out)["statistics"]
        assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
        one_more_patient(files["birch"])
        assert json.loads(asked(town, path).out) == told
        log = commanded("site", "log", "--kit", town.kit("birch"))
        assert log.out.count("localhost: survey, round 0") == 2
        assert log.out.count("statistics left") == 2


def place(town: Town, name: str, file: Path) -> None:
    """Put a site file into a kit, where its data lie."""
    text = file.read_text().replace(f'"{name}"\ncache', f'"{file.parent / name}"\ncache')
    (town.kit(name) / "local" / "site.toml").write_text(text)


def all_answer(town: Town, number: int) -> bool:
    """Tell whether all sites answer."""
    done = commanded("federation", "status", "--kit", town.kit("admin"), "--json")
    return done.code == 0 and len(json.loads(done.out)["sites"]) == number


def accepted(town: Town, path: Path, site: str) -> None:
    """Let a site look at the study and sign it, by the command."""
    done = commanded("site", "accept", path, "--kit", town.kit(site))
    assert done.code == 0, done.err
    assert "before the training, if asked (federation check), statistics of at least 5" in done.out


def asked(town: Town, path: Path, *words: str | Path) -> Done:
    """Ask the federation for statistics."""
    return commanded("federation", "check", path, "--kit", town.kit("admin"), "--json", *words)


def one_more_patient(site: Path) -> None:
    """Let one more patient come, who is like the first one."""
    folder = site.parent / "birch"
    for file in folder.glob("sub-birch000_*"):
        shutil.copy(file, folder / file.name.replace("birch000", "birch900"))
