"""What a user can get wrong: exit code 2, one sentence, nothing written and nothing lost."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SaveVolume
from tests.helpers.command import Done, inside
from tests.helpers.federation import NAME_RULE, TINY

REAL = """name = "real"
[elements]
contrasts = ["T1w", "T2w"]
size = [32, 32]
spacing = [2.0, 2.0]
split = { train = 0.5, validation = 0.0, test = 0.5 }
[task]
model = "small"
[[site]]
name = "alder"
tasks = ["T1w->T2w"]
"""


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: inside(monkeypatch, capsys, *words)


def tiny_with(old: str, new: str) -> str:
    text = TINY.read_text("utf-8")
    assert old in text
    return text.replace(old, new, 1)


def refused(done: Done) -> str:
    """The one sentence with which a command was refused."""
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"grandrounds: .+\n", done.err), done.err
    return done.err.removeprefix("grandrounds: ").rstrip("\n")


STUDIES: dict[str, tuple[str, str]] = {
    "a name that is a path": (
        tiny_with('name = "tiny"', 'name = "../tiny"'),
        f"study.toml: study name '../tiny': {NAME_RULE}",
    ),
    "a name that acts on the terminal": (
        tiny_with('name = "tiny"', 'name = "tiny\\u001b[2J"'),
        f"study.toml: study name 'tiny\\x1b[2J': {NAME_RULE}",
    ),
    "an unknown key": (
        tiny_with("rounds = 3", "ruonds = 3"),
        "study.toml: unknown key 'ruonds'; did you mean 'rounds'?",
    ),
    "an unknown key of a site": (
        tiny_with("slices = 4", "slcies = 4"),
        "study.toml: unknown key 'site[0].slcies'; did you mean 'slices'?",
    ),
    "a contrast that no site has": (
        tiny_with('"PDw", "FLAIR"]', '"PDw", "FLAIR", "ASL"]'),
        "study.toml: site 'alder': its scanner.protocol has no sequence for contrast 'ASL' "
        "(it has T1w, T2w, PDw, FLAIR)",
    ),
    "a task of an unknown contrast": (
        tiny_with("T2w->PDw", "T2w->CT"),
        "study.toml: site 'alder', task 'T2w->CT': "
        "contrast 'CT' is not in elements.contrasts (T1w, T2w, PDw, FLAIR)",
    ),
    "two sites of one name": (
        tiny_with('name = "birch"', 'name = "alder"'),
        "study.toml: two sites are named 'alder'; site names must differ",
    ),
    "a scanner that does not exist": (
        tiny_with("field = 3.0", "field = 30.0"),
        "study.toml: a scanner has field = 30; the tissue table holds from 1.5 to 3 tesla.",
    ),
    "bad TOML": (
        tiny_with("seed = 1", "seed = "),
        "study.toml: not valid TOML: Invalid value (at line 3, column 8)",
    ),
    "no text at all": ("", "study.toml: 'name' is missing; it is needed"),
    "a real site without its site file": (
        REAL,
        "site 'alder' needs its site file: add --site PATH_OF_ITS.toml",
    ),
    "more memory than there is": (
        tiny_with("size = [32, 32]", "size = [262144, 262144]"),
        "elements.size = [262144, 262144] with training.batch_size = 4 needs about ",
    ),
    "a method that cannot work": (
        tiny_with('kind = "pflsynth"', 'kind = "pflsynth"\nshare = ["tail"]'),
        "method: no parameter group 'tail'; this task has mapper, encoder, bottleneck_early, "
        "bottleneck_late, decoder, personal, norm, critic, head, upper, all",
    ),
    "a device that is not there": (
        tiny_with("threads = 1", 'threads = 1\ndevice = "cuda:99"'),
        "This machine has no device 'cuda:99'; say auto, or cpu, which is always there.",
    ),
}


@pytest.mark.parametrize("case", STUDIES)
def test_a_bad_study_is_refused_before_anything_is_written(
    case: str, ask: Callable[..., Done], tmp_path: Path
):
    text, sentence = STUDIES[case]
    (tmp_path / "study.toml").write_text(text)
    found = refused(ask("run", "study.toml", "--out", "out", "--quiet"))
    assert found.startswith(sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds", "--set rounds: write it as key=value, for example training.epochs=2"),
        ("ruonds=2", "unknown key 'ruonds'; did you mean 'rounds'?"),
        ("rounds=0", "rounds is 0; it must be 1 or more"),
        ("rounds.x=0", "--set rounds.x=0: 'rounds' is not a table"),
        ("method.kind=fedprocks", "method.kind = 'fedprocks' is unknown; did you mean 'fedprox'?"),
        (
            "training.norm_buffers=shared",
            'training.norm_buffers = "shared" would do nothing: task.norm is "instance", ',
        ),
    ],
)
def test_a_bad_override_is_refused(
    override: str, sentence: str, ask: Callable[..., Done], tmp_path: Path
):
    found = refused(ask("run", TINY, "--out", "out", "--set", override))
    assert sentence in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "absent.toml"), "absent.toml: cannot be read as a study file"),
        (("run", "."), ".: cannot be read as a study file"),
        (("check", "absent.toml"), "absent.toml: cannot be read as a study file"),
        (("run", TINY, "--rounds", "-1"), f"{TINY}: rounds is -1; it must be 1 or more"),
        (
            ("compare", TINY, "--arms", "pflsynth,fedprocks"),
            "arm 'fedprocks': method.kind = 'fedprocks' is unknown; did you mean 'fedprox'?",
        ),
        (
            ("compare", TINY, "--arms", "fedavg:mu=1"),
            "arm 'fedavg:mu=1': unknown key 'method.mu'; valid here: kind",
        ),
        (("run", TINY, "--site", "absent.toml"), "absent.toml: cannot be read as a site file"),
        (("report", "absent"), "absent"),
        (("report", "."), "."),
    ],
)
def test_bad_arguments_are_refused(
    words: tuple[str, ...], sentence: str, ask: Callable[..., Done], tmp_path: Path
):
    assert refused(ask(*words)).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run",), "study"),
        (("nonsense",), "nonsense"),
        (("run", TINY, "--nope"), "--nope"),
        (("run", TINY, "--rounds", "many"), "rounds"),
        (("compare", TINY), "arms"),
    ],
)
def test_words_that_the_command_line_does_not_know_are_refused(
    words: tuple[str, ...], sentence: str, ask: Callable[..., Done], tmp_path: Path
):
    done = ask(*words)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err.lower().splitlines()[-1]
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_words_the_command_shows_its_help(ask: Callable[..., Done]):
    done = ask()
    assert done.code in (0, 2)
    assert "Usage: grandrounds" in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("out", ["taken", "taken/run"])
def test_an_out_folder_that_cannot_be_is_refused(
    out: str, ask: Callable[..., Done], tmp_path: Path
):
    (tmp_path / "taken").write_text("mine")
    found = refused(ask("run", TINY, "--out", out, "--quiet"))
    assert found.startswith(f"{out}: cannot be made into a run folder (")
    assert (tmp_path / "taken").read_text() == "mine"


# A site's own file and data.

HEAD = np.clip(np.add.outer(np.arange(40.0), np.arange(40.0))[..., None].repeat(4, 2), 20, 70)


def site_folder(folder: Path, save: SaveVolume, *contrasts: str) -> Path:
    """A site's folder of four patients."""
    for number in range(1, 5):
        for contrast in contrasts:
            name = f"sub-{number:02d}"
            save(folder / f"{name}_{contrast}.nii.gz", HEAD.astype(np.float32))
    return folder


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "dogwood"\ndata = "data"', "site file of 'dogwood': the study has no such site"),
        ('name = "alder"', "alder.toml: 'data' is missing; it is needed"),
        (
            'name = "alder"\ndata = "nowhere"',
            "nowhere: No such file or directory; "
            "a site's data must be a readable folder of NIfTI volumes.",
        ),
        ('name = "alder"\ndata = "data"\nspeed = 3', "alder.toml: unknown key 'speed'"),
        ("name = ", "alder.toml: cannot be read as a site file (Invalid value"),
    ],
)
def test_a_bad_site_file_is_refused(
    text: str, sentence: str, ask: Callable[..., Done], tmp_path: Path
):
    (tmp_path / "study.toml").write_text(REAL)
    (tmp_path / "alder.toml").write_text(text)
    done = ask("run", "study.toml", "--site", "alder.toml", "--out", "out", "--quiet")
    assert sentence in refused(done)
    assert not (tmp_path / "out").exists()


def test_a_site_file_for_a_simulated_site_is_refused(ask: Callable[..., Done], tmp_path: Path):
    (tmp_path / "alder.toml").write_text('name = "alder"\ndata = "data"')
    done = ask("run", TINY, "--site", "alder.toml", "--out", "out", "--quiet")
    assert refused(done) == "site 'alder' is simulated in this study; it takes no site file"
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_site_are_refused(ask: Callable[..., Done], tmp_path: Path):
    (tmp_path / "study.toml").write_text(REAL)
    (tmp_path / "alder.toml").write_text('name = "alder"\ndata = "data"')
    twice = ("--site", "alder.toml", "--site", "alder.toml")
    done = ask("run", "study.toml", *twice, "--out", "out", "--quiet")
    assert refused(done) == "site 'alder' has 2 site files; give one"


@pytest.mark.parametrize("command", [("run", "--out", "out"), ("check",)], ids=lambda c: c[0])
def test_a_site_without_the_contrast_of_its_task_is_refused(
    command: tuple[str, ...], ask: Callable[..., Done], tmp_path: Path, save_volume: SaveVolume
):
    site_folder(tmp_path / "data", save_volume, "T1w")
    (tmp_path / "study.toml").write_text(REAL)
    (tmp_path / "alder.toml").write_text('name = "alder"\ndata = "data"\ncache = "cache"')
    verb, *words = command
    done = ask(verb, "study.toml", "--site", "alder.toml", *words, "--quiet")
    found = refused(done)
    assert "alder" in found
    assert "T2w" in found
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_is_refused_by_its_name(
    ask: Callable[..., Done], tmp_path: Path, save_volume: SaveVolume
):
    data = site_folder(tmp_path / "data", save_volume, "T1w", "T2w")
    broken = data / "sub-02_T2w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "study.toml").write_text(REAL)
    (tmp_path / "alder.toml").write_text('name = "alder"\ndata = "data"\ncache = "cache"')
    done = ask("run", "study.toml", "--site", "alder.toml", "--out", "out", "--quiet")
    assert "sub-02_T2w.nii.gz" in refused(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_folder_of_results_that_cannot_be_is_refused(
    out: str, ask: Callable[..., Done], tmp_path: Path
):
    (tmp_path / "taken").write_text("mine")
    found = refused(ask("compare", TINY, "--arms", "fedavg", "--out", out, "--quiet"))
    assert found.startswith(f"{out}: cannot be made into a folder (")
    assert (tmp_path / "taken").read_text() == "mine"
