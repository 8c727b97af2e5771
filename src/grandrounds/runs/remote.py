"""A run between machines has two sides, the coordinator's and each site's; both are here."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from grandrounds import __version__
from grandrounds.core.device import deterministic
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.events import Listener
from grandrounds.core.journal import Journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.sentence import phrase
from grandrounds.core.state import State
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import Call, RemoteEngine, SiteConnection, Timeouts, ready
from grandrounds.runs.build import host_sites, make_blueprint, make_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.listeners import EventBus
from grandrounds.runs.loop import RunLoop, run_recorded
from grandrounds.study.acceptance import check_acceptance, from_json, load_acceptance, to_json
from grandrounds.study.file import fingerprint
from grandrounds.study.site_file import SiteFile
from grandrounds.study.study import Study


@dataclass(frozen=True)
class Handshake:
    """What the coordinator and every site must have in common before round 1.

    A site that needs one adds its `acceptance` of the study.
    """

    study: str
    version: str
    torch: str
    acceptance: str = ""


def handshake_of(study: Study) -> Handshake:
    """Return this process's handshake."""
    return Handshake(fingerprint(study), __version__, torch.__version__)


def run_remotely(
    study: Study,
    folder: Path,
    call: Call,
    *,
    patience: Timeouts,
    root: Path | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> State:
    """Run a study to its end in `folder`, as `run` does, with sites that `call` reaches.

    No round begins before every site is open, with the same study and versions; with `root`, the
    certificate of the federation's authority, every site must have accepted the study. Raises
    `BadInput` before anything trains, `RunFailed` afterwards.
    """
    check_remote(study)
    machine = study.training.machine()
    connections = tuple(SiteConnection(name, call, patience) for name in study.trainers)
    _check_handshakes(
        study, connections, root
    )  # before the folder exists: a refused study can be resubmitted
    with lock_folder(folder, study, resume=resume), deterministic(machine):
        bus = EventBus((Journal(RunFolder(folder).journal), *listeners), study)
        remote = RemoteEngine(connections, bus.on_reply, bus.on_missing)
        federation = make_federation(make_blueprint(plan_run(study), machine), remote)
        return run_recorded(RunLoop(study, folder, federation, machine, bus, resume))


def check_remote(study: Study) -> None:
    """Refuse what cannot be done where the data stays at the sites. Raises `BadStudy`."""
    if study.build_method().pooled:
        raise BadStudy(
            f"method '{study.method.kind}' pools all data in one place; across hospitals it stays "
            "where it is: choose another, or run it with simulated sites"
        )
    if study.holdout_sites:
        raise BadStudy(
            "holdout_sites are scored in the process that trains; across hospitals leave them out, "
            "and use `grandrounds evaluate` at each of them afterwards"
        )


def _check_handshakes(
    study: Study, connections: Sequence[SiteConnection], root: Path | None
) -> None:
    """Wait until all sites are open, and check their handshakes. Raises `BadSite`."""
    ours = handshake_of(study)
    for site, handshake in ready(connections).items():
        theirs = Handshake(**json.loads(handshake))
        if replace(theirs, acceptance="") != ours:
            raise BadSite(_difference(site, theirs, ours))
        if root:
            check_acceptance(
                from_json(theirs.acceptance.encode()), site=site, study=ours.study, root=root
            )


def _difference(site: str, theirs: Handshake, ours: Handshake) -> str:
    if theirs.study != ours.study:
        return (
            f"site '{site}' has another study (SHA-256 {theirs.study[:12]}...) than the "
            f"coordinator ({ours.study[:12]}...); give both the same file"
        )
    return (
        f"site '{site}' runs grandrounds {theirs.version} with torch {theirs.torch}, the "
        f"coordinator {ours.version} with {ours.torch}; install the same versions everywhere"
    )


@contextmanager
def serve_site(
    study: Study,
    site: str,
    files: Sequence[SiteFile],
    folder: Path,
    accepted: Path | None = None,
) -> Generator[tuple[InProcessEngine, bytes], None, None]:
    """Open one site of a run whose private state lies in `folder`; yield its engine and handshake.

    With `accepted`, the folder of its acceptances, it opens only for a study that it accepted.
    Raises `BadInput`.
    """
    facts = handshake_of(study)
    if accepted:
        facts = replace(facts, acceptance=_acceptance(study, site, accepted))
    with (
        lock_folder(folder, study, resume=True),
        host_sites(study, files, folder, 1, (site,)) as engine,
    ):
        yield engine, json.dumps(asdict(facts)).encode()


def _acceptance(study: Study, site: str, accepted: Path) -> str:
    acceptance = load_acceptance(fingerprint(study), accepted)
    if acceptance is None:
        raise BadSite(
            f"site '{site}' has not accepted this study; look at it and sign it there: "
            "grandrounds site accept STUDY --kit KIT",
            safe=phrase(
                "it has not accepted this study; look at it and sign it there: "
                "grandrounds site accept STUDY --kit KIT"
            ),
        )
    return to_json(acceptance).decode()
