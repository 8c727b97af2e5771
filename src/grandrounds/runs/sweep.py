"""A sweep tries values of a study's keys, and chooses by validation alone: it tests nothing.

Each candidate is an arm of a comparison, so a sweep is run, stopped and resumed as one is. There
are no test scores in it, so that none can have been looked at when one was chosen.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from math import exp, inf, log
from pathlib import Path
from random import Random
from typing import cast

import tomli_w

from grandrounds.core.errors import BadFolder, BadInput, BadStudy, RunFailed, require
from grandrounds.core.events import RoundFinished
from grandrounds.core.files import write_text
from grandrounds.core.journal import read_journal, without_superseded
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.core.seeds import seed_for
from grandrounds.report.analysis.folder import read_plan
from grandrounds.report.analysis.metrics import metric_of
from grandrounds.runs.arms import ArmChoice, arms_of
from grandrounds.runs.comparison import Comparison, diverged
from grandrounds.study.file import Table, parse_study, to_toml
from grandrounds.study.study import Study

_AXIS = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*=(.*)", re.DOTALL)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*(log:)?({_NUMBER})\.\.({_NUMBER})\s*")
_OUTSIDE = re.compile(r",(?![^\[\]{}]*[\]}])")  # a comma that is in no list and no table
_WHOLE = re.compile(r"[+-]?\d+")
_DRAWS = 100  # for each candidate that is wanted, until it is another one than those before
# What is scored, or how scores are counted, is the same for all candidates.
NOT_SWEPT = (
    *("elements", "site", "holdout_sites", "seed", "name", "arm", "parity", "training.seed"),
    *("stop.test", "stop.validate_every"),
    *("task.kind", "task.intensity", "task.crop", "task.least_pixels", "task.threshold"),
)
NO_TESTS = (
    "No candidate was tested: there is no test score here that the choice could have been made by."
)
_NAMED = 3  # candidates, beside the chosen one, in a sentence


@dataclass(frozen=True)
class SweepAxis:
    """One key of a study, with the values that a sweep tries, or the range that it draws from.

    A range is `low` to `high`, both included, drawn evenly or, with `log`, evenly in its logarithm;
    of a `whole` one whole numbers are drawn.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def draw(self, draws: Random) -> str:
        """Draw one value, to three significant digits."""
        if self.values:
            return self.values[int(draws.random() * len(self.values))]
        if self.whole and not self.log:
            return str(int(self.low + draws.random() * (self.high - self.low + 1)))
        share = draws.random()
        if not self.log:
            return f"{self.low + share * (self.high - self.low):.3g}"
        value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        return str(round(value)) if self.whole else f"{value:.3g}"


def read_axis(text: str) -> SweepAxis:
    """Read `KEY=VALUE,VALUE`, `KEY=LOW..HIGH` or `KEY=log:LOW..HIGH`. Raises `BadInput`."""
    found = _AXIS.fullmatch(text)
    if not found or not found[2].strip():
        raise BadInput(
            f"--over {text}: write it as KEY=VALUE,VALUE, or with --random as KEY=LOW..HIGH or "
            "KEY=log:LOW..HIGH, for example training.learning_rate=log:1e-4..1e-2"
        )
    key = found[1]
    _check_key(text, key)
    span = _RANGE.fullmatch(found[2])
    if span:
        return _range(text, key, span)
    values = tuple(value.strip() for value in _OUTSIDE.split(found[2]))
    for value in values:
        require(bool(value), f"--over {text}: a value is missing between two commas")
        require(values.count(value) == 1, f"--over {text}: {value} stands there twice")
    return SweepAxis(key, values)


def _range(text: str, key: str, span: "re.Match[str]") -> SweepAxis:
    low, high, log = float(span[2]), float(span[3]), bool(span[1])
    require(low < high, f"--over {text}: the lower end of a range comes first")
    require(low > 0 or not log, f"--over {text}: a logarithmic range begins above 0")
    whole = all(_WHOLE.fullmatch(end) for end in (span[2], span[3]))
    return SweepAxis(key, low=low, high=high, log=log, whole=whole)


def _check_key(text: str, key: str) -> None:
    """Refuse keys of which candidates could not be told apart by their validation scores."""
    for fixed in NOT_SWEPT:
        require(
            key != fixed and not key.startswith(f"{fixed}."),
            f"--over {text}: {fixed} changes what is scored, or on whom, so the validation scores "
            "of candidates could not be compared",
        )
    require(
        key != "method.kind",
        f"--over {text}: to compare methods, give them as arms: grandrounds compare --arms",
    )
    require(
        key not in {field.name for field in fields(Study)},
        f"--over {text}: a key needs a dot, such as training.epochs, or is an option of the "
        "method; rounds need no sweep: the round that validates best counts",
    )


def combinations(axes: Sequence[SweepAxis], *, random: int, seed: int) -> list[tuple[str, ...]]:
    """Return each candidate's values, a `key=value` for each axis: a grid, or `random` draws."""
    keys = [axis.key for axis in axes]
    for key in keys:
        require(keys.count(key) == 1, f"--over {key}: is given {keys.count(key)} times; once is it")
    if random:
        return _drawn(axes, random, seed)
    for axis in axes:
        require(
            bool(axis.values),
            f"--over {axis.key}: a range is drawn from; say how often: --random 8",
        )
    grid = product(*(axis.values for axis in axes))
    return [tuple(map("=".join, zip(keys, values, strict=True))) for values in grid]


def _drawn(axes: Sequence[SweepAxis], number: int, seed: int) -> list[tuple[str, ...]]:
    found: dict[tuple[str, ...], None] = {}
    for attempt in range(_DRAWS * number):
        draws = Random(seed_for(seed, "sweep", attempt))
        found[tuple(f"{axis.key}={axis.draw(draws)}" for axis in axes)] = None
        if len(found) == number:
            return list(found)
    raise BadInput(
        f"--random {number}: the axes have only {len(found)} different candidates; leave --random "
        "out to try them all"
    )


def candidate_studies(
    table: Table, overrides: Sequence[str], tried: Sequence[tuple[str, ...]]
) -> dict[ArmChoice, Study]:
    """Make each candidate's study, which keeps the method's options. Raises `BadStudy`."""
    kept = [f"method.{key}={_written(value)}" for key, value in _method(table).items()]
    kind = parse_study(table, overrides).method.kind
    arms = arms_of([":".join((kind, *pairs)) for pairs in tried])
    for arm, pairs in zip(arms, tried, strict=True):
        wanted = tuple(p if "." in p.partition("=")[0] else f"method.{p}" for p in pairs)
        require(
            arm.overrides == wanted,
            f"--over: '{':'.join(pairs)}' cannot be read again; a value has no ':' and no '='",
        )
    return {arm: arm.study(table, [*kept, *overrides]) for arm in arms}


def _method(table: Table) -> dict[str, object]:
    options: object = table.get("method")
    found = cast(Table, options) if isinstance(options, dict) else {}
    return {key: value for key, value in found.items() if key != "kind"}


def _written(value: object) -> str:
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


@dataclass(frozen=True)
class Candidate:
    """One candidate, and for each seed the best validation score and the round that has it.

    A seed without a score is one whose training diverged.
    """

    name: str
    title: str
    scores: Mapping[int, float | None]
    rounds: Mapping[int, int]

    @property
    def score(self) -> float | None:
        """Return the mean over seeds; None where training diverged with one of them."""
        found = [score for score in self.scores.values() if score is not None]
        return sum(found) / len(found) if len(found) == len(self.scores) else None


@dataclass(frozen=True)
class Sweep:
    """A search among the arms of a comparison, over these keys."""

    comparison: Comparison
    keys: tuple[str, ...]

    @staticmethod
    def of(comparison: Comparison, axes: Sequence[SweepAxis]) -> "Sweep":
        """Make a sweep of a comparison; its arms are not tested. Raises `BadInput`."""
        _check_validates(comparison)
        keys = tuple(axis.key for axis in axes)
        begun = (
            f"A sweep over {' and '.join(keys)} has {len(comparison.studies)} candidates. "
            "The one that validates best will be chosen; none is tested.",
        )
        return Sweep(replace(comparison, search=begun), keys)

    @property
    def metric(self) -> str:
        return self._first.task.metric

    @property
    def _first(self) -> Study:
        return next(iter(self.comparison.studies.values()))

    @property
    def _sites(self) -> str:
        return " with the same --site files" if self.comparison.files else ""

    @property
    def _files(self) -> ComparisonFolder:
        return ComparisonFolder(self.comparison.folder)

    def check_folder(self) -> None:
        """Refuse a folder of other candidates, or of arms that were tested. Raises `BadFolder`."""
        if not self._files.exists:
            return
        plan, folder = read_plan(self._files), self.comparison.folder
        if not plan.search:
            raise BadFolder(
                f"{folder}: holds a comparison, whose arms were tested; choose another --out"
            )
        if [entry.name for entry in plan.entries] != [a.name for a in self.comparison.studies]:
            raise BadFolder(
                f"{folder}: holds a sweep with other candidates; give it again as it was, or "
                "choose another --out"
            )

    def candidates(self) -> list[Candidate]:
        """Read the validation scores of all candidates from the journals of their runs."""
        return [self._candidate(arm, study) for arm, study in self.comparison.studies.items()]

    def _candidate(self, arm: ArmChoice, study: Study) -> Candidate:
        cells = [cell for cell in self.comparison.cells if cell.arm == arm]
        best = {cell.seed: best_validation(self.comparison.run_folder(cell)) for cell in cells}
        return Candidate(
            arm.name,
            arm.title(study),
            {seed: score for seed, (_, score) in best.items()},
            {seed: round for seed, (round, _) in best.items()},
        )

    def choose(self) -> tuple[list[Candidate], Candidate]:
        """Choose by validation: of equals the first. Write the choice, and return it with all.

        Raises `RunFailed` where no candidate has a validation score.
        """
        found = self.candidates()
        scores = {n: each.score for n, each in enumerate(found) if each.score is not None}
        if not scores:
            raise RunFailed(
                "no candidate has a validation score with every seed: training diverged, or no "
                "site has a patient to validate on. Try other values, with another --out."
            )
        best = found[max(scores, key=lambda number: (scores[number], -number))]
        self._write(found, best)
        return found, best

    def sentences(self, found: Sequence[Candidate], best: Candidate) -> tuple[str, ...]:
        """Say what was chosen, by what, and that nothing was tested."""
        others = sorted((c for c in found if c is not best), key=_from_the_best)
        named = [f"{each.title}: {shown_score(each.score)}" for each in others[:_NAMED]]
        first = "The others" if len(others) <= _NAMED else "The next ones"
        beside = f" {first}: {'; '.join(named)}." if others else ""
        seeds, label = len(best.scores), metric_of(self.metric).label
        over = f", the mean over {seeds} seeds" if seeds > 1 else ""
        return (
            f"Chosen by validation, of {len(found)} candidates: {best.title}. Validation "
            f"{label} of its best round: {shown_score(best.score)}{over}.{beside}",
            NO_TESTS,
            f"To test what was chosen, once: grandrounds run {self._files.chosen}{self._sites}",
        )

    def _write(self, found: Sequence[Candidate], best: Candidate) -> None:
        sentences = self.sentences(found, best)
        chosen = next(s for a, s in self.comparison.studies.items() if a.name == best.name)
        comments = "".join(f"# {sentence}\n" for sentence in sentences[:2])
        write_text(self._files.chosen, comments + to_toml(replace(chosen, arm="")))
        record = {
            "over": list(self.keys),
            "metric": self.metric,
            "chosen": best.name,
            "candidate": [_record(each) for each in found],
        }
        write_text(self._files.candidates, tomli_w.dumps(record))
        replace(self.comparison, search=sentences).describe()


def _from_the_best(found: Candidate) -> float:
    return inf if found.score is None else -found.score


def _record(found: Candidate) -> dict[str, object]:
    seeds = [
        {"seed": seed, "best_round": found.rounds[seed]}
        | ({} if score is None else {"validation": score})
        for seed, score in found.scores.items()
    ]
    score = {} if found.score is None else {"validation": found.score}
    return {"name": found.name, "title": found.title, **score, "run": seeds}


def candidate_as_json(found: Candidate) -> dict[str, object]:
    """Return a candidate as plain values."""
    return {**asdict(found), "validation": found.score}


def shown_score(score: float | None) -> str:
    """Write a validation score, or why there is none."""
    return "diverged" if score is None else f"{score:.4g}"


def best_validation(folder: Path) -> tuple[int, float | None]:
    """Return the round that validated best and its score; no score where training diverged."""
    if diverged(folder):
        return 0, None
    events = without_superseded(read_journal(RunFolder(folder).journal))
    rounds = [event for _, event in events if isinstance(event, RoundFinished)]
    scores = {event.round: event.score for event in rounds if event.score is not None}
    best = max(scores, key=lambda round: (scores[round], -round), default=0)
    return best, scores.get(best)


def _check_validates(comparison: Comparison) -> None:
    """Refuse a study in which no patient validates: nothing could be chosen by."""
    for study in comparison.studies.values():
        simulated = [s.patients.validation for s in study.site if s.data == "simulated"]
        real = any(s.data == "files" for s in study.site) and study.elements.split.validation > 0
        if not real and not any(simulated):
            raise BadStudy(
                "a sweep chooses by validation, and the study keeps no patient for it; set "
                "elements.split.validation, or the patients of simulated sites"
            )
