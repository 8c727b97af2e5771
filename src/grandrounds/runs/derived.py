"""A derived arm trains nothing: its scores come from models that other arms trained alone.

"alone" takes at each hospital the arm that validates best there, "ensemble" averages the
predictions of two models of a hospital, "sites-average" those of all hospitals' models.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import tomli_w

from grandrounds.core.errors import BadStudy
from grandrounds.core.events import PolicySet, RunFinished, RunStarted, SiteReady, SiteValidated
from grandrounds.core.files import remove, write_text
from grandrounds.core.journal import Journal, read_journal, without_superseded
from grandrounds.core.messages import CaseScore
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.runs.arms import ArmChoice
from grandrounds.runs.evaluate import Member, mean_scores, model_scorer
from grandrounds.runs.folder import TrainedRun, is_finished
from grandrounds.runs.site_data import open_sites
from grandrounds.runs.tables import ScoreLabel, take_scores, write_scores
from grandrounds.study.file import to_toml
from grandrounds.study.site_file import SiteSource
from grandrounds.study.study import Study

TITLES = {
    "alone": "Alone, as long as it likes",
    "ensemble": "Ensemble of two models trained alone",
    "sites-average": "Average of the sites' predictions",
}
RULES = {
    "alone": "at each hospital the arm that validates best there, of {arms}",
    "ensemble": "the mean of the predictions of two models of a hospital, of {arms}, which were "
    "trained on the same data with two seeds",
    "sites-average": "each case's mean prediction by the models of all hospitals that have its "
    "task, of {arms}",
}
COSTS = {
    "alone": "nothing more is trained; a hospital that does so pays for all of these arms",
    "ensemble": "each hospital trains that arm twice, and predicts twice",
    "sites-average": "nothing more is trained; every hospital's model leaves it once",
}


@dataclass(frozen=True)
class DerivedArm:
    """An arm that is derived from `sources`, arms that train alone, with their studies."""

    choice: ArmChoice
    sources: Mapping[ArmChoice, Study]

    @property
    def kind(self) -> str:
        return self.choice.kind

    @property
    def name(self) -> str:
        return self.choice.name

    @property
    def title(self) -> str:
        """Return the arm's name for people; where it names its source, with that."""
        named = list(self._titles.values()) if ":" in self.choice.label else []
        return f"{TITLES[self.kind]} ({named[0]})" if named else TITLES[self.kind]

    @property
    def rule(self) -> str:
        """Say how the scores come about."""
        return RULES[self.kind].format(arms="; ".join(self._titles.values()))

    @property
    def terms(self) -> str:
        """Write for the comparison's terms what the arm is, and what it costs."""
        return f"{self.title}: {self.rule}; {COSTS[self.kind]}"

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {arm.name: arm.title(study) for arm, study in self.sources.items()}

    @property
    def repeated(self) -> tuple[ArmChoice, ...]:
        """Return the arms that are trained once more for this one."""
        return tuple(self.sources) if self.kind == "ensemble" else ()

    def is_done(self, folder: ComparisonFolder, seed: int) -> bool:
        """Tell whether the scores are there, and come from these sources."""
        run = folder.run(self.name, seed)
        if not (is_finished(run.path) and run.derived.exists()):
            return False
        return tomllib.loads(run.derived.read_text())["sources"] == list(self._titles)

    def derive(self, folder: ComparisonFolder, seed: int, files: Sequence[SiteSource]) -> None:
        """Write the arm's folder from its sources' runs with this seed, which are finished."""
        runs = {arm.name: TrainedRun(folder.run(arm.name, seed).path) for arm in self.sources}
        out = folder.run(self.name, seed)
        remove(out.scores, refusal="{path}: cannot be removed: {reason}")
        match self.kind:
            case "alone":
                self._take_best(runs, out)
            case "ensemble":
                [(name, run)] = runs.items()
                self._average([run, TrainedRun(folder.again(name, seed).path)], out, files)
            case _:
                self._average(list(runs.values()), out, files)

    def _take_best(self, runs: Mapping[str, TrainedRun], out: RunFolder) -> None:
        first = next(iter(runs.values()))
        found = {name: validation_scores(run) for name, run in runs.items()}
        best = {site: best_by_validation(found, site) for site in first.study.trainers}
        chosen = [
            {"name": site, "arm": name, "title": self._titles[name]}
            | ({"validation": found[name][site]} if site in found[name] else {})
            for site, name in best.items()
        ]
        self._describe(first, out, chosen)
        parts = [(RunFolder(runs[name].folder).scores, site) for site, name in best.items()]
        take_scores(out.scores, parts, self.name)

    def _average(
        self, runs: Sequence[TrainedRun], out: RunFolder, files: Sequence[SiteSource]
    ) -> None:
        scores = average_scores(runs, files, of_all_sites=self.kind == "sites-average")
        self._describe(runs[0], out, [])
        label = runs[0].score_label
        write_scores(out.scores, scores, ScoreLabel(self.name, label.seed, label.round))

    def _describe(
        self, first: TrainedRun, out: RunFolder, chosen: Sequence[Mapping[str, object]]
    ) -> None:
        """Write all but the scores: the study, a short journal, and where the scores are from."""
        study = replace(first.study, arm=self.name)
        write_text(out.study, to_toml(study))
        record = {"rule": self.rule, "sources": list(self._titles), "site": list(chosen)}
        write_text(out.derived, tomli_w.dumps(record))
        remove(out.journal, refusal="{path}: cannot be removed: {reason}")
        journal = Journal(out.journal)
        for _, event in read_journal(RunFolder(first.folder).journal):
            match event:
                case RunStarted():
                    journal.append(replace(event, arm=self.name, title=self.title))
                case SiteReady():
                    journal.append(event)
                case PolicySet() if self.kind != "sites-average":  # there the models travel
                    journal.append(event)
                case RunFinished():
                    journal.append(replace(event, seconds=0.0, peak_memory=0))
                case _:
                    pass


def validation_scores(run: TrainedRun) -> dict[str, float]:
    """Return each site's validation score of the round whose model was tested.

    If that round was not validated it is the last one before it; a site without validation cases
    has none.
    """
    tested = run.score_label.round
    events = without_superseded(read_journal(RunFolder(run.folder).journal))
    return {
        event.site: event.score
        for _, event in events
        if isinstance(event, SiteValidated) and event.round <= tested and event.cases
    }


def best_by_validation(scores: Mapping[str, Mapping[str, float]], site: str) -> str:
    """Return the arm with a site's highest validation score: of equals, and of none, the first."""
    return max(scores, key=lambda arm: scores[arm].get(site, float("-inf")))


def average_scores(
    runs: Sequence[TrainedRun], files: Sequence[SiteSource], *, of_all_sites: bool
) -> list[CaseScore]:
    """Score, at each site, the mean of the predictions of its own models, or of all sites'."""
    study = runs[0].study
    roster, opened = study.roster, open_sites(study, files)
    found: list[CaseScore] = []
    with model_scorer(study) as scorer:
        for site in study.trainers:
            members = [
                Member(owner, roster[owner], run.model_weights(owner))
                for run in runs
                for owner in (study.trainers if of_all_sites else (site,))
            ]
            for cohort in opened[site].cohorts:
                found += mean_scores(scorer, members, cohort)
    return found


def trained_again(study: Study) -> Study:
    """Return a study that trains on the same data, from other first weights in another order."""
    other = seed_for(study.training_seed, "trained again")
    return replace(study, training=replace(study.training, seed=other))


def derived_arms(
    arms: Sequence[ArmChoice], studies: Mapping[ArmChoice, Study]
) -> tuple[DerivedArm, ...]:
    """Find the sources of derived arms among those that are trained. Raises `BadStudy`."""
    alone = {a: s for a, s in studies.items() if s.build_method().sharing().alone}
    return tuple(DerivedArm(arm, _sources(arm, alone)) for arm in arms)


def _sources(arm: ArmChoice, alone: Mapping[ArmChoice, Study]) -> Mapping[ArmChoice, Study]:
    named = arm.label.partition(":")[2]
    if not alone:
        raise BadStudy(
            f"arm '{arm.label}': no arm of this comparison trains alone; give one beside it, for "
            "example local"
        )
    if arm.topology:
        raise BadStudy(f"arm '{arm.label}': it trains nothing, so it has no topology")
    if arm.kind == "alone":
        return _lengths(arm, alone, named)
    source = next((each for each in alone if each.label == named or not named), None)
    if source is None:
        raise BadStudy(
            f"arm '{arm.label}': no arm '{named}' of this comparison trains alone; those are "
            f"{', '.join(each.label for each in alone)}"
        )
    return {source: alone[source]}


def _lengths(
    arm: ArmChoice, alone: Mapping[ArmChoice, Study], named: str
) -> Mapping[ArmChoice, Study]:
    if named:
        raise BadStudy(
            f"arm '{arm.label}': it chooses among all arms that train alone; write alone"
        )
    if len(alone) < 2:
        raise BadStudy(
            f"arm 'alone': there is nothing to choose from but {next(iter(alone)).label}; give "
            "longer ones, too: local,local:steps=x2,local:steps=x4,alone"
        )
    return alone
