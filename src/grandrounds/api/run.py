"""A study is run, or compared with others, and what was found is read from its folder."""

import csv
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from grandrounds.algorithms.method import Method
from grandrounds.api.progress import progress_bars
from grandrounds.api.study import Source, arm_label, check_workers, load, table_of
from grandrounds.core.device import num_cores, read_devices, take_share
from grandrounds.core.errors import BadFolder, BadInput, BadSite
from grandrounds.core.events import Event, Listener
from grandrounds.core.quoting import original
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.data.dataset import PatientDataset
from grandrounds.inference.trained_module import TrainedModule
from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import write_report
from grandrounds.runs.arms import arms_of, check_equal, read_arms
from grandrounds.runs.budget import BudgetKind
from grandrounds.runs.comparison import Comparison, ComparisonRun, OnEvent
from grandrounds.runs.derived import derived_arms
from grandrounds.runs.extend import extension
from grandrounds.runs.folder import is_finished
from grandrounds.runs.loop import run_study
from grandrounds.study.checks import notes
from grandrounds.study.file import read_study
from grandrounds.study.site_file import SiteDataset, SiteFile, SiteSource, read_site
from grandrounds.study.study import Study

if TYPE_CHECKING:
    from rich.console import Console

# Of each real site, by its name; or their site files and datasets.
Data: TypeAlias = Mapping[str, str | Path | SiteSource | PatientDataset] | Sequence[SiteSource]
Row: TypeAlias = dict[str, Any]
_TO_GO_ON = "stopped; every finished round is saved. {how} goes on."


def run(
    study: Source,
    folder: str | Path,
    *,
    data: Data | None = None,
    workers: int = 1,
    devices: str | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    progress: "bool | Console" = True,
    listeners: Sequence[Listener] = (),
) -> "FinishedRun":
    """Train a study in a run folder, test it, and return what it came to.

    `data` has, for each real site, a folder, a file of data, a site file or, for a task of one's
    own, a dataset that names patients. With several `workers` (0: one for each core), as many
    processes share the sites; the numbers are the same. `devices`, such as "cuda:0,cuda:1", says
    where the processes compute in turn, at least one on each. With
    `resume` a run goes on where it stopped, or to more rounds; under another version, or with other
    data, only if it is told to `accept_changes`. `listeners` are called with each event; without
    `progress` nothing is printed. Raises `BadInput` before anything trains, `RunFailed` afterwards;
    both, and Ctrl-C, leave a run that can be resumed.
    """
    study, folder = load(study), Path(folder)
    named = read_devices(devices, [study.training.device])
    take_share(0, named)
    processes = max(_num_workers(workers), len(named))
    check_workers(study, processes)
    longer = extension(folder, study) if resume else None
    with progress_bars(progress) as bars:
        for note in (*notes(study), *([longer.sentence] if longer else [])):
            bars.note(note)
        bars.add(study.title, study.build_method().title, study.rounds)
        with _told("the same call with resume=True"):
            run_study(
                study,
                folder,
                files=site_files(data or ()),
                resume=resume,
                accept_changes=accept_changes,
                listeners=[partial(bars.show, study.title), *listeners],
                preparing=bars.prepare,
                workers=processes,
                devices=named,
            )
    return FinishedRun(folder)


def compare(
    study: Source,
    methods: Sequence[str | Method | type[Method]],
    folder: str | Path,
    *,
    seeds: int = 1,
    workers: int = 1,
    devices: str | None = None,
    data: Data | None = None,
    leave_one_out: bool = False,
    matrix: bool = False,
    budget: BudgetKind = "local-steps",
    unequal: bool = False,
    overrides: Sequence[str] = (),
    accept_changes: bool = False,
    progress: "bool | Console" = True,
    listeners: Sequence[OnEvent] = (),
) -> dict[str, list["FinishedRun"]]:
    """Train methods on the same data, splits and seeds; return the runs of each, seed by seed.

    A method is a word, a class, an instance with its options, or an arm as the command line has it,
    `METHOD[@TOPOLOGY][:KEY=VALUE...]`; the keys of what is returned are arms. The report is about
    the first. With several `workers` (0: one for each core) as many runs train at a time. What is
    done already is left as it is, so the same call goes on where one stopped. The other options are
    those of the command `compare`. Raises `BadInput` before anything trains, `RunFailed` after it.
    """
    if seeds < 1:
        raise BadInput(f"--seeds is {seeds}; it must be 1 or more")
    labels = [arm_label(f"methods[{place}]", each) for place, each in enumerate(methods)]
    trained, others = read_arms(labels)
    table, _ = table_of(study)
    studies = {arm: arm.study(table, overrides) for arm in trained}
    if not unequal:
        check_equal(studies)
    named = read_devices(devices, [each.training.device for each in studies.values()])
    at_once = min(max(_num_workers(workers), len(named)), len(studies) * seeds)
    for each in studies.values():
        check_workers(each, at_once)
    files = tuple(site_files(data or ()))
    comparison = Comparison(
        folder=Path(folder),
        studies=studies,
        files=files,
        workers=at_once,
        num_seeds=seeds,
        leave_one_out=leave_one_out,
        crosses=matrix,
        accepts_changes=accept_changes,
        derived=derived_arms(others, studies),
        devices=named,
    )
    follow_comparison(comparison, budget, progress, listeners)
    runs = ComparisonFolder(Path(folder))
    first = next(iter(studies.values())).seed
    return {
        arm.label: [FinishedRun(runs.run(arm.name, first + more).path) for more in range(seeds)]
        for arm in arms_of(labels)
    }


def follow_comparison(
    comparison: Comparison,
    budget: BudgetKind | None,
    progress: "bool | Console",
    listeners: Sequence[OnEvent],
) -> None:
    """Run a comparison with a bar for each of its runs; its arms get a budget in common, if any."""
    with progress_bars(progress, runs=len(comparison.cells)) as bars:
        fitted = comparison.within(budget, bars.prepare) if budget else comparison
        for sentence in fitted.terms:
            bars.say(sentence)
        for cell, study in fitted.cells.items():
            bars.add(cell.name, fitted.title(cell), study.rounds, done=fitted.is_done(cell))

        def hear(cell: ComparisonRun, event: Event) -> None:
            bars.show(cell.name, event)
            for listener in listeners:
                listener(cell, event)

        with _told("the same call"):
            fitted.run(hear, bars.prepare)


@contextmanager
def _told(how: str) -> Generator[None, None, None]:
    """Let Ctrl-C say how to go on, below its traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(_TO_GO_ON.format(how=how[0].upper() + how[1:]))
        raise


def _num_workers(workers: int) -> int:
    if workers < 0:
        raise BadInput(f"workers is {workers}; it must be 0 or more (0: one for each core)")
    return workers or num_cores()


def site_files(data: Data) -> list[SiteSource]:
    """Return the site file, or the dataset, of each real site. Raises `BadSite`."""
    if not isinstance(data, Mapping):
        return list(data)
    return [_site_file(name, where) for name, where in data.items()]


def _site_file(name: str, where: object) -> SiteSource:
    """Return what locates a site's data; a site file's name must be the site's."""
    match where:
        case SiteFile() | SiteDataset():
            file = where
        case str() | Path() if Path(where).suffix == ".toml":
            file = read_site(Path(where))
        case str() | Path():
            return SiteFile(name, Path(where).expanduser().absolute())
        case _ if hasattr(where, "__getitem__") and not isinstance(where, Mapping):
            return SiteDataset(name, cast(PatientDataset, where))
        case _:
            raise BadSite(
                f"data of site '{name}' is an object of {type(where).__name__}; give a folder, a "
                "file of data, a site file (.toml), or a dataset that names patients"
            )
    if file.name != name:
        raise BadSite(f"data of site '{name}': its site file is of site '{file.name}'")
    return file


@dataclass(frozen=True, init=False)
class FinishedRun:
    """What a finished run came to, read from its folder. Raises `BadFolder` for any other.

    `scores` and `rounds` are rows, of which `pandas.DataFrame` makes a table. A notebook shows the
    mean test scores of each site.
    """

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        object.__setattr__(self, "folder", Path(folder))
        if ComparisonFolder(self.folder).exists:
            raise BadFolder(f"{folder}: holds a comparison; give the folder of one of its runs")
        if not self._files.study.exists():
            raise BadFolder(f"{folder}: no study.toml, so no run; give a run's folder")
        if not is_finished(self.folder):
            raise BadFolder(f"{folder}: its run is not finished; go on with it (--resume) first")

    @property
    def _files(self) -> RunFolder:
        return RunFolder(self.folder)

    @cached_property
    def study(self) -> Study:
        """Return the study, complete with its defaults."""
        return read_study(self._files.study)

    @property
    def scores(self) -> list[Row]:
        """Return the test scores: a row for each case and metric, in the run's own order.

        Its keys are arm, seed, site, patient, case, task, metric, value and round.
        """
        return _rows(self._files.scores, {"seed": int, "value": float, "round": int})

    @property
    def rounds(self) -> list[Row]:
        """Return a row for each round and site: seconds, bytes, losses and validation score.

        What a site did not measure in a round is None.
        """
        words = {"round": int, "site": str, "took_part": _is_true, "bytes_up": int}
        return _rows(self._files.rounds, {**words, "bytes_down": int}, float)

    @property
    def digests(self) -> list[str]:
        """Return the SHA-256 of all weights after each round."""
        return [row["digest"] for row in _rows(self._files.digests, {})]

    @cached_property
    def _arm(self) -> Arm:
        return read_facts(self.folder).arms[0]

    def mean(self, metric: str | None = None) -> float:
        """Return a test score's mean over sites, of the means over their patients.

        By default it is the metric by which the run chose its best round. Raises `BadInput` for a
        metric that the run has not.
        """
        key = metric or self.study.task.metric
        spread = self._arm.overall(key)
        if spread is None:
            known = ", ".join(dict.fromkeys(row["metric"] for row in self.scores))
            raise BadInput(f"{self.folder}: no score '{key}' of every site; it has {known}")
        return spread.mean

    def model(self, site: str) -> TrainedModule:
        """Return the tested model as a site uses it. Raises as `load_trained_model` does."""
        return TrainedModule.load(self.folder, site)

    def report(self, *, include_images: bool = False) -> Path:
        """Write the report into the folder, and return its path.

        `include_images` shows images of real patients that sites allow, too.
        """
        return write_report(self.folder, include_images=include_images)

    def _repr_html_(self) -> str:
        """Return the mean test scores of each site as a table."""
        metrics = list(dict.fromkeys(row["metric"] for row in self.scores))
        sites = {site: partial(self._site_mean, site) for site in self._arm.study.sites}
        rows = {**sites, "all": self._overall_mean}
        head = _cells("th", [self._arm.title, *metrics])
        body = "".join(
            f"<tr>{_cells('th', [name])}{_cells('td', map(mean, metrics))}</tr>"
            for name, mean in rows.items()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _site_mean(self, site: str, metric: str) -> str:
        spread = self._arm.site_spread(site, metric)
        return f"{spread.mean:.4g}" if spread else ""

    def _overall_mean(self, metric: str) -> str:
        spread = self._arm.overall(metric)
        return f"{spread.mean:.4g}" if spread else ""


def _cells(tag: str, texts: "map[str] | list[str]") -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _rows(
    path: Path, kinds: Mapping[str, Callable[[str], Any]], others: Callable[[str], Any] = str
) -> list[Row]:
    """Read a table; a cell is what `kinds` makes of its column's text, and None where empty."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                name: kinds.get(name, others)(original(cell)) if cell else None
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


def _is_true(cell: str) -> bool:
    return cell == "True"
