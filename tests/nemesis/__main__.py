"""Play many schedules: python -m tests.nemesis --seeds 500 [--from S] [--world WORLD]."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from tests.nemesis.faults import Schedule
from tests.nemesis.nemesis import Nemesis
from tests.nemesis.schedule import WORLDS, schedule_of

LONGEST = 500  # characters of what a command said


def chosen() -> Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="how many schedules")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--world", choices=sorted(set(WORLDS)), help="play all in this world")
    parser.add_argument("--keep-going", action="store_true", help="not only to the first wrong one")
    parser.add_argument("--dry-run", action="store_true", help="only print the schedules")
    return parser.parse_args()


def main() -> int:
    """Play the schedules of seeds one after the other; return 1 if one of them is wrong."""
    words = chosen()
    seeds = range(words.first, words.first + words.seeds)
    schedules = [schedule_of(seed, words.world) for seed in seeds]
    if words.dry_run:
        print(*schedules, sep="\n")
        return 0
    folder, wrong = Path(tempfile.mkdtemp(prefix="nemesis-")), 0
    os.environ.setdefault("GRANDROUNDS_CACHE", str(folder / "cache"))
    with closing(Nemesis(folder)) as nemesis:
        for schedule in schedules:
            wrong += not is_right(nemesis, schedule)
            if wrong and not words.keep_going:
                break
    if wrong:
        print(f"{wrong} wrong; their folders are in {folder}")
    else:
        shutil.rmtree(folder)
    return int(bool(wrong))


def is_right(nemesis: Nemesis, schedule: Schedule) -> bool:
    """Play a schedule, print what became of it, and keep its folder if that is wrong."""
    print(schedule, flush=True)
    began = time.monotonic()
    story, problems = nemesis.judge(schedule)
    ends = " -> ".join(str(attempt.code) for attempt in story.attempts)
    struck = f"{len(story.struck)} of {len(schedule.faults)} faults"
    took = f"{time.monotonic() - began:.0f} s"
    print(f"  {'WRONG' if problems else 'right'}: exit {ends}; {struck}; {took}")
    said = [attempt.said.strip()[-LONGEST:] for attempt in story.attempts if attempt.said]
    for line in (*(f"said: {each}" for each in said), *(f"wrong: {each}" for each in problems)):
        print(f"  {line}", flush=True)
    if not problems:
        shutil.rmtree(nemesis.place_of(schedule))
    return not problems


if __name__ == "__main__":
    sys.exit(main())
