"""A run between machines has two sides, the coordinator's and each site's; both are here."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from grandrounds import __version__
from grandrounds.algorithms.policy import TensorPolicy, policy_of
from grandrounds.algorithms.split import Split
from grandrounds.core.code import check_same_code, check_signed_code
from grandrounds.core.device import deterministic
from grandrounds.core.errors import BadInput, BadSite, BadStudy
from grandrounds.core.events import Listener
from grandrounds.core.journal import Journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.serialization import from_plain
from grandrounds.core.state import State
from grandrounds.core.weights import Filter
from grandrounds.engines.envelope import Identity, SealingKey
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import Call, RemoteEngine, SiteConnection, Timeouts, ready
from grandrounds.engines.reply_guard import ReplyGuard
from grandrounds.runs.build import Blueprint, host_sites, make_blueprint, make_federation
from grandrounds.runs.costs import plan_run
from grandrounds.runs.folder import lock_folder
from grandrounds.runs.listeners import EventBus
from grandrounds.runs.loop import RunLoop, run_recorded
from grandrounds.site.cut import cut_model
from grandrounds.site.guard import StudyGuard
from grandrounds.site.model_state import SiteStore
from grandrounds.site.site import Site
from grandrounds.study.acceptance import (
    check_acceptance,
    from_json,
    load_acceptance,
    not_accepted,
    to_json,
)
from grandrounds.study.file import fingerprint
from grandrounds.study.installed import code_of_study
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study


@dataclass(frozen=True)
class Handshake:
    """What the coordinator and every site must have in common before round 1.

    A site that needs one adds its `acceptance` of the study, in which its code is signed.
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
    accept_changes: bool = False,
    listeners: Sequence[Listener] = (),
) -> State:
    """Run a study to its end in `folder`, as `run` does, with sites that `call` reaches.

    No round begins before every site is open, with the same study and versions; with `root`, the
    certificate of the federation's authority, every site must have accepted the study. Raises
    `BadInput` before anything trains, `RunFailed` afterwards.
    """
    check_remote(study)
    machine = study.machine()
    identity = identity_of(fingerprint(study), folder, root, "server")
    connections = tuple(SiteConnection(n, call, patience, identity) for n in study.trainers)
    check_handshakes(
        study, connections, root
    )  # before the folder exists: a refused study can be resubmitted
    with lock_folder(folder, study, resume=resume), deterministic(machine):
        bus = EventBus((Journal(RunFolder(folder).journal), *listeners), study)
        blueprint = make_blueprint(plan_run(study), machine)
        check = reply_guard(blueprint)
        remote = RemoteEngine(connections, bus.on_reply, bus.on_missing, check)
        federation = make_federation(blueprint, remote)
        loop = RunLoop(study, folder, federation, machine, bus, resume, accept_changes)
        return run_recorded(loop)


def identity_of(
    study: str, folder: Path, root: Path | None, party: Literal["server", "client"]
) -> Identity:
    """Return who packs envelopes here: with `root`, who the key beside it belongs to.

    `study` is the SHA-256. A run's letters are bound to its study and to the name of its folder.
    Raises `BadSite`.
    """
    run = f"{study}/{folder.name}"
    if root is None:
        return Identity(run=run)
    key, certificate = root.with_name(f"{party}.key"), root.with_name(f"{party}.crt")
    from grandrounds.study.identity import common_name, load_key, read_certificate, sign, signer

    own = read_certificate(certificate)
    sealing = SealingKey(
        certificate.read_text(), partial(sign, key=load_key(key)), partial(signer, root=root)
    )
    return Identity(common_name(own), run, sealing)


def reply_guard(blueprint: Blueprint) -> ReplyGuard:
    """Return what holds the sites' replies against the study."""
    plan, topology = blueprint.plan, blueprint.topology
    cut = cut_model(topology, plan.task, plan.model) if isinstance(topology, Split) else None
    travels = cut.at_site(plan.travels) if cut else plan.travels
    policies = {
        name: policy_of(
            plan.model,
            travels,
            plan.task.uses(name),
            plan.method.sharing(),
            moments=topology.moments_travel,
            sites=plan.study.trainers,
            labels=isinstance(topology, Split) and topology.labels == "server",
            guards=plan.method.guards,
        )
        for name in plan.study.trainers
    }
    return ReplyGuard(plan.study.rounds, policies)


def study_guard(study: Study, site: Site) -> StudyGuard:
    """Return what holds the requests to a site against its study."""
    topology = study.build_topology()

    def policy(uses: Filter) -> TensorPolicy:
        return policy_of(
            site.trainer.model,
            site.travels,
            uses,
            site.method.sharing(),
            moments=topology.moments_travel,
            sites=study.trainers,
            labels=isinstance(topology, Split) and topology.labels == "server",
            guards=site.method.guards,
        )

    uses = [site.task.uses(name) for name in study.trainers]
    peers = dict(zip(study.trainers, map(policy, uses), strict=True))
    return StudyGuard(
        rounds=study.rounds,
        fine_tune=study.training.fine_tune,
        broadcasts=study.training.first_broadcast,
        roster=study.trainers,
        topology=topology,
        policy=policy(site.uses),
        peers={**peers, "": policy(lambda name: any(used(name) for used in uses))},
        held=SiteStore(site.folder).private.rounds,
        joins=next(each.first_round for each in study.site if each.name == site.name),
    )


def check_remote(study: Study) -> None:
    """Refuse what cannot be done where the data stays at the sites. Raises `BadStudy`."""
    if study.build_method().sharing().pooled:
        raise BadStudy(
            f"method '{study.method.kind}' pools all data in one place; across hospitals it stays "
            "where it is: choose another, or run it with simulated sites"
        )
    if study.holdout_sites:
        raise BadStudy(
            "holdout_sites are scored in the process that trains; across hospitals leave them out, "
            "and use `grandrounds evaluate` at each of them afterwards"
        )


def _revoked(root: Path) -> bytes:
    from grandrounds.study.revocation import list_bytes

    return list_bytes(root)


def check_handshakes(
    study: Study, connections: Sequence[SiteConnection], root: Path | None
) -> None:
    """Wait until all sites are open, and check their handshakes. Raises `BadSite`."""
    ours, code = handshake_of(study), code_of_study(study) if root else ()
    for site, handshake in ready(connections, _revoked(root) if root else b"").items():
        theirs = _handshake_in(site, handshake)
        if replace(theirs, acceptance="") != ours:
            raise BadSite(_difference(site, theirs, ours))
        if root:
            acceptance = from_json(theirs.acceptance.encode())
            check_acceptance(acceptance, site=site, study=ours.study, root=root)
            check_same_code(code, acceptance.code, site)


def _handshake_in(site: str, description: bytes) -> Handshake:
    try:
        return from_plain(Handshake, json.loads(description))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadSite(
            f"site '{site}' does not describe itself as this version does; install the same "
            "version everywhere"
        ) from None


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
    files: Sequence[SiteSource],
    folder: Path,
    accepted: Path | None = None,
) -> Generator[tuple[InProcessEngine, bytes], None, None]:
    """Open one site of a run whose private state lies in `folder`; yield its engine and handshake.

    With `accepted`, the folder of its acceptances, it opens only for a study that it accepted, and
    whose code is what it accepted. Raises `BadInput`.
    """
    facts = signed_handshake(study, site, accepted)
    with (
        lock_folder(folder, study, resume=True),
        host_sites(study, files, folder, 1, (site,)) as engine,
    ):
        yield engine, json.dumps(asdict(facts)).encode()


def signed_handshake(study: Study, site: str, accepted: Path | None) -> Handshake:
    """Return this site's handshake; with `accepted`, together with its acceptance of the study.

    Raises `BadSite` where it has not accepted the study, or other code.
    """
    facts = handshake_of(study)
    return replace(facts, acceptance=_acceptance(study, site, accepted)) if accepted else facts


@contextmanager
def closed_site(refusal: BadInput) -> Generator[tuple[InProcessEngine, bytes], None, None]:
    """Stand for a site that does not even read the study: the coordinator hears why."""
    raise refusal
    yield  # pragma: no cover - this makes a generator of it


def _acceptance(study: Study, site: str, accepted: Path) -> str:
    acceptance = load_acceptance(fingerprint(study), accepted)
    if acceptance is None:
        raise not_accepted(site)
    check_signed_code(acceptance.code, code_of_study(study), site)
    return to_json(acceptance).decode()
