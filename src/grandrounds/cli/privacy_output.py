"""What a planned run reveals, by site, is worked out and printed here."""

from collections.abc import Sequence
from math import inf
from pathlib import Path

from grandrounds.api.progress import plain_console
from grandrounds.data.availability import SiteSummary
from grandrounds.data.cohort import Cohort
from grandrounds.privacy.accounting import Spending
from grandrounds.runs.site_data import (
    budget_in,
    check_budget,
    check_joins,
    open_named,
    training_patients,
)
from grandrounds.runs.site_privacy import (
    PlannedEpsilon,
    check_planned,
    epsilon_words,
    planned_epsilon,
    privacy_words,
    simulated_patients,
)
from grandrounds.study.site_file import SiteFile, read_site
from grandrounds.study.study import Study


def planned_at(
    study: Study, cohorts: Sequence[Cohort] = (), files: Sequence[SiteFile] = ()
) -> list[PlannedEpsilon]:
    """Return what the planned run reveals of simulated sites, and of those that were opened.

    `files` are the site files of the cohorts. Empty where the study has no differential privacy.
    """
    if study.privacy.kind == "none":
        return []
    simulated = [planned_epsilon(study, *site) for site in simulated_patients(study).items()]
    real = [
        planned_epsilon(study, c.site, training_patients(study, c), budget_in(file))
        for c, file in zip(cohorts, files, strict=True)
    ]
    return [each for each in (*simulated, *real) if each is not None]


def print_planned(study: Study, planned: Sequence[PlannedEpsilon]) -> None:
    """Print whom a study's differential privacy protects, and how much is revealed of each site."""
    console = plain_console()
    for line in (*privacy_words(study), *map(epsilon_words, planned)):
        console.print(line, soft_wrap=True, highlight=False)


def planned_as_json(planned: Sequence[PlannedEpsilon]) -> list[dict[str, object]]:
    """Return planned epsilons as JSON, in which one without bound is null."""
    return [
        {
            "site": each.site,
            "run": _as_json(each.run),
            "all_runs": _as_json(each.all_runs) if each.all_runs else None,
            "limit": each.limit,
        }
        for each in planned
    ]


def _as_json(found: Spending) -> dict[str, object]:
    epsilon = found.epsilon if found.epsilon < inf else None
    return {"epsilon": epsilon, "delta": found.delta, "accountant": found.accountant}


def show_own_budget(study: Study, path: Path, *, quiet: bool) -> None:
    """Open a site's data and print what the run reveals of it, unless told to be quiet.

    `path` is its site file; without one, or without differential privacy, nothing is opened. Raises
    `BadInput` where the run reveals more than the study or the site allows.
    """
    if study.privacy.kind == "none" or not path.exists():
        return
    file, [(cohort, _)] = read_site(path), open_named(study, [path])
    check_budget(study, cohort, file)
    if not quiet:
        print_planned(study, planned_at(study, [cohort], [file]))


def check_all_join(
    study: Study, opened: Sequence[tuple[Cohort, SiteSummary]], files: Sequence[SiteFile]
) -> None:
    """Refuse a study that reveals more than it allows, or a site that a run would refuse.

    `files` are the site files of those that were opened. Raises `BadInput`.
    """
    for name, patients in simulated_patients(study).items():
        check_planned(study, name, patients, None)
    for (cohort, summary), file in zip(opened, files, strict=True):
        check_joins(study, cohort, summary, file)
