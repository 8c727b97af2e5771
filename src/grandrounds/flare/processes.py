"""The processes of startup kits run on this machine, and are ended after use."""

# psutil has no type stubs.
# pyright: reportMissingModuleSource=false

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from grandrounds.core.errors import BadSite, RunFailed, WrongSignature
from grandrounds.core.processes import hold
from grandrounds.flare.health import start_health
from grandrounds.flare.job_store import keep_store_in_kit, settle_lost_jobs
from grandrounds.flare.kit import Kit, organisation
from grandrounds.flare.session import AdminSession, NoServer, open_session
from grandrounds.study.identity import read_certificate
from grandrounds.study.revocation import check_not_revoked

LOG = "console.log"
_BY_SCRIPT = ("/sub_start.sh", ".client_train", ".server_train")
_GRACE = 10.0  # seconds in which a process ends by itself


def run_kit(kit: Kit, *, health: int | None = None) -> None:
    """Replace this process by the kit's process, so that signals reach it.

    Its health is told on the port `health` of this machine. Raises `BadSite` for an admin's kit,
    and where the kit's process runs already; `BadStudy` where the port cannot be opened.
    """
    words = kit_command(kit)
    begin(kit)
    if health is not None:
        print(f"health: {start_health(kit, health)}", flush=True)
    os.execv(words[0], words)


def begin(kit: Kit) -> int:
    """Hold a kit for its process, and let a server settle the jobs that it lost; return the lock.

    Raises `BadSite` where the kit's process runs already.
    """
    held = hold(kit.running)
    if held is None:
        raise BadSite(f"{kit.folder}: its process runs already; end that one first")
    if _runs_by_nvflare(kit):
        os.close(held)
        raise BadSite(
            f"{kit.folder}: its process runs already, by NVFlare's startup/start.sh; end that one "
            "first (startup/stop_fl.sh)"
        )
    if kit.kind == "server":
        for id, status in settle_lost_jobs(kit).items():
            print(f"job {id} was lost with this server; it is {status} now", flush=True)
    return held


def _runs_by_nvflare(kit: Kit) -> bool:
    """Tell whether NVFlare's own script, or the process that it started, lives."""
    for name in ("daemon_pid.fl", "pid.fl"):
        with suppress(OSError, ValueError, psutil.Error):
            words = psutil.Process(int((kit.folder / name).read_text())).cmdline()
            if any(word.endswith(_BY_SCRIPT) for word in words):
                return True
    return False


def kit_command(kit: Kit) -> list[str]:
    """Return the command that runs a kit's process in the foreground. Raises `BadSite`."""
    if kit.kind == "admin":
        raise BadSite(f"{kit.folder}: is the kit to submit studies with; nothing runs from it")
    check_startable(kit)
    keep_store_in_kit(kit)
    who = [f"uid={kit.name}"] if kit.kind == "client" else []
    module = f"nvflare.private.fed.app.{kit.kind}.{kit.kind}_train"
    workspace = ["-m", str(kit.folder.absolute()), "-s", f"fed_{kit.kind}.json"]
    settings = ["secure_train=true", *who, f"org={_org(kit)}", "config_folder=config"]
    return [sys.executable, "-u", "-m", module, *workspace, "--set", *settings]


def check_startable(kit: Kit) -> None:
    """Refuse a kit that is not complete, or of which the party knows that it was revoked.

    Raises `BadSite`.
    """
    if not kit.key.exists():
        raise BadSite(
            f"{kit.folder}: has no private key ({kit.key.name}); put the site's own into it: "
            "grandrounds site install KIT --key FOLDER"
        )
    try:
        check_not_revoked(read_certificate(kit.certificate), kit.root)
    except WrongSignature as error:
        raise BadSite(f"{kit.folder}: {error}; ask the coordinator for a new kit") from None


def _org(kit: Kit) -> str:
    return organisation(kit.name) if kit.kind == "client" else "coordinator"


@contextmanager
def run_kits(kits: Iterable[Path]) -> Generator[None, None, None]:
    """Run these kits' processes, each with its output in the kit's `console.log`."""
    with ExitStack() as stack:
        for kit in kits:
            stack.enter_context(_process(Kit(kit)))
        yield


@contextmanager
def _process(kit: Kit) -> Generator[None, None, None]:
    words, held = kit_command(kit), begin(kit)
    with (kit.folder / LOG).open("w") as log:
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(held,),
        )
    os.close(held)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_sites(kit: Kit, sites: Iterable[str], *, within: float) -> None:
    """Wait until the server and all sites answer. Raises `RunFailed`."""
    deadline, missing = time.monotonic() + within, set(sites)
    with _session(kit, deadline) as session:
        while missing := missing - set(session.responding_sites()):
            if time.monotonic() > deadline:
                raise RunFailed(f"no answer after {within:g} s: {', '.join(sorted(missing))}")
            time.sleep(1.0)


@contextmanager
def _session(kit: Kit, deadline: float) -> Generator[AdminSession, None, None]:
    with ExitStack() as stack:
        while True:
            try:
                session = stack.enter_context(open_session(kit))
                break
            except NoServer:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
        yield session


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
