"""A study's costs, a site's data, and what a site accepted and answered are printed here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from grandrounds.api.progress import plain_console
from grandrounds.cli.tables import print_table
from grandrounds.core.code import Code
from grandrounds.core.events import TopologySet
from grandrounds.data.availability import SiteSummary
from grandrounds.runs.costs import (
    Estimate,
    RunPlan,
    beside_words,
    estimate,
    leaving_words,
    plan_run,
    planned_steps,
    topologies,
)
from grandrounds.site.audit import AuditEntry
from grandrounds.study.acceptance import Acceptance
from grandrounds.study.checks import advice_on_groups, notes
from grandrounds.study.file import fingerprint, to_table, to_toml
from grandrounds.study.study import Study

MIB, _GIB = 2**20, 2**30


def study_as_json(
    plan: RunPlan, cost: Estimate, summaries: Sequence[SiteSummary]
) -> dict[str, object]:
    """Return what `check` says as JSON of a study, its cost and its sites."""
    study = plan.study
    machine = study.machine()
    return {
        "study": to_table(study),
        "sha256": fingerprint(study),
        "notes": notes(study),
        "policy": asdict(cost.policy),
        "beside_the_model": _beside_as_json(plan),
        "topology": asdict(cost.topology),
        "topologies": {kind: _topology(found) for kind, found in topologies(plan).items()},
        "steps_per_round": planned_steps(study),
        "bytes_per_round": cost.bytes_per_round,
        "bytes_per_run": cost.bytes_per_run,
        "memory": cost.memory,
        "device": str(machine.device),
        "precision": machine.precision_name,
        "sites": [asdict(summary) for summary in summaries],
    }


def _beside_as_json(plan: RunPlan) -> dict[str, object]:
    sharing = plan.method.sharing()
    return {"sends": list(sharing.sends), "receives": list(sharing.receives)}


def _topology(found: TopologySet | str) -> dict[str, object]:
    return {"refused": found} if isinstance(found, str) else asdict(found)


def print_study(plan: RunPlan, cost: Estimate) -> None:
    """Print the resolved study and its costs, and what other topologies would cost."""
    study, console = plan.study, plain_console()
    machine = study.machine()
    console.print(to_toml(study))
    table = Table("parameter group", "policy", "tensors", "parameters", title="Tensor policy")
    for group in cost.policy.groups:
        table.add_row(group.group, group.policy, str(group.tensors), f"{group.parameters:,}")
    print_table(table, console)
    for line in beside_words(plan):
        console.print(line)
    console.print(f"norm buffers: {cost.policy.norm_buffers}")
    _print_topologies(console, plan, cost)
    for line in _depth_words(plan, cost):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"a round: {cost.bytes_per_round / MIB:,.1f} MiB over all links")
    if cost.update != cost.update_full:
        kib = (size / 2**10 for size in (cost.update, cost.update_full))
        console.print("a site's update of a round: {:,.0f} KiB; in full {:,.0f} KiB".format(*kib))
    console.print(f"the run: {cost.bytes_per_run / MIB:,.1f} MiB in {cost.rounds} rounds")
    console.print(
        f"memory: about {cost.memory / _GIB:.1f} GiB where one process simulates all sites"
    )
    console.print(f"here: {machine.device}, {machine.precision_name}, {machine.threads} threads")
    console.print(f"SHA-256 of the resolved study: {fingerprint(study)}")
    for note in notes(study):
        console.print(f"note: {note}", style="yellow")


def _print_topologies(console: Console, plan: RunPlan, cost: Estimate) -> None:
    seen = Table("who", "sees", title=f"Who sees what over topology '{cost.topology.kind}'")
    for who, what in cost.topology.sees.items():
        seen.add_row(who, what)
    if cost.bytes_per_round:
        print_table(seen, console)
    heads = ("topology", "a round", "steps in a row", "takes", "the coordinator sees")
    table = Table(*heads, title="Topologies")
    refused: list[str] = []
    for kind, found in topologies(plan).items():
        if isinstance(found, str):
            refused.append(f"not {kind}: {found}")
            continue
        moved = f"{found.bytes_per_round / MIB:,.1f} MiB"
        sees = next(iter(found.sees.values())) if found.bytes_per_round else "nothing"
        table.add_row(kind, moved, _in_a_row(found, plan), found.wall_clock, sees)
    print_table(table, console)
    for sentence in filter(None, (*refused, advice_on_groups(plan.study))):
        console.print(sentence, soft_wrap=True)


def _in_a_row(found: TopologySet, plan: RunPlan) -> str:
    """Say how many steps a model takes one after another in a round, and whose they are."""
    sites = 1 if plan.method.sharing().pooled else len(plan.study.trainers)
    whose = "of one site"
    if found.groups > 1:
        whose = "of all sites" if found.groups == sites else f"of {found.groups} groups"
    return f"{found.steps_in_a_row:,}, {whose}" if found.steps_in_a_row else whose


def _depth_words(plan: RunPlan, cost: Estimate) -> list[str]:
    """Say how many steps a round and the run have at a site, and in a row."""
    study, steps = plan.study, sorted(planned_steps(plan.study).values())
    row = cost.topology.steps_in_a_row
    if not row:
        return ["steps in a round: known once every site has told its files", *_more_work(plan)]
    local = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"
    where = "on pooled data" if plan.method.sharing().pooled else "at a site"
    return [
        f"steps in a round: {local} {where}, {row:,} in a row for one model",
        f"the run: up to {row * study.rounds:,} steps in a row, in {study.rounds} rounds",
        *_more_work(plan),
    ]


def _more_work(plan: RunPlan) -> list[str]:
    """Say which steps come on top of those of a round."""
    tuned = plan.study.training.fine_tune
    more = f"{tuned} more epoch{'' if tuned == 1 else 's'} at each site in the end" if tuned else ""
    return [f"besides: {words}" for words in (plan.method.extra_work(), more) if words]


def print_site(summary: SiteSummary, *, items: bool = False) -> None:
    """Print the counts of a site's data, which are `items` of a dataset or sessions of slices."""
    console = plain_console()
    if items:
        _print_items(console, summary)
        return
    table = Table("", "patients", "sessions", "slices", title=f"Site '{summary.site}'")
    counts = [*summary.splits.items(), *summary.contents.items()]
    for task, splits in summary.tasks.items():
        counts += [(f"{task} {split}", count) for split, count in splits.items()]
    for name, count in counts:
        table.add_row(name, str(count.patients), str(count.sessions), str(count.slices))
    print_table(table, console)
    if geometry := summary.geometry:
        console.print(
            f"spacing (mm): {_ranges(geometry.spacing)}; size (pixels): {_ranges(geometry.size)}"
        )
    for note in summary.notes:
        console.print(str(note), soft_wrap=True)


def _print_items(console: Console, summary: SiteSummary) -> None:
    table = Table("", "patients", "items", title=f"Site '{summary.site}'")
    for split, count in summary.splits.items():
        table.add_row(split, str(count.patients), str(count.sessions))
    print_table(table, console)
    for note in summary.notes:
        console.print(str(note), soft_wrap=True)


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    return " x ".join(f"{low:g}" if low == high else f"{low:g}-{high:g}" for low, high in ranges)


def print_patients(variable: str, patients: Mapping[str, Mapping[str, int]]) -> None:
    """Print how many patients of each label are assigned to every pseudo-site."""
    labels = tuple(next(iter(patients.values())))
    table = Table("site", *(f"{variable} {label}" for label in labels), title="Patients")
    for site, counts in patients.items():
        table.add_row(site, *(str(counts[label]) for label in labels))
    print_table(table)


def print_code(code: Sequence[Code]) -> None:
    """Print which installed packages the code of a study belongs to."""
    for each in code:
        plain_console().print(Text(f"runs {each.sentence}"), soft_wrap=True)


def leaving_as_json(study: Study) -> dict[str, object]:
    """Return, as JSON, what will leave each site that accepts a study."""
    cost = estimate(plan_run(study))
    shared = [group for group in cost.policy.groups if group.policy != "private"]
    return {
        "groups": {group.group: group.parameters for group in shared},
        "bytes_per_round": cost.bytes_per_round // len(study.trainers),
        "rounds": study.rounds,
        "scores": f"of each test case, {study.task.metric} and others, by pseudonyms",
        "policy": leaving_words(study),
    }


def print_leaving(study: Study, site: str) -> None:
    """Print a study and what will leave a site that accepts it."""
    console, cost = plain_console(), estimate(plan_run(study))
    console.print(to_toml(study))
    table = Table("parameter group", "policy", "parameters", title=f"What leaves '{site}'")
    for group in cost.policy.groups:
        table.add_row(group.group, group.policy, f"{group.parameters:,}")
    print_table(table, console)
    for line in leaving_words(study):
        console.print(line)


def print_acceptances(acceptances: Sequence[Acceptance]) -> None:
    """Print which studies a site has accepted, and since when."""
    if not acceptances:
        plain_console().print("no study is accepted here")
        return
    table = Table(Column("study (SHA-256)", no_wrap=True), "accepted", "what leaves")
    for each in acceptances:
        table.add_row(each.study[:16], each.time, each.policy[0] if each.policy else "")
    print_table(table)
    for each in acceptances:
        for code in each.code:
            words = f"{each.study[:16]} runs {code.sentence}"
            plain_console().print(Text(words), soft_wrap=True)


def print_audit(lines: Sequence[tuple[float, AuditEntry]]) -> None:
    """Print what was asked of a site, and what left it: whole on a terminal of 80 columns."""
    console = plain_console()
    if not lines:
        console.print("nothing was asked of this site yet")
    for moment, entry in lines:
        what = " ".join((entry.asked, *(f"{name}={v}" for name, v in entry.what.items())))
        when = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"
        console.print(Text(f"{when}  {entry.who}: {what}, round {entry.round}"), soft_wrap=True)
        for line in _left(entry):
            console.print(Text(f"    {line}"), soft_wrap=True)


def _left(entry: AuditEntry) -> list[str]:
    """Say what left a site in answer to a request, or why nothing did."""
    if entry.refused or entry.failed:
        return [f"refused: {entry.refused}" if entry.refused else f"failed: {entry.failed}"]
    to = f", to {', '.join(entry.to)}" if entry.to else ""
    if entry.asked == "survey":
        return [f"statistics left, {entry.bytes:,} bytes", f"SHA-256 {entry.digest}"]
    scores = [f"{entry.scores:,} scores left"] if entry.scores else []
    if not entry.tensors:
        return scores or ["nothing left but counts and means"]
    return [
        *scores,
        f"{entry.tensors:,} tensors left, {entry.bytes:,} bytes{to}",
        f"SHA-256 {entry.digest}",
    ]
