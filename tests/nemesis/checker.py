"""The checker reads all that a run left behind, and says what is wrong with it; nothing, if right.

It believes no one: the journal is held against the tables, the saved states, the sites' own logs,
what the server counted, and a quiet run of the same study.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import (
    Event,
    Failed,
    RoundFinished,
    RoundLost,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteMissed,
    SiteTrained,
)
from grandrounds.core.journal import absences, read_journal, without_superseded
from grandrounds.core.ledger import LedgerEntry, read_ledger
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import load_state, saved_rounds
from grandrounds.site.model_state import SiteStore
from grandrounds.study.study import Study
from tests.helpers.federation import digests, rows
from tests.nemesis.faults import SERVER, Damage
from tests.nemesis.story import KILLED, Attempt, Story
from tests.nemesis.studies import QuietRuns, study_of

Counted = Sequence[Mapping[str, object]]


def verdict(story: Story, quiet: QuietRuns) -> list[str]:
    """Return everything that is wrong; a run that does not end well has no more to be read."""
    problems = [*wrong_ends(story.attempts)]
    if not story.struck:
        problems.append("nothing of the schedule happened")
    if story.attempts[-1].code:
        return [*problems, f"it cannot be finished: {story.attempts[-1].said}"]
    study = study_of(story.schedule.arm)
    try:
        raw = [event for _, event in read_journal(story.run.journal)]
    except BadFolder as error:
        return [*problems, f"the journal cannot be read: {error}"]
    problems += wrong_rounds(raw)
    events = surviving(raw)
    problems += wrong_participation(events, study)
    problems += wrong_tables(story.run, events)
    problems += wrong_states(story.folders, study)
    problems += wrong_digests(story, events, quiet)
    problems += unsaid(story.attempts, raw, story)
    if story.lets_sites_log:
        problems += wrong_logs(story, events, study)
    return problems


def surviving(raw: Sequence[Event]) -> list[Event]:
    return [event for _, event in without_superseded([(0.0, event) for event in raw])]


def wrong_ends(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Every end is one of a run: 0, or 1 or 2 with one sentence, or it was killed from outside."""
    for number, attempt in enumerate(attempts, 1):
        if attempt.code not in (0, 1, 2, KILLED):
            yield f"attempt {number} ended with code {attempt.code}: {attempt.said}"
        elif attempt.code in (1, 2) and not attempt.said.strip():
            yield f"attempt {number} failed without a word"
        elif "Traceback" in attempt.said:
            yield f"attempt {number} shows a traceback: {attempt.said}"
        if attempt.lost:
            yield f"attempt {number} was refused, and changed {', '.join(attempt.lost)}"


def wrong_rounds(raw: Sequence[Event]) -> Iterator[str]:
    """No round is accepted twice unless a resumption says that it goes back before it."""
    last = 0
    for event in raw:
        if isinstance(event, RunResumed):
            if event.round > last:
                yield f"it resumes after round {event.round}, and only {last} were finished"
            last = event.round
        elif isinstance(event, RoundFinished):
            if event.round == last:
                yield f"round {event.round} was accepted twice"
            elif event.round != last + 1:
                yield f"round {event.round} was accepted after round {last}"
            last = event.round


def wrong_participation(events: Sequence[Event], study: Study) -> Iterator[str]:
    """In every round each site either trained or was missed, and enough of them trained."""
    roster, absent = study.trainers, absences(events)
    least = study.build_topology().quorum.least or len(roster)
    finished = [event.round for event in events if isinstance(event, RoundFinished)]
    if finished != list(range(1, study.rounds + 1)):
        yield f"the journal tells of rounds {finished}, and the study has {study.rounds}"
    trained = Counter((e.round, e.site) for e in events if isinstance(e, SiteTrained))
    for number in finished:
        part = [site for site in roster if trained[number, site] and (number, site) not in absent]
        missed = [site for site in roster if (number, site) in absent]
        if sorted((*part, *missed)) != sorted(roster):
            yield f"round {number}: {part} trained, {missed} were missed, of {list(roster)}"
        if len(part) < least:
            yield f"round {number} was accepted with {len(part)} of {least} sites"
    led = Counter(e.round for e in events if isinstance(e, SiteMissed) and e.stage == "merge")
    for (number, site), times in trained.items():
        if times > 1 + led[number]:
            yield f"round {number}: '{site}' is counted {times} times"


def wrong_tables(run: RunFolder, events: Sequence[Event]) -> Iterator[str]:
    """The tables say what the journal says."""
    told = {str(e.round): e.digest for e in events if isinstance(e, RoundFinished)}
    table = {row["round"]: row["digest"] for row in rows(run.digests)}
    if told != table:
        yield f"digests.csv has rounds {list(table)}, and other digests or rounds than the journal"
    absent = absences(events)
    trained = {(e.round, e.site) for e in events if isinstance(e, SiteTrained)} - absent
    said = {(int(r["round"]), r["site"]) for r in rows(run.rounds) if r["took_part"] == "True"}
    if said != trained:
        yield f"rounds.csv and the journal differ in who took part: {sorted(said ^ trained)}"


def wrong_states(folders: Mapping[str, Path], study: Study) -> Iterator[str]:
    """What is saved in the end is what was saved, and reaches the last round."""
    run = folders[SERVER]
    kept = saved_rounds(run).rounds()
    if not kept or kept[-1] != study.rounds:
        yield f"the server's newest saved round is not the last: {kept}"
    for number in kept[-1:]:
        try:
            load_state(run, number)
        except BadFolder as error:
            yield str(error)
    for site in study.trainers:
        store = SiteStore(RunFolder(folders.get(site, run)).site(site).path)
        newest = store.rounds()[-1:]
        if newest and newest[0] not in store.intact_rounds():
            yield f"site '{site}' holds a damaged state of round {newest[0]}"


def wrong_digests(story: Story, events: Sequence[Event], quiet: QuietRuns) -> Iterator[str]:
    """The digests are those of a quiet run from which the same sites were absent."""
    absent, arm = frozenset(absences(events)), story.schedule.arm
    if absent and study_of(arm).build_topology().quorum.least is None:
        yield f"{sorted(absent)} were missed in a study that needs every site"
        return
    expected, found = quiet.digests(arm, absent), list(digests(story.run.path))
    if found != expected:
        pairs = zip(found, expected, strict=False)
        first = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), len(found))
        others = f"with {sorted(absent)} absent"
        yield f"digests differ from the quiet run's from round {first} on, {others}"
    whole = not any(isinstance(event, SiteMissed) for event in events)
    if whole and rows(story.run.scores) != quiet.scores(arm):
        yield "scores.csv differs from the quiet run's"


def unsaid(attempts: Sequence[Attempt], raw: Sequence[Event], story: Story) -> Iterator[str]:
    """A run that failed in its rounds says so in its journal; a round that was lost, too."""
    starts = [n for n, event in enumerate(raw) if isinstance(event, RunStarted)]
    parts = [raw[a:b] for a, b in zip(starts, [*starts[1:], len(raw)], strict=True)]
    told = sum(isinstance(event, Failed) for part in parts for event in part)
    failed = [each for each in attempts if each.code == 1 and _stands_in_journal(each)]
    if len(failed) > told and story.schedule.world != "federation":
        sentences = "; ".join(each.said for each in failed)
        yield f"{len(failed)} attempts failed, and the journal tells of {told}: {sentences}"
    lost = any(isinstance(event, RoundLost) for event in raw)
    again = any(_goes_back(part, before) for before, part in pairwise(parts))
    if again and not lost and not story.schedule.damages:
        yield "a saved round was repeated without a word"
    if not any(isinstance(event, RunFinished) for event in raw):
        yield "it ended well, and the journal does not say so"


def _stands_in_journal(attempt: Attempt) -> bool:
    """Tell whether a failure must stand in the journal: one before it begins, or of it, cannot."""
    return attempt.said.find("(describe)") < 0 and "journal" not in attempt.said


def _goes_back(part: Sequence[Event], before: Sequence[Event]) -> bool:
    resumed = [event.round for event in part if isinstance(event, RunResumed)]
    reached = [event.round for event in before if isinstance(event, RoundFinished)]
    return bool(resumed and reached) and resumed[0] < max(reached) - 1


def wrong_logs(story: Story, events: Sequence[Event], study: Study) -> Iterator[str]:
    """Every update that was counted left its site once, with the bits that the server counted."""
    absent = absences(events)
    trained = {(e.round, e.site) for e in events if isinstance(e, SiteTrained)} - absent
    led = Counter(e.round for e in events if isinstance(e, SiteMissed) and e.stage == "merge")
    spans = _spans(story)
    accepted = _accepted_in(story)
    turn = "backward" if story.schedule.arm == "split" else "train"
    for site in study.trainers:
        if _was_damaged(story, site):
            continue
        try:
            log = _log_of(story, site)
        except BadFolder as error:
            yield str(error)
            continue
        for number in range(1, study.rounds + 1):
            if (number, site) not in trained or number not in accepted:
                continue
            begin, end = spans[site][accepted[number]]
            left = [
                entry
                for entry in log[begin:end]
                if (entry.asked, entry.round) == (turn, number) and entry.tensors
            ]
            yield from _wrong_update(
                site, number, left, _counted(story, accepted[number], turn), led[number], turn
            )


def _wrong_update(
    site: str, number: int, left: Sequence[LedgerEntry], counted: Counted, led: int, turn: str
) -> Iterator[str]:
    if not left:
        yield f"round {number}: '{site}' is counted, and its log has no update of it"
        return
    if turn == "train" and len(left) != 1 + led:
        yield f"round {number}: '{site}' trained {len(left)} times for one round"
    here = [each for each in counted if (each["round"], each["site"]) == (number, site)]
    bits = {each["digest"] for each in here}
    if counted and not here:
        yield f"round {number}: '{site}' is told as counted, and the server took no update of it"
    if turn == "train" and len(here) > 1 + led:
        yield f"round {number}: the server counted {len(here)} updates of '{site}'"
    sent = {entry.digest for entry in left}
    if not bits - {""} <= sent:
        yield f"round {number}: the server counted other bits of '{site}' than left it"


def _log_of(story: Story, site: str) -> list[LedgerEntry]:
    path = RunFolder(story.folders[site]).site(site).ledger
    return [line.entry for line in read_ledger(path)]


def _was_damaged(story: Story, site: str) -> bool:
    files = [f.file for f in story.schedule.faults if isinstance(f, Damage)]
    return any(file in (f"log of {site}", f"sites/{site}") for file in files)


def _spans(story: Story) -> dict[str, list[tuple[int, int]]]:
    """Return which lines of each site's log belong to each attempt."""
    found: dict[str, list[tuple[int, int]]] = {}
    for site in story.folders.keys() - {SERVER}:
        begins = [attempt.logs[site] for attempt in story.attempts]
        found[site] = list(zip(begins, [*begins[1:], 10**9], strict=True))
    return found


def _accepted_in(story: Story) -> dict[int, int]:
    """Return the attempt in which each round was accepted for good; none where lines were lost."""
    if any(damage.file == "journal" for damage in story.schedule.damages):
        return {}
    raw = [event for _, event in read_journal(story.run.journal)]
    found: dict[int, int] = {}
    ends = [attempt.journal for attempt in story.attempts[1:]]
    for line, event in enumerate(raw):
        if isinstance(event, RunResumed):
            found = {number: when for number, when in found.items() if number <= event.round}
        elif isinstance(event, RoundFinished):
            found[event.round] = sum(line >= end for end in ends)
    return found


def _counted(story: Story, attempt: int, turn: str) -> Counted:
    parts: list[list[Mapping[str, object]]] = []
    for each in story.counted:
        if each["asked"] == "attempt":
            parts.append([])
        elif each["asked"] == turn:
            parts[-1].append(each)
    return parts[attempt] if attempt < len(parts) else []
