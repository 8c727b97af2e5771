"""What W&B gets of a run: all of it offline, once, and nothing of the machine."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from grandrounds.core.errors import BadInput
from grandrounds.core.events import Failed, RoundFinished, SiteTested
from grandrounds.core.extras import install_command
from grandrounds.core.journal import Journal, read_journal
from grandrounds.report.tracking.tracker import recorded, replay, tracked
from grandrounds.study.file import example
from tests.helpers.command import inside
from tests.helpers.run_folders import PFLSYNTH, write_run

pytestmark = pytest.mark.skipif(
    find_spec("wandb") is None and os.environ.get("CI") != "true",
    reason=f"wandb: not installed; {install_command('wandb')}",
)
BLOCK, HEADER = 2**15, 7  # bytes of a block of W&B's file, and of the header of each record in it


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[list[str]]:
    """A server that stands for W&B and for every proxy, and says who came."""
    came: list[str] = []
    with socket.socket() as listening, pytest.MonkeyPatch.context() as patch:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def hear() -> None:
            while True:
                try:
                    link, address = listening.accept()
                except OSError:
                    return
                came.append(str(address))
                link.close()

        Thread(target=hear, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        patch.setenv("WANDB_BASE_URL", address)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
            patch.setenv(name, address)
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", os.devnull)
        yield came
        listening.shutdown(socket.SHUT_RDWR)


def silent(sentence: str) -> None:
    pytest.fail(f"told: {sentence}")


def records(path: Path) -> Iterator[Any]:
    """The records of W&B's file, in the format of LevelDB's logs behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    raw, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(raw):
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        if left := BLOCK - place % BLOCK if BLOCK - place % BLOCK < HEADER else 0:
            place += left
            continue
        parts += raw[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(parts)
            yield record
            parts = b""


def files(folder: Path) -> list[Path]:
    """The files of a folder's runs, once W&B's own process has written out what has ended."""
    found = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    end = time.monotonic() + 20
    while any(not any(r.HasField("exit") for r in records(path)) for path in found):
        assert time.monotonic() < end, f"{folder}: a run has no end"
        time.sleep(0.05)
    return found


def plain(items: Iterable[Any]) -> dict[str, Any]:
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}


def steps(folder: Path) -> list[dict[str, Any]]:
    """Every step of a run's history, from all of its files."""
    found = [r for path in files(folder) for r in records(path) if r.HasField("history")]
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        | {"_step": r.history.step.num}
        for r in found
    ]


def summary(folder: Path) -> dict[str, Any]:
    updates = [r.summary for path in files(folder) for r in records(path) if r.HasField("summary")]
    return plain([item for each in updates for item in each.update])


def test_a_run_is_written_offline_once_and_nothing_is_sent(tmp_path: Path, server: list[str]):
    run, board = write_run(tmp_path / "run", PFLSYNTH, until=2), tmp_path / "board"
    uri = f"wandb:offline:{board}"
    for _ in range(2):
        assert replay(run, uri, silent)
    assert [step["_step"] for step in steps(board)] == [1, 2]

    whole = write_run(tmp_path / "whole", PFLSYNTH)
    events = [event for _, event in read_journal(whole / "journal.jsonl")]
    rounds = [event for event in events if isinstance(event, RoundFinished)]
    other = tmp_path / "other"
    for _ in range(2):
        assert replay(whole, f"wandb:offline:{other}", silent)
    found = steps(other)
    assert [step["_step"] for step in found] == [event.round for event in rounds]
    assert [s["round/validation"] for s in found] == [pytest.approx(e.score) for e in rounds]
    moments = [m for m, event in read_journal(whole / "journal.jsonl") if event in rounds]
    assert [step["_timestamp"] for step in found] == pytest.approx(moments)
    ended = summary(other)
    assert (ended["status"], ended["digest"]) == ("FINISHED", rounds[-1].digest)
    for event in events:
        if isinstance(event, SiteTested):
            for metric, value in event.summary.items():
                assert ended[f"test/{event.site}/{metric}"] == pytest.approx(value)
    assert not server, "nothing may leave offline"


def test_what_a_run_is_stands_in_its_configuration_and_nothing_of_the_machine(tmp_path: Path):
    run, board = write_run(tmp_path / "run", PFLSYNTH), tmp_path / "board"
    assert replay(run, f"wandb:offline:{board}", silent)
    [path] = files(board)
    [made] = [record.run for record in records(path) if record.HasField("run")][:1]
    config = {item.key: json.loads(item.value_json) for item in made.config.update}
    assert (made.project, made.display_name) == ("four-hospitals", "pflsynth/seed-7")
    assert config["fingerprint"] == "9f2c" * 16
    assert config["site.cedar.tasks"] == "T1w->T2w, T2w->T1w"
    assert config["arm"] == "pflsynth"
    raw = path.read_bytes()
    for secret in (str(tmp_path), str(Path.home()) + "/", socket.gethostname(), "pytest"):
        assert secret.encode() not in raw, secret


def test_a_run_that_was_stopped_goes_on_under_the_same_id(tmp_path: Path):
    run, board = write_run(tmp_path / "run", PFLSYNTH, until=4), tmp_path / "board"
    uri, events = f"wandb:offline:{board}", read_journal(run / "journal.jsonl")
    middle = next(n for n, (_, e) in enumerate(events) if getattr(e, "round", 0) == 3)
    for part in (events[:middle], events):
        with tracked(run, [uri], silent) as [tracker]:
            for moment, event in part:
                tracker.hear(moment, event)
            tracker.deliver()
    assert [step["_step"] for step in steps(board)] == [1, 2, 3, 4]
    [number] = {path.name for path in files(board)}
    assert recorded(run)[uri] == f"four-hospitals:{number[4:-6]}"


def test_a_failure_says_where_and_what_but_not_the_message(tmp_path: Path):
    run, board = write_run(tmp_path / "failed", PFLSYNTH, until=2), tmp_path / "board"
    card = Failed("birch", 3, "train", "ValueError", "/data/birch/jane-doe.nii.gz is damaged", "")
    Journal(run / "journal.jsonl").append(card)
    assert replay(run, f"wandb:offline:{board}", silent)
    assert summary(board)["failed"] == "birch, round 3, train: ValueError"
    assert all(b"jane-doe" not in path.read_bytes() for path in files(board))


def test_a_project_is_kept_in_a_folder_where_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "board"))
    run = write_run(tmp_path / "run", PFLSYNTH, until=1)
    assert replay(run, "wandb:ward/rounds", silent)
    [path] = files(tmp_path / "board")
    [made] = [record.run for record in records(path) if record.HasField("run")][:1]
    assert (made.entity, made.project) == ("ward", "rounds")


@pytest.mark.slow
def test_without_a_key_nobody_is_asked_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("--out", tmp_path / "run", "--rounds", "1", "--track", "wandb:rounds", "--quiet")
    done = inside(monkeypatch, capsys, "run", example("tiny"), *words)
    assert done.code == 0
    assert (tmp_path / "run" / "scores.csv").exists()
    at_once, in_the_end = done.err.splitlines()
    assert at_once.startswith("warning: wandb:rounds takes no points (BadInput: no key of http://")
    assert "give it once with `wandb login`" in at_once
    assert in_the_end.endswith("--to wandb:rounds")


def test_the_sentence_without_a_key_is_a_refusal(tmp_path: Path):
    from grandrounds.report.tracking import wandb_store

    with pytest.raises(BadInput, match="wandb:offline:DIR"):
        wandb_store._check_key()
