"""Kits for sites and servers of all names that are allowed, and no key for any other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadStudy
from grandrounds.study.study import Study
from tests.helpers.federation import TINY, tiny
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from cryptography import x509
from nvflare.lighter.provision import prepare_project

from grandrounds.flare.authority import Settings
from grandrounds.flare.kit import Kit
from grandrounds.flare.processes import kit_command
from grandrounds.flare.provision import project_of, provision_kits
from tests.helpers.command import Done, inside

pytestmark = needs_flare


def of_sites(*names: str, name: str = "tiny") -> Study:
    """A study whose sites have these names, unchecked, as a program could make it."""
    [first, *_] = tiny(sites=1).site
    return replace(tiny(), name=name, site=tuple(replace(first, name=site) for site in names))


@pytest.mark.parametrize("name", ["site-1", "ljubljana-15t", "A", "7", "x" * 64, "a_b-c", "a-"])
def test_nvflare_takes_every_name_of_a_site_that_a_study_may_have(name: str):
    project = prepare_project(project_of(Settings("tiny", "localhost", 8002), (name,)))
    assert [each.name for each in project.get_clients()] == [name]


@pytest.mark.parametrize(
    "name", ["server", "ADMIN", "authority", "st.mary", "a b", "../a", "alder\n", "café", "-a"]
)
def test_no_key_is_made_for_a_site_of_another_name(name: str, tmp_path: Path):
    with pytest.raises(BadStudy, match=r"^site "):
        provision_kits(of_sites("alder", name), "localhost", tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize(
    "host", ["::1", "[::1]", "https://a.org", "a.org:8002", "a_b", "300.1.1.1"]
)
def test_no_key_is_made_for_a_server_that_cannot_be_reached(host: str, tmp_path: Path):
    with pytest.raises(BadStudy, match=r"^--server '"):
        provision_kits(tiny(), host, tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize("host", ["alder", "ALDER"])
def test_a_server_has_no_site_s_name(host: str):
    with pytest.raises(BadStudy, match=f"--server {host}: a site has this name"):
        project_of(Settings("tiny", host, 8002), tiny().trainers)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["192.0.2.10", ".".join(["a" * 40, "b" * 40, "org"]), "admin"])
def test_kits_know_their_names_and_the_server_s_address(host: str, tmp_path: Path):
    study = of_sites("site-1", name="v1.2_four-hospitals")
    kits = {name: Kit(path) for name, path in provision_kits(study, host, tmp_path).items()}
    assert set(kits) == {"server", "site-1", "admin"}
    assert kits["site-1"].name == "site-1"
    assert kits["site-1"].address == kits["admin"].address == (host, 8002)
    assert "org=site_1" in kit_command(kits["site-1"])
    certificate = (kits["server"].startup / "server.crt").read_bytes()
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == [host]


Ask = Callable[..., Done]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    monkeypatch.chdir(tmp_path)
    return lambda *words: inside(monkeypatch, capsys, *words)


@pytest.mark.parametrize("name", ["server", "Admin", "st.mary", "../alder", "con"])
def test_check_refuses_a_site_that_no_kit_can_be_made_for(name: str, ask: Ask):
    Path("study.toml").write_text(TINY.read_text("utf-8").replace('"alder"', f'"{name}"'))
    for words in (["check", "study.toml"], ["run", "study.toml"]):
        done = ask(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"grandrounds: study.toml: site '{name}'")
    assert [path.name for path in Path().iterdir()] == ["study.toml"]
