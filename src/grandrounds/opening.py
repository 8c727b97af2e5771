"""Opening a site's data: simulated or read, prepared, and checked against the study."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from grandrounds.data.case import Cohort, Session, Split
from grandrounds.data.inspect import (
    SiteSummary,
    check_elements,
    describe,
    describe_arrays,
    describe_simulated,
)
from grandrounds.data.nifti import find_sessions
from grandrounds.data.prepare import cache_key, cached_session, prepare_cohort
from grandrounds.data.simulate import SIMULATOR_VERSION, patient_labels, simulate_session
from grandrounds.data.stack import is_stack, stack_cohort
from grandrounds.data.table import (
    PARTICIPANTS,
    is_table,
    read_table,
    table_cohort,
    with_values,
)
from grandrounds.events import SiteReady
from grandrounds.failures import Redactor, whole
from grandrounds.site_file import SiteFile, default_cache, matched
from grandrounds.study import SiteSpec, Study

POOLED = "pooled"


@dataclass(frozen=True)
class Opened:
    """One site's prepared data, and what may be said of it: counts only."""

    name: str
    cohorts: tuple[Cohort, ...]
    ready: SiteReady
    shows_images: bool
    redact: Callable[[str], str] = whole


def open_sites(
    study: Study, files: Sequence[SiteFile], *, only: Container[str] | None = None
) -> dict[str, Opened]:
    """Open every site of the roster, or only some.

    Raises `BadSite` or `BadImage` where one cannot deliver the common data elements: a run starts
    only when all can.
    """
    by_name = matched(study, files, only)
    specs = [spec for spec in study.site if only is None or spec.name in only]
    return {spec.name: _open(study, spec, by_name.get(spec.name)) for spec in specs}


def _open(study: Study, spec: SiteSpec, file: SiteFile | None) -> Opened:
    cohort, summary = open_site(study, spec, file)
    check_elements(summary, elements=study.elements, tasks=spec.tasks)
    shows = file is None or file.include_images
    return Opened(spec.name, (cohort,), _ready(summary), shows, _redactor(cohort, file))


def _redactor(cohort: Cohort, file: SiteFile | None) -> Callable[[str], str]:
    """Take a real site's paths and names out of its failure cards, unless it allows them."""
    if file is None or file.reveal_failures:
        return whole
    sessions = tuple(cohort)
    return Redactor(frozenset({s.patient for s in sessions} | {s.label for s in sessions}))


def open_site(study: Study, spec: SiteSpec, file: SiteFile | None) -> tuple[Cohort, SiteSummary]:
    """Prepare one site's data, or take it from the cache, and count it.

    Raises `BadSite` or `BadImage`.
    """
    if file is None:
        cohort = _simulated(study, spec)
        return cohort, describe_simulated(cohort, elements=study.elements, tasks=spec.tasks)
    if is_stack(file.data) or is_table(file.data, study.elements):
        make = stack_cohort if is_stack(file.data) else table_cohort
        cohort = make(spec.name, file.data, study.elements)
        return cohort, describe_arrays(cohort, elements=study.elements, tasks=spec.tasks)
    cohort = _prepared(study, spec, file)
    found = find_sessions(file.data)
    return cohort, describe(cohort, found, elements=study.elements, tasks=spec.tasks)


def _prepared(study: Study, spec: SiteSpec, file: SiteFile) -> Cohort:
    """Prepare a folder of NIfTI volumes; patients' variables may stand beside them in a table."""
    elements = study.elements
    cohort = prepare_cohort(spec.name, file.data, elements, cache=file.cache or default_cache())
    if not elements.variables:
        return cohort
    path = file.data / PARTICIPANTS
    table = read_table(path, elements.variables) if path.exists() else {}
    return with_values(cohort, table, elements.variables)


def _simulated(study: Study, spec: SiteSpec) -> Cohort:
    """Simulate a site patient by patient, each kept in the cache."""
    splits: dict[Split, tuple[Session, ...]] = {
        split: tuple(_simulated_session(study, spec, label) for label in labels)
        for split, labels in patient_labels(spec.patients).items()
    }
    return Cohort(spec.name, splits)


def _simulated_session(study: Study, spec: SiteSpec, patient: str) -> Session:
    elements = study.elements
    make = partial(
        simulate_session, study.seed, spec.name, patient, spec.scanner, elements, slices=spec.slices
    )
    settings = (
        asdict(spec.scanner),
        elements.contrasts,
        elements.size,
        elements.spacing,
        spec.slices,
    )
    key = cache_key(
        "simulated", str(SIMULATOR_VERSION), str(study.seed), spec.name, patient, repr(settings)
    )
    return cached_session(default_cache(), key, make)


def _ready(summary: SiteSummary) -> SiteReady:
    return SiteReady(
        site=summary.site,
        tasks=tuple(summary.tasks),
        patients={split: count.patients for split, count in summary.splits.items()},
        sessions={split: count.sessions for split, count in summary.splits.items()},
        slices={split: count.slices for split, count in summary.splits.items()},
        cases={
            task: {split: count.slices for split, count in splits.items()}
            for task, splits in summary.tasks.items()
        },
        simulated=summary.simulated,
        notes=summary.notes,
    )


def pooled(opened: Mapping[str, Opened]) -> Opened:
    """Lay all sites' data together, as only a comparison can."""
    parts = list(opened.values())
    ready = [part.ready for part in parts]
    return Opened(
        name=POOLED,
        cohorts=sum((part.cohorts for part in parts), ()),
        ready=SiteReady(
            site=POOLED,
            tasks=tuple(dict.fromkeys(task for each in ready for task in each.tasks)),
            patients=_added([each.patients for each in ready]),
            sessions=_added([each.sessions for each in ready]),
            slices=_added([each.slices for each in ready]),
            cases={},
            simulated=all(each.simulated for each in ready),
            notes=sum((each.notes for each in ready), ()),
        ),
        shows_images=all(part.shows_images for part in parts),
    )


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(each) for each in counts), Counter[str]()))
