"""Keys of a federation that runs: a site's own, a renewed one, a revoked one; by the commands."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.flare.kit import Kit
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.command import Done
from tests.helpers.flare_federation import (
    SERVER,
    Town,
    commanded,
    differing,
    needs_flare,
    provisioned,
    small,
    wait_until,
    written,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, needs_flare]
NOT_ALLOWED = "the server does not let this kit do that"


def told(*words: str | Path) -> str:
    """What a command says that must succeed."""
    done = commanded(*words)
    assert done.code == 0, done.err
    return done.out


def asked(folder: Path, site: str) -> Path:
    """A site's request, whose key is beside it."""
    told("site", "request", site, "--out", folder)
    return folder / f"{site}.csr"


@contextmanager
def town_with_an_own_key(folder: Path) -> Iterator[Town]:
    """A server and two sites; birch made its key itself, and sent a request."""
    requests = folder / "requests"
    requests.mkdir(parents=True)
    asked(folder / "birch-1", "birch").rename(requests / "birch.csr")
    with provisioned(small(), folder, requests=requests) as town:
        told("site", "install", town.kit("birch"), "--key", folder / "birch-1")
        town.start(SERVER, "alder", "birch")
        yield town


def assert_plays(town: Town, study: Study, folder: Path) -> None:
    """The study runs to its end, with the numbers of one process."""
    town.accept(study)
    done = town.submit(study)
    assert done.code == 0, done.err
    run(study, folder / "undisturbed")
    assert differing(folder / "undisturbed", town.run(study)) == []


def status(town: Town, site: str) -> dict[str, list[str]]:
    return json.loads(told("federation", "status", "--kit", town.kit(site), "--json"))


def contents(kit: Path) -> dict[str, bytes]:
    """What the authority and the party itself wrote into a kit."""
    folders = ("startup", "local", "look")
    files = [path for name in folders for path in (kit / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(kit)): path.read_bytes() for path in files}


def logged(town: Town, name: str, words: str) -> bool:
    return words in town.log(name).read_text()


def test_own_keys_a_look_a_renewal_and_a_revocation_while_the_federation_runs(tmp_path: Path):
    """One story in one federation, since each step needs what came of the one before."""
    steps = (trains_with_its_own_key, looks_and_does_nothing_else, is_renewed, is_revoked)
    with town_with_an_own_key(tmp_path / "town") as town:
        for step in steps:
            folder = tmp_path / step.__name__
            folder.mkdir()
            step(town, folder)


def trains_with_its_own_key(town: Town, folder: Path) -> None:
    assert_plays(town, small("seed=31"), folder)


def looks_and_does_nothing_else(town: Town, folder: Path) -> None:
    """The server refuses: nothing here looks at what the kit may do."""
    seen = status(town, "alder")
    assert seen["sites"] == ["alder", "birch"]
    [job] = [each["id"] for each in seen["jobs"]]  # pyright: ignore[reportArgumentType]
    kit = ("--kit", town.kit("birch"))
    tried: list[Done] = [
        commanded("federation", "submit", written(small(), folder), *kit, "--no-wait"),
        commanded("federation", "logs", job, *kit),
        commanded("federation", "abort", job, *kit),
        commanded("federation", "fetch", job, *kit, "--out", folder / "fetched"),
    ]
    for done in tried:
        assert done.code == 2, (done.out, done.err)
        assert NOT_ALLOWED in done.err
        assert done.err.count("\n") == 1
    assert not (folder / "fetched").exists()
    assert len(status(town, "alder")["jobs"]) == 1


def is_renewed(town: Town, folder: Path) -> None:
    """Its old kit is put out and not let in again; with the new one it goes on."""
    others = {name: contents(town.kit(name)) for name in ("alder", "admin")}
    old = town.kit("birch").rename(folder / "old")
    words = ("--authority", town.kit("authority"), "--out", town.kit("birch"))
    request = asked(folder / "birch-2", "birch")
    told("federation", "renew", request, *words, "--revoke-old", "--kit", town.kit(SERVER))
    wait_until(lambda: status(town, "alder")["sites"] == ["alder"])
    town.kill("birch")

    town.kit("birch").rename(folder / "new")
    old.rename(town.kit("birch"))
    town.start("birch")
    wait_until(lambda: logged(town, "birch", "registration rejected: 'birch': the certificate"))
    town.kill("birch")

    words = ("--key", folder / "birch-2", "--into", town.kit("birch"))
    told("site", "install", folder / "new", *words)
    town.start("birch")
    wait_until(lambda: status(town, "birch")["sites"] == ["alder", "birch"])
    assert_plays(town, small("seed=32"), folder)
    for name, before in others.items():
        assert {path: contents(town.kit(name))[path] for path in before} == before


def is_revoked(town: Town, folder: Path) -> None:
    """It is put out, and cannot look; the others go on."""
    words = ("--authority", town.kit("authority"), "--kit", town.kit(SERVER))
    assert json.loads(told("federation", "revoke", "birch", *words, "--json"))["number"] == 2
    wait_until(lambda: status(town, "alder")["sites"] == ["alder"])
    looked = commanded("federation", "status", "--kit", town.kit("birch"))
    assert looked.code == 1
    assert "does not let this kit in: 'birch@look.grandrounds.org': the certificate" in looked.err
    assert looked.err.count("\n") == 1
    both = small("seed=33")
    alone = replace(both, site=both.site[:1])
    town.accept(alone)
    done = town.submit(alone)
    assert done.code == 0, done.err
    assert (Kit(town.kit("alder")).local / "revoked.pem").exists()  # it came with the opening
