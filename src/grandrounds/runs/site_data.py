"""A site's data is opened and checked here, also that of a site new to the study."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from grandrounds.core.errors import BadSite
from grandrounds.core.events import SiteReady
from grandrounds.core.failures import Disclosure
from grandrounds.core.names import POOLED
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.data.availability import (
    SiteSummary,
    check_elements,
    summarise,
    summarise_arrays,
    summarise_simulated,
)
from grandrounds.data.cohort import NAMELESS, SPLITS, Cohort, Session, SplitName
from grandrounds.data.dataset import DatasetCohort, dataset_cohort, open_folder
from grandrounds.data.elements import ALL_TESTED
from grandrounds.data.prepare import prepare_cohort
from grandrounds.data.protocol import simulated_protocols, with_protocols
from grandrounds.data.remarks import some, unmatched_notes
from grandrounds.data.session_cache import cache_key, cached_session
from grandrounds.data.session_files import find_sessions
from grandrounds.data.simulation.simulate import SIMULATOR_VERSION, patient_labels, simulate_session
from grandrounds.data.stack import is_stack, stack_cohort
from grandrounds.data.table import (
    check_matched,
    is_table,
    participants_of,
    read_participants,
    table_cohort,
    with_values,
)
from grandrounds.privacy.budget import PrivacyBudget, budget_of
from grandrounds.runs.site_privacy import check_planned
from grandrounds.site.record_training import PatientLots
from grandrounds.study.site_file import (
    SiteDataset,
    SiteFile,
    SiteSource,
    default_cache,
    match_site_files,
    read_site,
)
from grandrounds.study.study import SiteSpec, Study
from grandrounds.tasks import SupervisedTask
from grandrounds.tasks.supervised import BoundTask, Items


@dataclass(frozen=True)
class SiteData:
    """One site's prepared data, the counts of it that may be reported, and its privacy budget."""

    name: str
    cohorts: tuple[Cohort, ...]
    ready: SiteReady
    shows_images: bool
    disclosure: Disclosure
    budget: PrivacyBudget | None = None


Preparing: TypeAlias = Callable[[str, int, int], None]  # site, patients done, and all of them


def nobody_told(site: str, done: int, total: int) -> None:
    """Tell nobody how far the preparation of a site is."""


def open_sites(
    study: Study,
    files: Sequence[SiteSource],
    *,
    only: Container[str] | None = None,
    preparing: Preparing = nobody_told,
) -> dict[str, SiteData]:
    """Open every site of the study, or only some, and tell how far that is.

    Raises `BadSite` or `BadImage` where one lacks the common data elements, or where the run would
    exceed its privacy budget: a run starts only when all have both.
    """
    by_name = match_site_files(study, files, only)
    specs = [spec for spec in study.site if only is None or spec.name in only]
    opened = {
        spec.name: open_site(study, spec, by_name.get(spec.name), preparing) for spec in specs
    }
    notes = shared_patients([opened[name][0] for name in opened if name in by_name])
    for spec in specs:
        cohort, summary = opened[spec.name]
        check_elements(summary, elements=study.elements, tasks=spec.tasks)
        check_examples(study, cohort)
        check_budget(study, cohort, by_name.get(spec.name))
    return {
        spec.name: _open(study, spec, by_name.get(spec.name), *opened[spec.name], notes)
        for spec in specs
    }


def _open(
    study: Study,
    spec: SiteSpec,
    file: SiteSource | None,
    cohort: Cohort,
    found: SiteSummary,
    notes: Mapping[str, tuple[Sentence, ...]],
) -> SiteData:
    summary = replace(found, notes=(*found.notes, *notes.get(spec.name, ())))
    shows = file is None or file.include_images
    reveals = file is not None and file.reveal_failures
    disclosure = Disclosure(spec.name, study.names, reveals)
    ready, budget = _ready(summary, study.names), budget_in(file)
    return SiteData(spec.name, (cohort,), ready, shows, disclosure, budget)


def budget_in(file: SiteSource | None) -> PrivacyBudget | None:
    """Return the privacy budget of a real site's files; data in no file has none."""
    if not isinstance(file, SiteFile):
        return None
    return budget_of(file.name, file.data, file.privacy)


def check_budget(study: Study, cohort: Cohort, file: SiteSource | None) -> None:
    """Refuse a run that would exceed the study's epsilon, or the privacy budget of a site's data.

    Raises `BadStudy` and `BadSite`.
    """
    if study.privacy.kind != "none" and cohort.site in study.trainers:
        check_planned(study, cohort.site, training_patients(study, cohort), budget_in(file))


def training_patients(study: Study, cohort: Cohort) -> int:
    """Count the patients on whom a site trains, which are those with an example of its tasks."""
    examples = study.make_task().training_examples([cohort])
    return len(PatientLots.of(examples, study.training.batch_size).patients)


def check_examples(study: Study, cohort: Cohort) -> None:
    """Make a site's examples of every split, as a run does. Raises `BadSite` where one is wrong."""
    task = study.make_task()
    training = task.training_examples([cohort])
    scored = [task.evaluation_examples([cohort], split) for split in ("validation", "test")]
    if isinstance(training, Items):
        training.check_shapes(study.training.batch_size, training=True)
    for examples in scored:
        if isinstance(examples, Items):
            examples.check_shapes(task.cases_at_once, training=False)


def shared_patients(cohorts: Sequence[Cohort]) -> dict[str, tuple[Sentence, ...]]:
    """Return notes for each site that has another one's patients, or one patient under two IDs.

    Who trains at one site and is tested at another is no unseen patient. Images of a stack without
    IDs are not compared.
    """
    splits = {cohort.site: _splits_of(cohort) for cohort in cohorts}
    notes = _twins(cohorts)
    for site, mine in splits.items():
        others = {name: theirs for name, theirs in splits.items() if name != site}
        shared = {p for p in mine if any(p in theirs for theirs in others.values())}
        if not shared:
            continue
        crossing = sum(
            any({mine[p], theirs.get(p)} == {"train", "test"} for theirs in others.values())
            for p in shared
        )
        verb = "has" if len(shared) == 1 else "have"
        cost = (
            "{crossing} of them train at one site and are tested at another, so if they are the "
            "same people, those scores are not of unseen patients"
            if crossing
            else "none of them trains at one site and is tested at another"
        )
        note = phrase(
            "{patients} here " + verb + " the ID of a patient at {sites}; " + cost,
            patients=some(len(shared), "patient"),
            sites=tuple(Name(n) for n, theirs in others.items() if shared & theirs.keys()),
            crossing=crossing,
        )
        notes[site] = (*notes.get(site, ()), note)
    return notes


def _twins(cohorts: Sequence[Cohort]) -> dict[str, tuple[Sentence, ...]]:
    """Return a note for each site with sessions whose images are those of another ID, too."""
    ids: dict[str, set[str]] = {}
    for session in chain(*cohorts):
        for each in session.prints:
            ids.setdefault(each, set()).add(session.patient)
    twins = {c.site: sum(any(len(ids[p]) > 1 for p in s.prints) for s in c) for c in cohorts}
    return {
        site: (
            phrase(
                "{sessions} here have the same images as a session under another ID; one of the "
                "two must go, as a patient may otherwise train and be tested",
                sessions=some(count, "session"),
            ),
        )
        for site, count in twins.items()
        if count
    }


def _splits_of(cohort: Cohort) -> dict[str, SplitName]:
    return {
        patient: split
        for split in SPLITS
        for patient in cohort.patients(split)
        if not patient.startswith(NAMELESS)
    }


def open_site(
    study: Study, spec: SiteSpec, file: SiteSource | None, preparing: Preparing = nobody_told
) -> tuple[Cohort, SiteSummary]:
    """Prepare one site's data, or load it from the cache, and count it.

    Raises `BadSite` or `BadImage`.
    """
    if isinstance(study.task, SupervisedTask):
        cohort = _open_dataset(study, study.task, spec, file, preparing)
        return cohort, summarise_arrays(cohort, elements=study.elements, tasks=spec.tasks)
    if isinstance(file, SiteDataset):
        raise BadSite(
            f"site '{spec.name}' was given a dataset, and task \"{study.task.kind}\" reads files; "
            "give it a site file or a folder, or choose a task of your own"
        )
    if file is None:
        cohort = _simulate(study, spec, preparing)
        return cohort, summarise_simulated(cohort, elements=study.elements, tasks=spec.tasks)
    _check_kind(file.data, study)
    if is_stack(file.data) or is_table(file.data, study.elements):
        make = stack_cohort if is_stack(file.data) else table_cohort
        cohort = make(spec.name, file.data, study.elements)
        return cohort, summarise_arrays(cohort, elements=study.elements, tasks=spec.tasks)
    cohort, notes = _prepare(study, spec, file, preparing)
    found = find_sessions(file.data)
    if study.reads_protocols:
        cohort, unknown = with_protocols(cohort, found)
        notes = (*notes, *unknown)
    return cohort, summarise(cohort, found, elements=study.elements, tasks=spec.tasks, notes=notes)


def _open_dataset(
    study: Study,
    task: SupervisedTask,
    spec: SiteSpec,
    source: SiteSource | None,
    preparing: Preparing,
) -> DatasetCohort:
    """Open the dataset of a site, or take the one that it gave. Raises `BadSite`."""
    assert source is not None, "a task of one's own has no simulated sites"
    given = isinstance(source, SiteDataset)
    return dataset_cohort(
        spec.name,
        source.dataset if given else open_folder(spec.name, source.data, task.kind, task.dataset),
        study.elements.split,
        like=BoundTask(task, {}).blank(study.elements.size),
        tasks=spec.tasks,
        prepared=partial(preparing, spec.name),
    )


def _check_kind(data: Path, study: Study) -> None:
    """Refuse a file that is none of those that a site's data can be."""
    if data.is_file() and not (is_stack(data) or is_table(data, study.elements)):
        raise BadSite(
            f"{data}: is a file of an unknown kind; a site's data is a table of patients (.tsv or "
            ".csv), an image stack (.npz), or a folder of NIfTI volumes.",
            safe=phrase("its data is a file that is neither a table nor an image stack"),
        )


def open_named(study: Study, paths: Sequence[Path]) -> list[tuple[Cohort, SiteSummary]]:
    """Open and count the data of real sites of the study, found by their site files.

    Raises `BadSite` or `BadImage`.
    """
    opened = [_opened(study, path) for path in paths]
    notes = shared_patients([cohort for cohort, _ in opened])
    return [(c, replace(s, notes=(*s.notes, *notes.get(s.site, ())))) for c, s in opened]


def check_joins(
    study: Study, cohort: Cohort, summary: SiteSummary, file: SiteSource | None = None
) -> None:
    """Raise `BadSite` where a run of the study would refuse the site."""
    check_elements(summary, study.elements, study.roster[summary.site])
    check_examples(study, cohort)
    check_budget(study, cohort, file)


def _opened(study: Study, path: Path) -> tuple[Cohort, SiteSummary]:
    file = read_site(path)
    for spec in study.site:
        if spec.name == file.name and spec.data == "files":
            return open_site(study, spec, file)
    real = ", ".join(spec.name for spec in study.site if spec.data == "files") or "none"
    raise BadSite(f"{path}: the study has no real site named '{file.name}'; it has {real}")


def _prepare(
    study: Study, spec: SiteSpec, file: SiteFile, preparing: Preparing
) -> tuple[Cohort, tuple[Sentence, ...]]:
    """Prepare a folder of NIfTI volumes; a table beside them may hold the patients' variables."""
    elements = study.elements
    cohort = prepare_cohort(
        spec.name,
        file.data,
        elements,
        cache=file.cache or default_cache(),
        prepared=partial(preparing, spec.name),
    )
    if not elements.variables:
        return cohort, ()
    path = participants_of(file.data)
    if path is None:
        absent = phrase("there is no participants.tsv beside the volumes: no variable is known")
        return with_values(cohort, {}, elements.variables), (absent,)
    table = read_participants(path, elements.variables)
    unmatched = check_matched(path, table, cohort)
    notes = unmatched_notes(unmatched.without_row, unmatched.without_files)
    return with_values(cohort, table, elements.variables), notes


def _simulate(study: Study, spec: SiteSpec, preparing: Preparing) -> Cohort:
    """Simulate a site patient by patient, and save each in the cache."""
    splits = patient_labels(spec.patients)
    labels = list(chain.from_iterable(splits.values()))
    made: dict[str, Session] = {}
    for done, label in enumerate(labels):
        preparing(spec.name, done, len(labels))
        made[label] = _simulate_session(study, spec, label)
    preparing(spec.name, len(labels), len(labels))
    return Cohort(
        spec.name, {s: tuple(made[label] for label in each) for s, each in splits.items()}
    )


def _simulate_session(study: Study, spec: SiteSpec, patient: str) -> Session:
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
    session = cached_session(default_cache(), key, make)
    if not study.reads_protocols:
        return session
    scanned = simulated_protocols(spec.scanner, elements, spec.slices)
    return replace(session, protocols=scanned)


def _ready(summary: SiteSummary, names: frozenset[str]) -> SiteReady:
    """Return a site's counts; a note that holds a name which is not the study's is left out."""
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
        notes=tuple(told for note in summary.notes if (told := note.told(names))),
    )


def pool_sites(opened: Mapping[str, SiteData]) -> SiteData:
    """Pool all sites' data into one site, as only a comparison can."""
    parts = list(opened.values())
    ready = [part.ready for part in parts]
    return SiteData(
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
        disclosure=Disclosure(
            POOLED,
            frozenset[str]().union(*(part.disclosure.names for part in parts)),
            all(part.disclosure.reveals or part.ready.simulated for part in parts),
        ),
    )


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(each) for each in counts), Counter[str]()))


@dataclass(frozen=True)
class NewSite:
    """A site and the file that locates its data; without a file it is simulated."""

    spec: SiteSpec
    file: SiteSource | None

    @property
    def name(self) -> str:
        return self.spec.name

    def unknown_to(self, study: Study) -> dict[str, tuple[str, ...]]:
        """Map the site to its tasks; empty if the study has the site."""
        return {} if self.name in study.roster else {self.name: self.spec.tasks}

    def all_tested(self, study: Study) -> Cohort:
        """Open the data of a site without a part in the training: all are test patients.

        Raises `BadSite` where a task has no case.
        """
        elements = replace(study.elements, split=ALL_TESTED)
        cohort = self.cohort(replace(study, elements=elements))
        return replace(cohort, splits={"train": (), "validation": (), "test": tuple(cohort)})

    def cohort(self, study: Study, *splits: SplitName) -> Cohort:
        """Open the site's data. Raises `BadSite` where a task has no case in one of the splits."""
        cohort, summary = open_site(study, self.spec, self.file)
        check_elements(summary, study.elements, self.spec.tasks, splits)
        return cohort


def find_site(study: Study, given: str) -> NewSite:
    """Find a site by the path of its file, or by its name if it is simulated. Raises `BadSite`."""
    if given in study.roster and not Path(given).is_file():
        spec = _spec(study, given)
        if spec.data == "files":
            raise BadSite(f"site '{given}' is a real one; give the path of its site file instead")
        return NewSite(spec, None)
    file = read_site(Path(given))
    if file.name not in study.roster:
        return NewSite(SiteSpec(file.name, _tasks_asked(study, file)), file)
    return NewSite(_spec(study, file.name), file)


def _spec(study: Study, name: str) -> SiteSpec:
    """Return a site of the study, with the tasks that some site trained."""
    [spec] = [spec for spec in study.site if spec.name == name]
    return replace(spec, tasks=study.held_out.get(name, spec.tasks))


def _tasks_asked(study: Study, file: SiteFile) -> tuple[str, ...]:
    """Return the tasks that a new site asks for: its file's, else all that were trained."""
    known = tuple(dict.fromkeys(t for name in study.trainers for t in study.roster[name]))
    for label in file.tasks:
        if label not in known:
            raise BadSite(
                f"site file of '{file.name}': no site trained the task '{label}'; trained were "
                f"{', '.join(known)}"
            )
    return file.tasks or known
