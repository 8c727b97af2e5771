"""The counts of a kit's runs, read from journals and logs, in Prometheus' text format.

Names of runs and sites are told, and counts: nothing of patients, and no path.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundFinished, RunFinished, RunStarted, SiteMissed
from grandrounds.core.journal import Stamped, bytes_by_site, read_journal
from grandrounds.core.ledger import NOTES, read_ledger
from grandrounds.core.names import check_name
from grandrounds.core.run_folder import RunFolder, SiteFolder
from grandrounds.flare.kit import RUNS, Kit

_PREFIX = "grandrounds_"


@dataclass(frozen=True)
class Sample:
    """One value; a name that ends with `_total` is a counter, any other a gauge."""

    name: str
    about: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def kind(self) -> str:
        """Return Prometheus' word for how the value moves."""
        return "counter" if self.name.endswith("_total") else "gauge"


def to_text(metrics: Iterable[Sample]) -> str:
    """Write metrics in Prometheus' text format, those of one name together."""
    found = dict[str, list[Sample]]()
    for metric in metrics:
        found.setdefault(metric.name, []).append(metric)
    return "".join(line for group in found.values() for line in _lines(group))


def _lines(group: list[Sample]) -> Iterator[str]:
    name = f"{_PREFIX}{group[0].name}"
    yield f"# HELP {name} {_escaped(group[0].about, quotes=False)}\n"
    yield f"# TYPE {name} {group[0].kind}\n"
    for metric in group:
        pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in metric.labels.items())
        labels = f"{{{pairs}}}" if pairs else ""
        yield f"{name}{labels} {metric.value:.17g}\n"


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def kit_metrics(kit: Kit) -> Iterator[Sample]:
    """Yield the metrics of the runs of a server's kit or a site's; damaged files are said so."""
    for folder in sorted((kit.folder / RUNS).glob("*")):
        with suppress(BadFolder):
            run = {"run": check_name(folder.name, "run", BadFolder)}
            yield from _readable(kit, RunFolder(folder), run)


def _readable(kit: Kit, files: RunFolder, run: Mapping[str, str]) -> Iterator[Sample]:
    about = "Whether the run's journal, or the site's log of it, can be read."
    try:
        found = list(_site(kit, files, run) if kit.kind == "client" else _server(files, run))
    except (BadFolder, OSError):
        yield Sample("run_readable", about, 0.0, run)
        return
    yield Sample("run_readable", about, 1.0, run)
    yield from found


def _server(files: RunFolder, run: Mapping[str, str]) -> Iterator[Sample]:
    """Yield what a journal tells, what was repeated after a resume included."""
    stamped: list[Stamped] = read_journal(files.journal)
    events = [event for _, event in stamped]
    begun = [event for event in events if isinstance(event, RunStarted)]
    rounds = {event.round for event in events if isinstance(event, RoundFinished)}
    missed = Counter(event.site for event in events if isinstance(event, SiteMissed))
    traffic = Counter[tuple[str, str]]()
    for (_, site), (up, down) in bytes_by_site(events).items():
        traffic[site, "up"] += up
        traffic[site, "down"] += down
    if begun:
        yield Sample("run_rounds", "Rounds that the study asks for.", begun[-1].rounds, run)
    yield Sample("run_rounds_finished_total", "Rounds that are finished.", len(rounds), run)
    current = max((getattr(event, "round", 0) for event in events), default=0)
    yield Sample("run_round", "The newest round that was heard of.", current, run)
    ended = bool(events) and isinstance(events[-1], RunFinished)
    yield Sample("run_finished", "Whether the run is finished.", float(ended), run)
    if stamped:
        about = "Seconds since the run's last event."
        yield Sample("run_seconds_since_last_event", about, _ago(stamped[-1][0]), run)
    for site in begun[-1].sites if begun else ():
        about = "Requests that a site did not answer, and that a quorum went on without."
        yield Sample("run_site_missed_total", about, missed[site], {**run, "site": site})
    for (site, way), count in sorted(traffic.items()):
        about = "Bytes of tensors: up from a site, down to it."
        labels = {**run, "site": site, "direction": way}
        yield Sample("run_site_bytes_total", about, count, labels)


def _site(kit: Kit, files: RunFolder, run: Mapping[str, str]) -> Iterator[Sample]:
    """Yield what a site's ledger tells; where it has none, its log of an older version."""
    folder = SiteFolder(files.sites / kit.name)
    path = folder.ledger if folder.ledger.exists() else folder.older_log
    lines = [line for line in read_ledger(path) if line.entry.asked not in NOTES]
    entries = [line.entry for line in lines]
    asked = Counter(entry.asked for entry in entries)
    for kind, count in sorted(asked.items()):
        about = "Requests to the site, and deliveries, by kind."
        yield Sample("site_requests_total", about, count, {**run, "asked": kind})
    refused = sum(bool(entry.refused) for entry in entries)
    yield Sample("site_refused_total", "Requests that the site refused.", refused, run)
    failed = sum(bool(entry.failed) for entry in entries)
    yield Sample("site_failed_total", "Requests that failed at the site.", failed, run)
    left = sum(entry.bytes for entry in entries if entry.tensors and entry.left)
    yield Sample("site_bytes_left_total", "Bytes of tensors that left the site.", left, run)
    current = max((entry.round for entry in entries), default=0)
    yield Sample("site_round", "The newest round that was asked for.", current, run)
    if lines:
        about = "Seconds since the site was last asked."
        yield Sample("site_seconds_since_last_request", about, _ago(lines[-1].time), run)


def _ago(moment: float) -> float:
    return max(0.0, time.time() - moment)
