"""A federation of hospitals on this machine: server and sites in processes of their own."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from grandrounds.core.events import Event
from grandrounds.core.extras import install_command
from grandrounds.flare.job import ALLOWED, run_name
from grandrounds.study.acceptance import accept, save_acceptance
from grandrounds.study.file import fingerprint, to_toml
from grandrounds.study.study import Study
from tests.helpers.command import PROGRAM, Done, events
from tests.helpers.federation import rows, tiny

REPOSITORY = Path(__file__).parents[2]
SERVER, RUNS = "server", "grandrounds"
EVERYONE = [(round, site, "True") for round in ("1", "2") for site in ("alder", "birch")]
LONG = 240.0  # seconds, on a busy machine; whatever takes longer hangs
JOBS = ("client.worker_process", "server.runner_process")  # the processes of a job
HARM = """
import sys
if any(word.endswith({jobs}) for word in sys.orig_argv):
    from tests.helpers import faults as harms
    harms.{harm}
"""
PR_SET_PDEATHSIG = 1

needs_flare = pytest.mark.skipif(
    find_spec("nvflare") is None and os.environ.get("CI") != "true",
    reason=f"NVIDIA FLARE is not installed: {install_command('flare')}",
)


def small(*overrides: str) -> Study:
    """The tiny study with two sites and two rounds."""
    return tiny("rounds=2", *overrides, sites=2)


def written(study: Study, folder: Path) -> Path:
    """Write a study where a command finds it."""
    path = folder / f"{fingerprint(study)[:12]}.toml"
    path.write_text(to_toml(study))
    return path


def harmful(folder: Path, harm: str) -> Path:
    """A folder that, on a kit's PYTHONPATH, does this harm to the processes of its jobs alone."""
    folder.mkdir()
    text = HARM.format(jobs=JOBS, harm=harm)
    (folder / "sitecustomize.py").write_text(text)
    return folder


def made_once(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder once, for all processes that play these tests side by side."""
    base = temporary.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            assert not unfinished.exists(), f"{name} failed in another process, which says why"
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def differing(here: Path, there: Path) -> list[str]:
    """The tables in which two runs differ; also where not every site took part in every round."""
    tables = ("digests.csv", "scores.csv")
    names = [name for name in tables if rows(here / name) != rows(there / name)]
    return names if took_part(there) == took_part(here) == EVERYONE else [*names, "rounds.csv"]


def took_part(folder: Path) -> list[tuple[str, str, str]]:
    """Who took part in which round."""
    return [(row["round"], row["site"], row["took_part"]) for row in rows(folder / "rounds.csv")]


def simulated(
    job: Path,
    study: Study,
    folder: Path,
    classes: Sequence[str] = ALLOWED,
    *,
    seconds: float = LONG,
) -> Path:
    """Play a job by NVFlare's own `nvflare simulator`, and give the server's folder of runs."""
    allowed = folder / "local" / "resources.json"
    allowed.parent.mkdir(parents=True)
    allowed.write_text(json.dumps({"format_version": 2, "class_allow_list": list(classes)}))
    sites = ",".join(study.trainers)
    words = ("simulator", job, "-w", folder, "-c", sites, "-t", str(len(study.trainers)))
    with (folder.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM.with_name("nvflare"), *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            cwd=folder.parent,
            start_new_session=True,
        )
        ended(process, seconds)
    return folder / SERVER / RUNS


def ended(process: "subprocess.Popen[bytes]", seconds: float = LONG) -> None:
    """Wait until a process has ended well; kill it and its descendants if it does not."""
    try:
        assert process.wait(timeout=seconds) == 0, process.args
    except subprocess.TimeoutExpired:
        killed(process.pid)
        process.wait()
        raise


def commanded(*words: str | Path, cwd: Path | None = None) -> Done:
    """Run the installed command, and see that it ends."""
    done = subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, check=False, timeout=LONG, cwd=cwd
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass
class Town:
    """The kits of a federation in `folder`, and the processes that run from them."""

    folder: Path
    port: int
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def kit(self, name: str) -> Path:
        """Give the kit of the server, a site or the admin."""
        return self.folder / "kits" / name

    def start(
        self, *names: str, harm: Path | None = None, limit: Callable[[], None] | None = None
    ) -> None:
        """Start these kits' processes, under the harm of a folder and a limit."""
        own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [str(path) for path in (harm, REPOSITORY, *own) if path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

        def begun() -> None:
            ends_with_the_tests()
            if limit:
                limit()

        for name in names:
            with self.log(name).open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [PROGRAM, "federation", "start", self.kit(name)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=begun,
                )

    @contextmanager
    def under(
        self, name: str, *, harm: Path | None = None, limit: Callable[[], None] | None = None
    ) -> Generator[None, None, None]:
        """Run one kit's process under a harm or a limit, and after that without, as before."""
        self.kill(name)
        self.start(name, harm=harm, limit=limit)
        try:
            yield
        finally:
            self.kill(name)
            self.start(name)

    def log(self, name: str) -> Path:
        """Give the file of what a process printed."""
        return self.folder / f"{name}.log"

    def kill(self, *names: str) -> None:
        """Kill these processes and all that they started, as kill -9 does, at one moment."""
        for name in names:
            process = self.processes.pop(name, None)
            if process:
                killed(process.pid)
                process.wait()

    def accept(self, study: Study, *sites: str) -> None:
        """Let sites, by default all, accept a study."""
        for site in sites or study.trainers:
            startup = self.kit(site) / "startup"
            word = accept(fingerprint(study), startup / "client.key", startup / "client.crt")
            save_acceptance(word, self.kit(site) / "local")

    def submit(self, study: Study, *, resume: bool = False) -> Done:
        """Submit a study or resume its run, and wait for its end."""
        verb, path = "resume" if resume else "submit", written(study, self.folder)
        return commanded("federation", verb, path, "--kit", self.kit("admin"), "--json")

    def run(self, study: Study, party: str = SERVER) -> Path:
        """Give the folder of a study's run at one party."""
        return self.kit(party) / RUNS / run_name(study)

    def told(self, study: Study) -> Sequence[Event]:
        """Give what the server's run told so far."""
        return events(self.run(study))


def ends_with_the_tests() -> None:
    """Let the process that begins here be killed when the one that began it has ended (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def killed(pid: int) -> None:
    """Kill a process and its descendants; none may start another meanwhile."""
    import psutil

    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    for each in family:
        each.suspend()
    for each in family:
        each.kill()
    psutil.wait_procs(family[1:], timeout=LONG)


@contextmanager
def provisioned(
    study: Study, folder: Path, port: int = 0, requests: Path | None = None
) -> Generator[Town, None, None]:
    """Provision a federation by the command; in the end no process of it is left.

    The kit of a site with one of the `requests` lacks its key.
    """
    folder.mkdir(exist_ok=True)
    town, path = Town(folder, port or free_port()), written(study, folder)
    words = ("--server", "localhost", "--port", str(town.port))
    asked = ("--requests", requests) if requests else ()
    done = commanded("federation", "provision", path, *words, "--out", folder / "kits", *asked)
    assert done.code == 0, done.err
    try:
        yield town
    finally:
        town.kill(*list(town.processes))


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(holds: Callable[[], object], *, seconds: float = LONG) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def listening(pid: int) -> set[tuple[str, int]]:
    """Give the addresses and ports on which a process and its descendants listen."""
    import psutil

    parent = psutil.Process(pid)
    family = [parent, *parent.children(recursive=True)]
    return {
        (line.laddr.ip, line.laddr.port)
        for each in family
        for line in each.net_connections("inet")
        if line.status == psutil.CONN_LISTEN
    }
