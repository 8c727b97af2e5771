"""A folder that is watched: what the live report makes of it while it is written."""

import json
from http.client import HTTPResponse
from pathlib import Path

import pytest

from grandrounds.core.events import Event, Failed, Interrupted, StoppedEarly
from grandrounds.core.journal import Journal
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.live import FolderWatch, SnapshotBoard, progress, waiting
from tests.helpers.live_report import Shown, go_on
from tests.helpers.run_folders import FEDAVG, PFLSYNTH, ending, run_folder, write_arms, write_run


def test_the_stream_tells_what_is_new_and_nothing_twice(page_of: Shown):
    stream = page_of.get("/events", cookie=page_of.server.cookie)
    assert told_by(stream) == "round 2 of 10"
    page_of.watch.look()
    go_on(page_of.folder, 3)
    page_of.watch.look()
    assert told_by(stream) == "round 3 of 10"


def told_by(stream: HTTPResponse) -> str:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    return json.loads(line.removeprefix(b"data: "))["progress"]


def test_a_folder_half_written_is_read_again_and_a_damaged_one_is_told(tmp_path: Path):
    board = SnapshotBoard(waiting(tmp_path))
    watch = FolderWatch(tmp_path, board)
    write_run(run_folder(tmp_path, "pflsynth"), PFLSYNTH, until=2)
    (tmp_path / "arms.toml").write_text("seeds = [7")
    for _ in range(2):
        watch.look()
        assert board.snapshot == waiting(tmp_path)
    watch.look()
    assert board.snapshot.progress == "the report cannot be made"
    assert f"{tmp_path / 'arms.toml'}: cannot be read" in board.snapshot.page
    write_arms(tmp_path, [PFLSYNTH])
    watch.look()
    assert board.snapshot.progress == "round 2 of 10"


def test_pictures_of_which_no_byte_is_written_yet_are_waited_for(page_of: Shown):
    picture = page_of.folder / "sites" / "alder" / "panels.npz"
    picture.parent.mkdir(parents=True)
    picture.touch()
    go_on(page_of.folder, 3)
    page_of.watch.look()
    assert page_of.server.board.snapshot.progress == "round 2 of 10"
    picture.unlink()
    page_of.watch.look()
    assert page_of.server.board.snapshot.progress == "round 3 of 10"


def test_progress_is_told_in_a_few_words(tmp_path: Path):
    arms = [PFLSYNTH, FEDAVG]
    write_arms(tmp_path, arms, (7, 8))
    write_run(run_folder(tmp_path, "pflsynth"), PFLSYNTH)
    assert progress(read_facts(tmp_path)) == "1 of 4 runs finished, 10 rounds so far"
    write_run(run_folder(tmp_path, "fedavg"), FEDAVG, until=3)
    assert progress(read_facts(tmp_path)) == "1 of 4 runs finished, 13 rounds so far"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ending(PFLSYNTH)[-1], "round 2 of 10, finished"),
        (StoppedEarly(2, 1), "round 2 of 10, stopped early"),
        (Interrupted(2), "round 2 of 10, interrupted"),
        (Failed("alder", 3, "train", "ValueError", "no", ""), "round 2 of 10, failed"),
    ],
)
def test_progress_says_how_a_run_ended(page_of: Shown, event: Event, words: str):
    Journal(page_of.folder / "journal.jsonl").append(event)
    assert progress(read_facts(page_of.folder)) == words
