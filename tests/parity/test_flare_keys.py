"""Keys of a federation that runs: a site's own, a renewed one, a revoked one; by the commands."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.flare.kit import Kit
from grandrounds.runs.loop import run
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


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A server and two sites; birch made its key itself, and sent a request."""
    folder = tmp_path_factory.mktemp("town")
    requests = folder / "requests"
    requests.mkdir()
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


def test_a_site_with_its_own_key_trains(town: Town, tmp_path: Path):
    assert_plays(town, small("seed=31"), tmp_path)


def test_a_site_s_kit_shows_the_status_and_the_server_lets_it_do_nothing_else(
    town: Town, tmp_path: Path
):
    seen = status(town, "alder")
    assert seen["sites"] == ["alder", "birch"]
    [job] = [each["id"] for each in seen["jobs"]]  # pyright: ignore[reportArgumentType]
    kit = ("--kit", town.kit("birch"))
    tried: list[Done] = [
        commanded("federation", "submit", written(small(), tmp_path), *kit, "--no-wait"),
        commanded("federation", "logs", job, *kit),
        commanded("federation", "abort", job, *kit),
        commanded("federation", "fetch", job, *kit, "--out", tmp_path / "fetched"),
    ]
    for done in tried:
        assert done.code == 2, (done.out, done.err)
        assert NOT_ALLOWED in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "fetched").exists()
    assert len(status(town, "alder")["jobs"]) == 1


def test_a_renewed_site_goes_on_and_its_old_kit_is_put_out_and_not_let_in_again(
    town: Town, tmp_path: Path
):
    others = {name: contents(town.kit(name)) for name in ("alder", "admin")}
    old = town.kit("birch").rename(tmp_path / "old")
    words = ("--authority", town.kit("authority"), "--out", town.kit("birch"))
    request = asked(tmp_path / "birch-2", "birch")
    told("federation", "renew", request, *words, "--revoke-old", "--kit", town.kit(SERVER))
    wait_until(lambda: status(town, "alder")["sites"] == ["alder"])
    town.kill("birch")

    new, at_site = town.kit("birch"), tmp_path / "site"
    new.rename(tmp_path / "new")
    (old / "local" / "site.toml").write_text('name = "birch"\n')
    old.rename(town.kit("birch"))
    town.start("birch")
    wait_until(lambda: logged(town, "birch", "was revoked by the federation's authority"))
    town.kill("birch")
    (town.kit("birch") / "local" / "site.toml").unlink()

    assert at_site.exists() is False
    words = ("--key", tmp_path / "birch-2", "--into", town.kit("birch"))
    told("site", "install", tmp_path / "new", *words)
    town.start("birch")
    wait_until(lambda: status(town, "birch")["sites"] == ["alder", "birch"])
    assert_plays(town, small("seed=32"), tmp_path)
    for name, before in others.items():
        assert {path: contents(town.kit(name))[path] for path in before} == before


def test_a_revoked_site_is_put_out_and_the_others_go_on(town: Town, tmp_path: Path):
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
