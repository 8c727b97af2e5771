"""What the commands do: from arguments to results. Results go to stdout, progress to stderr."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from grandrounds.cli.output import show
from grandrounds.cli.progress import Bars, stoppable, warn
from grandrounds.core.device import num_cores
from grandrounds.core.errors import BadSite
from grandrounds.core.events import Event, TopologySet
from grandrounds.data.availability import SiteSummary, check_elements
from grandrounds.data.partition import Deal, counts, deal, read_pool, write_sites
from grandrounds.report.page.html import write_report
from grandrounds.report.tracking.tracker import tracked
from grandrounds.runs.costs import Estimate, estimate, topologies
from grandrounds.runs.loop import run
from grandrounds.runs.site_data import open_site
from grandrounds.study.checks import notes
from grandrounds.study.file import fingerprint, read_study, to_table, to_toml
from grandrounds.study.site_file import read_site
from grandrounds.study.study import Study

MIB = 2**20


def run_study(
    path: Path,
    *,
    out: Path | None,
    overrides: Sequence[str],
    sites: Sequence[Path],
    workers: int,
    resume: bool,
    as_json: bool,
    quiet: bool,
    track: Sequence[str] = (),
    include_images: bool = False,
) -> None:
    """Run one study and write its report; what `track` names hears of it, too."""
    study = read_study(path, overrides)
    folder = out or Path("runs") / study.name
    files = [read_site(site) for site in sites]
    console = Console(stderr=True, quiet=quiet)
    for note in notes(study):
        console.print(f"note: {note}", style="yellow")
    with tracked(folder, track, warn) as trackers, Bars(console) as bars:
        title = study.build_method().title
        bars.add(study.title, title, study.rounds)

        def hear(event: Event) -> None:
            bars.hear(study.title, event)

        with stoppable("with --resume"):
            at_once = workers or num_cores()
            listeners = [hear, *trackers]
            run(study, folder, files=files, resume=resume, listeners=listeners, workers=at_once)
    report = write_report(folder, include_images=include_images)
    show(folder, report, as_json=as_json, quiet=quiet)


def deal_out(
    path: Path, variable: str, plan: Deal, *, out: Path, as_json: bool, quiet: bool
) -> None:
    """Deal a dataset to pseudo-sites, write them, and say how many of each label they have."""
    pool = read_pool(path, variable)
    dealt = deal(pool.labels, plan)
    write_sites(pool, dealt, plan, out)
    found = dict(zip(plan.names, counts(pool.labels, dealt), strict=True))
    if as_json:
        print(json.dumps({"variable": variable, "sites": found}, indent=2))
    elif not quiet:
        labels = tuple(found[plan.names[0]])
        grid = Grid("site", *(f"{variable} {label}" for label in labels), title="Patients")
        for name, own in found.items():
            grid.add_row(name, *(str(own[label]) for label in labels))
        Console().print(grid)


def check_study(
    path: Path,
    *,
    overrides: Sequence[str],
    sites: Sequence[Path],
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what a study means and costs, and what each given site can deliver. Raises `BadInput`."""
    study = read_study(path, overrides)
    cost = estimate(study)
    summaries = [_summary(study, site) for site in sites]
    if as_json:
        print(json.dumps(_facts(study, cost, summaries), indent=2))
    elif not quiet:
        _print_study(study, cost)
        for summary in summaries:
            _print_site(summary)
    for summary in summaries:
        check_elements(summary, study.elements, study.roster[summary.site])


def _summary(study: Study, path: Path) -> SiteSummary:
    file = read_site(path)
    for spec in study.site:
        if spec.name == file.name and spec.data == "files":
            return open_site(study, spec, file)[1]
    real = ", ".join(spec.name for spec in study.site if spec.data == "files") or "none"
    raise BadSite(f"{path}: the study has no real site named '{file.name}'; it has {real}")


def _facts(study: Study, cost: Estimate, summaries: Sequence[SiteSummary]) -> dict[str, object]:
    machine = study.training.machine()
    return {
        "study": to_table(study),
        "sha256": fingerprint(study),
        "notes": notes(study),
        "policy": asdict(cost.policy),
        "topology": asdict(cost.topology),
        "topologies": {kind: _told(found) for kind, found in topologies(study).items()},
        "bytes_per_round": cost.bytes_per_round,
        "bytes_per_run": cost.bytes_per_run,
        "memory": cost.memory,
        "device": str(machine.device),
        "precision": machine.precision_name,
        "sites": [asdict(summary) for summary in summaries],
    }


def _print_study(study: Study, cost: Estimate) -> None:
    console = Console()
    machine = study.training.machine()
    console.print(to_toml(study), markup=False, highlight=False)
    grid = Grid("parameter group", "policy", "tensors", "parameters", title="Tensor policy")
    for group in cost.policy.groups:
        grid.add_row(group.group, group.policy, str(group.tensors), f"{group.parameters:,}")
    console.print(grid)
    console.print(f"norm buffers: {cost.policy.norm_buffers}")
    _print_topologies(console, study, cost)
    console.print(f"a round: {cost.bytes_per_round / MIB:,.1f} MiB over all links")
    console.print(f"the run: {cost.bytes_per_run / MIB:,.1f} MiB in {cost.rounds} rounds")
    console.print(
        f"memory: about {cost.memory / 2**30:.1f} GiB where one process simulates all sites"
    )
    console.print(f"here: {machine.device}, {machine.precision_name}, {machine.threads} threads")
    console.print(f"SHA-256 of the resolved study: {fingerprint(study)}")
    for note in notes(study):
        console.print(f"note: {note}", style="yellow")


def _told(found: TopologySet | str) -> dict[str, object]:
    return {"refused": found} if isinstance(found, str) else asdict(found)


def _print_topologies(console: Console, study: Study, cost: Estimate) -> None:
    seen = Grid("who", "sees", title=f"Who sees what over topology '{cost.topology.kind}'")
    for who, what in cost.topology.sees.items():
        seen.add_row(who, what)
    if cost.bytes_per_round:
        console.print(seen)
    grid = Grid("topology", "a round", "takes", "the coordinator sees", title="Topologies")
    refused: list[str] = []
    for kind, found in topologies(study).items():
        if isinstance(found, str):
            refused.append(f"not {kind}: {found}")
            continue
        moved = f"{found.bytes_per_round / MIB:,.1f} MiB"
        sees = next(iter(found.sees.values())) if found.bytes_per_round else "nothing"
        grid.add_row(kind, moved, found.wall_clock, sees)
    console.print(grid)
    for sentence in refused:
        console.print(sentence, markup=False)


def _print_site(summary: SiteSummary) -> None:
    console = Console()
    grid = Grid("", "patients", "sessions", "slices", title=f"Site '{summary.site}'")
    for name, count in [*summary.splits.items(), *summary.contents.items()]:
        grid.add_row(name, str(count.patients), str(count.sessions), str(count.slices))
    for task, splits in summary.tasks.items():
        for split, count in splits.items():
            row = (str(count.patients), str(count.sessions), str(count.slices))
            grid.add_row(f"{task} {split}", *row)
    console.print(grid)
    if geometry := summary.geometry:
        console.print(
            f"spacing (mm): {_ranges(geometry.spacing)}; size (pixels): {_ranges(geometry.size)}"
        )
    for note in summary.notes:
        console.print(note)


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    return " x ".join(f"{low:g}" if low == high else f"{low:g}-{high:g}" for low, high in ranges)
