"""Sites' statistics, before anyone trains: of files that lie here, and of sites elsewhere."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

from grandrounds.core.errors import BadFolder, BadInput, BadSite
from grandrounds.core.failures import Disclosure
from grandrounds.core.files import make_private_folder, write_bytes
from grandrounds.core.messages import Reply, Request, Survey
from grandrounds.core.names import MOST, check_hash
from grandrounds.core.sentence import Sentence, phrase
from grandrounds.core.serialization import from_plain
from grandrounds.core.site_statistics import SiteStatistics
from grandrounds.data.acquisition import Acquisition
from grandrounds.data.cohort import Cohort
from grandrounds.data.disclosure import Release, next_release
from grandrounds.data.elements import ALL_TESTED
from grandrounds.data.people import AGE, People, ScannedVolume, people_of, volumes_of
from grandrounds.data.requirements import requirement_notes
from grandrounds.data.session_files import NoSession, find_sessions
from grandrounds.data.statistics import StatisticsPlan, problem_in_statistics, site_release
from grandrounds.data.table import numeric_columns, participants_of
from grandrounds.engines.remote import Call, RemoteEngine, SiteConnection, Timeouts
from grandrounds.runs.costs import statistics_words
from grandrounds.runs.remote import check_handshakes, identity_of, signed_handshake
from grandrounds.runs.site_data import open_site
from grandrounds.study.acceptance import load_acceptance
from grandrounds.study.file import fingerprint
from grandrounds.study.site_file import SiteFile, SiteSource, match_site_files, read_site
from grandrounds.study.study import SiteSpec, Study

RELEASES = "statistics"  # in a site's own folder: what it told of each study, and of whom
_SURVEY = "-check"  # ends the name of a run that asks for statistics alone


def survey_run(run: str) -> str:
    """Return the name of the run that asks for the statistics of another run's study."""
    end = run[-(MOST - len(_SURVEY)) :].lstrip("-_.")  # which has the study's SHA-256
    return end + _SURVEY


def plan_statistics(study: Study, site: str) -> StatisticsPlan:
    """Return what a study asks of a site's statistics."""
    return StatisticsPlan(study.elements, study.roster[site])


@dataclass(frozen=True)
class SurveyedSite:
    """A site of a study and the people in its data, who may be nobody. Raises `BadInput`.

    The data are read when they are needed, unless they were `opened` before.
    """

    study: Study
    spec: SiteSpec
    source: SiteSource | None
    opened: Cohort | None = None

    @cached_property
    def people(self) -> People:
        """Gather what is known of the site's people; the study's split plays no part."""
        elements = replace(self.study.elements, split=ALL_TESTED)
        study, cohort = replace(self.study, elements=elements), self.opened
        try:
            cohort = cohort or open_site(study, self.spec, self.source)[0]
        except NoSession:
            return {}
        return people_of(cohort, self._volumes(cohort), elements, self.spec.tasks, self._ages())

    @cached_property
    def answer(self) -> SiteStatistics:
        """Return what the site would tell, if it had told nothing before."""
        return self.release("").answer

    def release(self, salt: str) -> Release:
        """Return the site's first answer, and by keyed hashes of whom it is."""
        plan = plan_statistics(self.study, self.spec.name)
        simulated = self.source is None
        return site_release(plan, self.spec.name, self.people, simulated=simulated, salt=salt)

    @property
    def notes(self) -> tuple[Sentence, ...]:
        """Say, for people at the site, what of the study's elements the data do not meet."""
        return requirement_notes(self.people, self.study.elements)

    def _volumes(self, cohort: Cohort) -> tuple[ScannedVolume, ...]:
        if self.source is None:
            return _simulated_volumes(cohort, self.spec)
        if isinstance(self.source, SiteFile) and self.study.elements.contrasts:
            folder = self.source.data
            return volumes_of(find_sessions(folder), self.study.elements) if folder.is_dir() else ()
        return ()

    def _ages(self) -> Mapping[str, float]:
        """Return each patient's age, where the study asks for it and the site has a table."""
        if not self.study.elements.age or not isinstance(self.source, SiteFile):
            return {}
        data = self.source.data
        table = participants_of(data) if data.is_dir() else None
        return numeric_columns(table).get(AGE, {}) if table else {}


def _simulated_volumes(cohort: Cohort, spec: SiteSpec) -> tuple[ScannedVolume, ...]:
    how = {name: spec.scanner.sequence(name, site=spec.name) for name in spec.scanner.protocol}
    made = {
        name: Acquisition(
            family=sequence.kind,
            repetition_time=sequence.tr,
            echo_time=sequence.te,
            inversion_time=sequence.ti,
            flip_angle=sequence.flip,
            field_strength=spec.scanner.field,
        )
        for name, sequence in how.items()
    }
    return tuple(
        ScannedVolume(session.patient, contrast, made[contrast])
        for session in cohort
        for contrast in session.contrasts
    )


def survey_opened(
    study: Study, paths: Sequence[Path], opened: Sequence[Cohort]
) -> tuple[SurveyedSite, ...]:
    """Return real sites whose data were opened already, by their site files. Raises `BadSite`."""
    specs = {spec.name: spec for spec in study.site}
    files = [read_site(path) for path in paths]
    return tuple(
        SurveyedSite(study, specs[file.name], file, cohort)
        for file, cohort in zip(files, opened, strict=True)
    )


def survey_sites(
    study: Study, files: Sequence[SiteSource], names: Sequence[str]
) -> tuple[SurveyedSite, ...]:
    """Return sites of the study whose data lie here. Raises `BadSite`."""
    sources = match_site_files(study, files, names)
    return tuple(
        SurveyedSite(study, spec, sources.get(spec.name))
        for spec in study.site
        if spec.name in names
    )


@dataclass(frozen=True)
class SurveyEngine:
    """Answers `Survey` for one site, and keeps in `store` what it told and of whom."""

    surveyed: SurveyedSite
    disclosure: Disclosure
    store: Path | None

    tells_all = True  # whatever is wrong stands in the site's own log; others hear its safe words

    @property
    def name(self) -> str:
        return self.surveyed.spec.name

    @property
    def sites(self) -> tuple["SurveyEngine"]:
        """Return the one site, which this is."""
        return (self,)

    def receive(self, update: Reply) -> None:
        """Take nothing: the guard refuses every update."""

    def ask(self, requests: Mapping[str, Request]) -> list[Reply]:
        """Answer with the site's statistics. Raises `BadSite`, in words that tell of nobody."""
        assert all(isinstance(request, Survey) for request in requests.values())
        before = read_release(self.store) if self.store else None
        try:
            found = self.surveyed.release(before.salt if before else token_hex(16))
        except BadInput as error:
            raise BadSite(
                str(error), safe=phrase("its data cannot be read for the statistics of this study")
            ) from error
        release = next_release(found, before)
        if self.store:
            make_private_folder(self.store.parent)
            write_bytes(self.store, json.dumps(asdict(release)).encode())
            self.store.chmod(0o600)
        return [Reply(site=self.name, round=0, statistics=release.answer)]


def read_release(path: Path) -> Release | None:
    """Read what a site told before; None before its first answer. Raises `BadFolder`."""
    if not path.exists():
        return None
    try:
        return from_plain(Release, json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadFolder(
            f"{path}: is damaged; it says of whom this site told statistics, so without it the "
            "next ones could be compared with the last: restore it, or remove it if nobody has "
            "those",
            safe=phrase("its record of the statistics that it told before is damaged"),
        ) from None


@contextmanager
def serve_statistics(
    study: Study,
    site: str,
    files: Callable[[], Sequence[SiteSource]],
    accepted: Path | None = None,
) -> Generator[tuple[SurveyEngine, bytes], None, None]:
    """Open one site for its statistics; yield its engine and handshake.

    With `accepted`, the site's own folder, it opens only where its acceptance of the study says
    that statistics leave. Raises `BadInput`.
    """
    facts = signed_handshake(study, site, accepted)
    store = None
    if accepted:
        _check_listed(study, site, accepted)
        store = accepted / RELEASES / f"{fingerprint(study)}.json"
    [surveyed] = survey_sites(study, files(), (site,))
    source = surveyed.source
    reveals = source is not None and source.reveal_failures
    engine = SurveyEngine(surveyed, Disclosure(site, study.names, reveals), store)
    yield engine, json.dumps(asdict(facts)).encode()


def _check_listed(study: Study, site: str, accepted: Path) -> None:
    acceptance = load_acceptance(fingerprint(study), accepted)
    if acceptance is None or statistics_words(study) not in acceptance.policy:
        raise BadSite(
            f"site '{site}' accepted this study when no statistics were listed in what leaves; "
            "look at it and sign it again: grandrounds site accept STUDY --kit KIT",
            safe=phrase(
                "it accepted this study when no statistics were listed in what leaves; look at it "
                "and sign it again there: grandrounds site accept STUDY --kit KIT"
            ),
        )


def ask_statistics(
    study: Study, folder: Path, call: Call, *, patience: Timeouts, root: Path | None = None
) -> tuple[SiteStatistics, ...]:
    """Ask every site that trains for its statistics, each held against the study; in roster order.

    `folder` names the run. Raises `BadInput` where a site refuses, `RunFailed` where one fails.
    """
    identity = identity_of(fingerprint(study), folder, root, "server")
    connections = tuple(SiteConnection(n, call, patience, identity) for n in study.trainers)
    check_handshakes(study, connections, root)
    engine = RemoteEngine(connections, _unheard, check=partial(_problem, study))
    replies = engine.ask({name: Survey() for name in study.trainers})
    return tuple(reply.statistics for reply in replies if reply.statistics)


def _unheard(request: Request, reply: Reply) -> None:
    """Tell nobody of a reply before all are there."""


def _problem(study: Study, request: Request, reply: Reply, delivered: bool) -> str:  # noqa: ARG001
    if reply.statistics is None or reply.weights or reply.scores:
        return "it was asked for statistics, and sent something else"
    return problem_in_statistics(reply.statistics, plan_statistics(study, reply.site), reply.site)


def write_statistics(study: Study, found: Sequence[SiteStatistics], path: Path) -> None:
    """Write sites' statistics as one JSON file, with the SHA-256 of their study."""
    content = {"study": fingerprint(study), "sites": [asdict(each) for each in found]}
    write_bytes(path, json.dumps(content, indent=1, allow_nan=False).encode())


def read_statistics(path: Path, study: Study) -> tuple[SiteStatistics, ...]:
    """Read sites' statistics, each held against the study. Raises `BadFolder`."""
    try:
        content = cast(dict[str, Any], json.loads(path.read_bytes()))
        of = check_hash(content["study"], "study", ValueError)
        found = tuple(from_plain(SiteStatistics, each) for each in content["sites"])
        problems = [
            problem_in_statistics(each, plan_statistics(study, each.site), each.site)
            for each in found
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadFolder(f"{path}: holds no statistics of this study's sites") from None
    if of != fingerprint(study):
        raise BadFolder(f"{path}: its statistics are of another study (SHA-256 {of[:12]}...)")
    if problem := next(filter(None, problems), ""):
        raise BadFolder(f"{path}: {problem}")
    return found
