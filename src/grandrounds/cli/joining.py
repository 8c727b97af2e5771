"""What `grandrounds evaluate` and `grandrounds adapt` do: from arguments to tables on stdout."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from grandrounds.core.errors import BadInput
from grandrounds.core.run_folder import RunFolder
from grandrounds.runs.adapt import Joined, adapt
from grandrounds.runs.evaluate import Scores, at_site, matrix
from grandrounds.runs.folder import Finished, finished_runs
from grandrounds.runs.site_data import guest_of
from grandrounds.study.site_file import matched, read_site

Means: TypeAlias = dict[str, dict[str, float]]  # site -> metric -> mean


def evaluate_sites(
    folder: Path, *, sites: Sequence[Path], with_matrix: bool, as_json: bool, quiet: bool
) -> None:
    """Test the models of a run, or of every run of a comparison."""
    if not sites and not with_matrix:
        raise BadInput("evaluate: say what to test on: --site SITE.toml, or --matrix for all sites")
    told: list[dict[str, object]] = []
    for run in finished_runs(folder):
        found = _matrix(run, sites) if with_matrix else {"its model": _at_sites(run, sites)}
        scores = found if with_matrix else found["its model"]
        told.append({"arm": run.told.arm, "seed": run.told.seed, "scores": scores})
        if not as_json and not quiet:
            _print(run, found)
    if as_json:
        print(json.dumps(told, indent=2))


def _matrix(run: Finished, sites: Sequence[Path]) -> dict[str, Means]:
    files = [read_site(path) for path in sites]
    matched(run.study, files)
    return {f"model of {m}": _means(run, scores) for m, scores in matrix(run, files).items()}


def _at_sites(run: Finished, sites: Sequence[Path]) -> Means:
    found = [at_site(run, guest_of(run.study, str(path))) for path in sites]
    return {site: mean for scores in found for site, mean in _means(run, scores).items()}


def _means(run: Finished, scores: Scores) -> Means:
    sites = dict.fromkeys(score.site for score in scores)
    task = run.study.bound()
    return {site: task.summary([s for s in scores if s.site == site]) for site in sites}


def _print(run: Finished, found: Mapping[str, Means]) -> None:
    metric = run.study.task.metric
    sites = list(dict.fromkeys(site for means in found.values() for site in means))
    table = Table("", *sites, title=f"{run.told.arm}, seed {run.told.seed}: test {metric}")
    for row, means in found.items():
        table.add_row(
            row, *(f"{means[site][metric]:.2f}" if site in means else "-" for site in sites)
        )
    Console().print(table)


def adapt_site(folder: Path, given: str, *, epochs: int, as_json: bool, quiet: bool) -> None:
    """Let a new site join a finished run, and compare it with training alone."""
    run = Finished(folder)
    guest = guest_of(run.study, given)
    found = adapt(run, guest, epochs=epochs)
    scores = {joined.name: run.study.bound().summary(joined.scores) for joined in found}
    if as_json:
        told = {j.name: {"steps": j.steps, "scores": scores[j.name]} for j in found}
        print(json.dumps({guest.name: told}, indent=2))
    elif not quiet:
        _print_joined(guest.name, found, scores)
        print(f"private part: {RunFolder(folder).adapted(guest.name).private()}")


def _print_joined(
    name: str, found: Sequence[Joined], scores: Mapping[str, Mapping[str, float]]
) -> None:
    metrics = list(scores[found[0].name])
    table = Table("model", "own steps", *metrics, title=f"{name} joins: test scores")
    for joined in found:
        means = scores[joined.name]
        table.add_row(joined.name, str(joined.steps), *(f"{means[m]:.3f}" for m in metrics))
    Console().print(table)
