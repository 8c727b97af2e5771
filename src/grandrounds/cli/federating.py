"""The commands of a federation of hospitals: what each asks for, and what it prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Column
from rich.table import Table as Grid

from grandrounds.cli.output import show
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.engines.remote import Patience
from grandrounds.report.page.html import write_report
from grandrounds.runs.costs import estimate
from grandrounds.runs.remote import check_apart
from grandrounds.study.acceptance import accept, keep
from grandrounds.study.file import fingerprint, read_study, to_toml
from grandrounds.study.study import Study

_START = 180.0  # seconds in which a demonstration's processes are there


def need_flare() -> None:
    """Refuse to go on without NVFlare. Raises `BadStudy`."""
    if find_spec("nvflare") is None:
        raise BadStudy("NVIDIA FLARE is not installed here: pip install 'grandrounds[flare]'")


def provision_kits(study: Path, server: str, out: Path, *, port: int, as_json: bool) -> None:
    """Make the startup kits of a study's federation."""
    need_flare()
    from grandrounds.flare.provision import provision

    resolved = read_study(study)
    check_apart(resolved)
    kits = provision(resolved, server, out, port=port)
    if as_json:
        print(json.dumps({name: str(kit) for name, kit in kits.items()}, indent=2))
        return
    grid = Grid("kit", "for", "there, once", title="Startup kits: each holds a private key")
    for name, kit in kits.items():
        whose, once = _handed_to(name)
        grid.add_row(str(kit), whose, once)
    Console().print(grid)


def _handed_to(name: str) -> tuple[str, str]:
    if name == "server":
        return "the machine that the sites reach", "grandrounds federation start KIT"
    if name == "admin":
        return "who submits the study", "grandrounds federation submit STUDY --kit KIT"
    return f"site '{name}'", "grandrounds site accept STUDY --kit KIT, then federation start KIT"


def start_kit(folder: Path) -> None:
    """Run a kit's process in the foreground, until it is told to end."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.processes import start

    start(Kit(folder))


def export_study(study: Path, out: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Write a study's job folder, for NVFlare's own clients."""
    need_flare()
    from grandrounds.flare.job import export_job

    resolved = read_study(study, overrides)
    check_apart(resolved)
    export_job(resolved, out)
    print(json.dumps({"job": str(out)}) if as_json else f"job: {out}")


def accept_study(study: Path, kit: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Show what a study asks of a site and what will leave it, and sign the study's SHA-256."""
    need_flare()
    from grandrounds.flare.kit import Kit

    resolved, ours = read_study(study, overrides), Kit(kit)
    if ours.kind != "client" or ours.name not in resolved.trainers:
        known = ", ".join(resolved.trainers)
        raise BadSite(f"{kit}: is not the kit of a site of this study; it has {known}")
    word = accept(fingerprint(resolved), ours.startup / "client.key", ours.startup / "client.crt")
    path = keep(word, ours.local)
    if as_json:
        facts = asdict(word) | {"file": str(path), "leaves": _leaving(resolved)}
        print(json.dumps(facts, indent=2))
        return
    _print_leaving(resolved, ours.name)
    Console().print(f"accepted by '{word.site}': {word.study}\nsigned in {path}", soft_wrap=True)


def _leaving(study: Study) -> dict[str, object]:
    cost = estimate(study)
    shared = [group for group in cost.policy.groups if group.policy != "private"]
    return {
        "groups": {group.group: group.parameters for group in shared},
        "bytes_per_round": cost.bytes_per_round // len(study.trainers),
        "rounds": study.rounds,
        "scores": f"of each test case, {study.task.metric} and others, by pseudonyms",
    }


def _print_leaving(study: Study, site: str) -> None:
    console, cost = Console(), estimate(study)
    console.print(to_toml(study), markup=False, highlight=False)
    grid = Grid("parameter group", "policy", "parameters", title=f"What leaves '{site}'")
    for group in cost.policy.groups:
        grid.add_row(group.group, group.policy, f"{group.parameters:,}")
    console.print(grid)
    mib = cost.bytes_per_round / len(study.trainers) / 2**20
    console.print(f"about {mib:,.1f} MiB a round, both ways, in {study.rounds} rounds")
    console.print(f"the scores of each test case ({study.task.metric} and others), by pseudonyms")
    console.print("counts of patients, sessions and slices; if something fails, its failure card")
    console.print("no image, no path, no name of a patient")


@dataclass(frozen=True)
class Submission:
    """What the person at the admin's kit submits, and how long it waits for a site, in seconds."""

    study: Path
    kit: Path
    overrides: Sequence[str]
    silence: float
    deadline: float
    quiet: bool

    def go(
        self, *, resume: bool, wait: bool, on_loss: Literal["stop", "wait"], as_json: bool
    ) -> None:
        """Submit the study, or resume its run; with `wait`, until it is over.

        Raises `BadStudy` for options that do not go together, `RunFailed` for a job that failed.
        """
        if on_loss == "wait" and not wait:
            raise BadStudy("--on-loss wait resumes the run itself; leave out --no-wait")
        need_flare()
        from grandrounds.flare.kit import Kit
        from grandrounds.flare.session import desk
        from grandrounds.flare.supervise import Rounds, Steady, see

        study, kit = read_study(self.study, self.overrides), Kit(self.kit)
        check_apart(study)
        patience = Patience(silence=self.silence, deadline=self.deadline)
        console = Console(stderr=True, quiet=self.quiet or as_json)

        def tell(sentence: str) -> None:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)

        def begun(id: str) -> None:
            print(json.dumps({"job": id}) if as_json else f"job: {id}", flush=True)

        if on_loss == "wait":
            Steady(kit, study, patience, tell, begun, resume).see_through()
            return
        with desk(kit) as session:
            id = session.submit(study, patience, resume=resume)
            begun(id)
            if wait:
                see(*session.wait(id, look=Rounds(tell)))


def show_status(kit: Path, *, as_json: bool) -> None:
    """Say which sites answer and what the jobs do."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import desk

    with desk(Kit(kit)) as session:
        there, jobs = session.there(), session.jobs()
    if as_json:
        print(json.dumps({"sites": there, "jobs": [asdict(job) for job in jobs]}, indent=2))
        return
    console = Console()
    console.print(f"there: {', '.join(there) or 'no site'}")
    whole = Column("job", no_wrap=True)  # to be copied
    grid = Grid(whole, "study", "status", "round", "submitted")
    for job in jobs:
        round = f"{job.told['round']} of {job.told['rounds']}" if job.told else ""
        grid.add_row(job.id, job.name, job.status, round, job.submitted)
    console.print(grid)


def show_logs(id: str, kit: Path) -> None:
    """Print the server's log of a job."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import desk

    with desk(Kit(kit)) as session:
        print(session.logs(id))


def abort_job(id: str, kit: Path) -> None:
    """Stop a job; what it has saved can be resumed."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import desk

    with desk(Kit(kit)) as session:
        session.abort(id)


def fetch_job(id: str, kit: Path, out: Path, *, as_json: bool, quiet: bool) -> None:
    """Bring a job's run folder here, and write its report."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import desk

    with desk(Kit(kit)) as session:
        folder = session.fetch(id, out)
    show(folder, write_report(folder), as_json=as_json, quiet=quiet)


def demonstrate(study: Study, out: Path, *, as_json: bool, quiet: bool) -> None:
    """Do every step of a federation on this machine: kits, acceptance, server and sites, a run."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.processes import everyone, free_port, hosted
    from grandrounds.flare.provision import provision
    from grandrounds.flare.supervise import see

    check_apart(study)
    console = Console(stderr=True, quiet=quiet)
    kits = provision(study, "localhost", out / "kits", port=free_port())
    console.print(f"startup kits with keys and certificates in {out / 'kits'}")
    for site in study.trainers:
        startup = kits[site] / "startup"
        word = accept(fingerprint(study), startup / "client.key", startup / "client.crt")
        keep(word, kits[site] / "local")
    console.print(f"accepted by {', '.join(study.trainers)}")
    with (
        hosted(kit for name, kit in kits.items() if name != "admin"),
        everyone(Kit(kits["admin"]), study.trainers, within=_START) as session,
    ):
        console.print("server and sites run, each in a process of its own")
        id = session.submit(study, Patience())
        see(*session.wait(id))
        folder = session.fetch(id, out / "run")
    show(folder, write_report(folder), as_json=as_json, quiet=quiet)
