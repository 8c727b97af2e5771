"""The files of deploy/, as far as they can be tried without a daemon, a cluster or systemd."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.main import get_command

from grandrounds.cli import app
from grandrounds.core.loopback import LoopbackReader, LoopbackServer, listen, serving

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
USER, GRACE = 10001, 60
KIT, DATA, HOME = "/kit", "/data", "/home/grandrounds"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PORT = 9102  # of the health


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, in order."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def told(instruction: str) -> list[str]:
    return [rest for name, rest in dockerfile() if name == instruction]


def parsed(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load((DEPLOY / name).read_text("utf-8")))


@pytest.fixture(scope="module")
def site() -> Mapping[str, Any]:
    """The site of compose.yaml."""
    return parsed("compose.yaml")["services"]["site"]


@pytest.fixture(scope="module")
def pod() -> Mapping[str, Any]:
    return parsed("kubernetes.yaml")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    [found] = pod["containers"]
    return found


def unit() -> dict[str, str]:
    lines = (DEPLOY / "grandrounds.service").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


def started() -> dict[str, list[str]]:
    """How each of the files calls the program, without its name."""
    [command], [entry] = told("CMD"), told("ENTRYPOINT")
    program, *service = shlex.split(unit()["ExecStart"])
    assert Path(program).name == json.loads(entry)[-1] == "grandrounds"
    [container] = parsed("kubernetes.yaml")["spec"]["template"]["spec"]["containers"]
    assert "command" not in container  # so that the image's tini stays
    return {
        "Dockerfile": json.loads(command),
        "kubernetes.yaml": container["args"],
        "grandrounds.service": service,
    }


@pytest.mark.parametrize("name", started())
def test_what_is_started_is_a_command_with_options_that_it_has(name: str):
    group, command, *words = started()[name]
    found: Any = get_command(app).commands[group].commands[command]  # pyright: ignore[reportAttributeAccessIssue]
    with found.make_context("grandrounds", words, resilient_parsing=False) as context:
        in_container = name != "grandrounds.service"
        assert context.params["kit"] == Path(KIT if in_container else "/srv/grandrounds/kit")
        assert context.params["health"] == (PORT if in_container else None)


def test_the_image_is_made_of_files_that_are_there_and_installs_as_the_pages_say():
    copied = [word for rest in told("COPY") for word in shlex.split(rest)[:-1]]
    assert all((ROOT / word).exists() for word in copied), copied
    assert {PROJECT["readme"], *PROJECT["license-files"][:1], "pyproject.toml"} <= set(copied)
    links = [
        path.resolve().relative_to(ROOT) for path in (ROOT / "src").rglob("*") if path.is_symlink()
    ]
    assert {path.parts[0] for path in links} <= set(copied)
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied)
    [install] = [rest for rest in told("RUN") if "pip install" in rest]
    words = '-c constraints.txt ".[flare]"'
    assert install.endswith(words)
    assert f"pip install {words} " in (ROOT / "docs/how-to/deploy.md").read_text("utf-8")


def test_the_image_has_a_python_that_the_program_takes():
    [base] = told("FROM")
    [version] = re.findall(r"python:3\.(\d+)-", base)
    [lowest] = re.findall(r">=3\.(\d+)", PROJECT["requires-python"])
    assert int(version) >= int(lowest)


def test_sigterm_reaches_the_process_and_it_has_time_to_end(
    site: Mapping[str, Any], pod: Mapping[str, Any]
):
    [entry], runs = told("ENTRYPOINT"), " ".join(told("RUN"))
    assert json.loads(entry) == ["tini", "--", "grandrounds"]
    assert re.search(r"apt-get install [^&]*\btini\b", runs)
    assert "entrypoint" not in site
    assert site["stop_grace_period"] == f"{GRACE}s"
    assert pod["terminationGracePeriodSeconds"] == GRACE
    assert unit()["TimeoutStopSec"] == str(GRACE)


def test_no_file_lets_the_program_be_root(
    site: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]
):
    assert told("USER") == [f"{USER}:{USER}"]
    assert f"--uid {USER} --gid {USER} grandrounds" in " ".join(told("RUN"))
    assert "user" not in site
    assert (site["cap_drop"], site["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    rules = pod["securityContext"]
    assert rules["runAsNonRoot"] is True
    assert rules["runAsUser"] == rules["runAsGroup"] == rules["fsGroup"] == USER
    assert rules["fsGroupChangePolicy"] == "OnRootMismatch"  # or the key is opened at each start
    own = container["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["allowPrivilegeEscalation"] is False
    assert (unit()["User"], unit()["CapabilityBoundingSet"]) == ("grandrounds", "")


def test_only_the_kit_and_scratch_can_be_written_to(
    site: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]
):
    mounted = {each["target"]: each.get("read_only", False) for each in site["volumes"]}
    assert mounted == {KIT: False, DATA: True}
    assert site["read_only"] is True
    assert site["tmpfs"] == ["/tmp", HOME]
    places = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert set(places) == {KIT, DATA, "/tmp", HOME, "/dev/shm"}
    assert [place for place, each in places.items() if each.get("readOnly")] == [DATA]
    assert {each["name"] for each in places.values()} == {each["name"] for each in pod["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert (unit()["ProtectSystem"], unit()["ReadOnlyPaths"]) == ("strict", "-/srv/images")
    assert unit()["ReadWritePaths"] == unit()["ExecStart"].split()[3] == "/srv/grandrounds/kit"


def test_the_cache_lies_in_the_kit():
    [own] = told("ENV")
    assert own == f"GRANDROUNDS_CACHE={KIT}/cache"
    assert unit()["Environment"] == f"GRANDROUNDS_CACHE={unit()['ReadWritePaths']}/cache"


def test_what_ends_is_started_again_and_an_unwell_site_is_not(
    site: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]
):
    assert site["restart"] == "unless-stopped"
    assert pod["restartPolicy"] == "Always"
    assert (unit()["Restart"], unit()["WantedBy"]) == ("on-failure", "multi-user.target")
    assert "livenessProbe" not in container


class Party(LoopbackReader):
    """Says of a party that it is well, or not."""

    status = HTTPStatus.OK

    def do_GET(self) -> None:  # noqa: N802 - as `http.server` calls it
        assert self.is_for_this_server
        assert self.path == "/health"
        self.answer(self.status, "text/plain", "ok\n")


@pytest.fixture
def asks(site: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What both files ask a party's health with, and the port of one here."""
    how, *words = site["healthcheck"]["test"]
    assert how == "CMD"
    assert words == container["readinessProbe"]["exec"]["command"]
    python, option, code = words
    assert (python, option) == ("python", "-c")
    assert f"'127.0.0.1', {PORT}" in code
    with serving(LoopbackServer(0, Party, listen(0, "--health"))) as server:
        yield code, server.server_port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code"), [(HTTPStatus.OK, 0), (HTTPStatus.SERVICE_UNAVAILABLE, 1)]
)
def test_the_health_is_what_the_party_says(
    status: HTTPStatus, code: int, asks: tuple[str, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Party, "status", status)
    asked = asks[0].replace(str(PORT), str(asks[1]))
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=False)
    assert done.returncode == code, done.stderr


def test_the_server_s_port_is_that_of_the_kits():
    from grandrounds.flare.provision import SERVER_PORT

    assert f'"{SERVER_PORT}:{SERVER_PORT}"' in (DEPLOY / "compose.yaml").read_text("utf-8")
    assert "ports" not in parsed("compose.yaml")["services"]["site"]


def test_the_logs_of_a_container_have_an_end(site: Mapping[str, Any]):
    options = site["logging"]["options"]
    assert fnmatch(options["max-size"], "*m")
    assert int(options["max-file"]) > 1


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path):
    text = (DEPLOY / "grandrounds.service").read_text("utf-8")
    own = tmp_path / "grandrounds.service"
    own.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", own], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
