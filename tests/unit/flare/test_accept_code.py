"""A hospital is shown code before it signs; what lies beside a study or a kit is never run."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.apis.signal import Signal

from grandrounds.core.errors import BadInput, BadSite, BadStudy
from grandrounds.flare.controller import StudyController
from grandrounds.flare.doctor import permissions as decided
from grandrounds.flare.doctor.finding import Party
from grandrounds.flare.executor import study_of_job
from grandrounds.flare.job import job_paths
from grandrounds.flare.kit import Kit
from grandrounds.flare.provision import provision_kits
from grandrounds.study.acceptance import list_acceptances
from grandrounds.study.file import to_toml
from grandrounds.study.installed import look_up
from tests.helpers.command import Done, inside
from tests.helpers.federation import tiny
from tests.helpers.flare_federation import commanded
from tests.helpers.packages import OURS, WORD, lay_down, was_imported
from tests.unit.flare.test_job import context_in

HARM = "from pathlib import Path\nPath(__file__).with_name('harm').touch()\n"
SENTENCE = (
    ': {key} = "evil:Evil": evil is no installed package here. Between hospitals only code that '
    "each site has installed and accepted runs, and none ever travels: make it a package, let "
    "every site install the same version, and accept the study again\n"
)
STUDY = tiny("method.kind=fedavg", sites=2)
Ask = Callable[..., Done]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("federation") / "kits"
    provision_kits(STUDY, "localhost", out)
    return out


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package that has a method."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(lay_down(folder))
    yield folder
    sys.modules.pop("our_methods", None)


@pytest.fixture
def alder(kits: Path, tmp_path: Path) -> Kit:
    """A site's kit that has accepted nothing yet."""
    folder = tmp_path / "alder"
    folder.mkdir()
    for name in ("startup", "local"):
        (folder / name).mkdir()
        for path in (kits / "alder" / name).iterdir():
            if path.is_file():
                (folder / name / path.name).write_bytes(path.read_bytes())
    return Kit(folder)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with two sites, which somebody sent."""
    path = tmp_path / "sent" / "study.toml"
    path.parent.mkdir()
    path.write_text(to_toml(STUDY))
    return path


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return lambda *words: inside(monkeypatch, capsys, *words)


@pytest.mark.parametrize("command", ["accept", "accept --dry-run", "submit", "doctor"])
@pytest.mark.parametrize("key", ["method.kind", "task.network"])
@pytest.mark.parametrize("beside", ["the study", "the kit"])
def test_a_module_beside_a_study_or_in_a_kit_is_refused_and_not_run(
    *, beside: str, key: str, command: str, study: Path, alder: Kit, kits: Path, ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Whoever sends a study may send more; Python may look where it was started, too."""
    folder = study.parent if beside == "the study" else alder.folder
    lay_down(folder, "evil", files={"evil.py": HARM})
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    said: dict[str, tuple[str | Path, ...]] = {
        "accept": ("site", "accept", study, "--kit", alder.folder),
        "accept --dry-run": ("site", "accept", study, "--kit", alder.folder, "--dry-run"),
        "submit": ("federation", "submit", study, "--kit", kits / "admin"),
        "doctor": ("doctor", alder.folder, "--study", study),
    }
    done = ask(*said[command], "--set", f"{key}=evil:Evil")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(SENTENCE.format(key=key))
    assert not (folder / "harm").exists()
    assert "evil" not in sys.modules
    assert list_acceptances(alder.local) == []


@pytest.mark.slow
def test_nor_is_it_by_the_command_in_a_process_of_its_own(study: Path, alder: Kit):
    lay_down(study.parent, "evil", files={"evil.py": HARM})
    words = ("site", "accept", study, "--kit", alder.folder, "--set", "method.kind=evil:Evil")
    done = commanded(*words, cwd=study.parent)
    assert done.code == 2
    assert done.err.endswith(SENTENCE.format(key="method.kind"))
    assert not (study.parent / "harm").exists()


def test_accept_shows_the_code_and_signs_it(study: Path, alder: Kit, packages: Path, ask: Ask):
    [code] = look_up(study, [f"method.kind={WORD}"]).code
    words = ("site", "accept", study, "--kit", alder.folder, "--set", f"method.kind={WORD}")
    dry = ask(*words, "--dry-run")
    shown = f"runs {WORD} of our-methods 0.3.1 (SHA-256 {code.sha256} of its files)\n"
    assert dry.out.startswith(shown)
    assert json.loads(ask(*words, "--dry-run", "--json").out)["code"] == [vars(code)]
    assert list_acceptances(alder.local) == []
    done = ask(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(shown)
    [accepted] = list_acceptances(alder.local)
    assert accepted.code == (code,)
    listed = ask("site", "acceptances", "--kit", alder.folder).out
    assert f"{accepted.study[:16]} {shown}" in listed
    listed = ask("site", "acceptances", "--kit", alder.folder, "--json").out
    assert json.loads(listed)[0]["code"] == [vars(code)]


def test_a_study_without_code_of_others_shows_none(study: Path, alder: Kit, ask: Ask):
    done = ask("site", "accept", study, "--kit", alder.folder)
    assert "runs " not in done.out
    [accepted] = list_acceptances(alder.local)
    assert accepted.code == ()
    assert b'"code"' not in next((alder.local / "accepted").iterdir()).read_bytes()


def test_code_is_shown_before_it_is_imported(
    study: Path, alder: Kit, tmp_path: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    lay_down(tmp_path / "broken", "broken", files={"broken_methods.py": "1 / 0\n"})
    monkeypatch.syspath_prepend(tmp_path / "broken")
    word = "broken_methods:A"
    done = ask("site", "accept", study, "--kit", alder.folder, "--set", f"method.kind={word}")
    assert done.code == 2
    assert done.out.startswith(f"runs {word} of broken 0.3.1 (SHA-256 ")
    assert "broken_methods cannot be imported (ZeroDivisionError" in done.err
    assert list_acceptances(alder.local) == []


@pytest.mark.parametrize("word", ["os:system", "subprocess:Popen", "pytest:fixture"])
def test_what_is_no_method_is_refused_whether_it_is_installed_or_not(
    word: str, study: Path, alder: Kit, ask: Ask
):
    done = ask("site", "accept", study, "--kit", alder.folder, "--set", f"method.kind={word}")
    assert done.code == 2
    assert f'method.kind = "{word}"' in done.err
    assert "is no installed package here" in done.err or "is no class of" in done.err
    assert list_acceptances(alder.local) == []


def test_the_doctor_finds_code_that_changed_since_it_was_accepted(
    study: Path, alder: Kit, packages: Path, ask: Ask
):
    words = (f"method.kind={WORD}",)
    ask("site", "accept", study, "--kit", alder.folder, "--set", *words)
    party = Party(alder, look_up(study, words).read())
    assert decided.acceptance(party).verdict == "ok"
    (packages / "our_methods.py").write_text(OURS + "# mended\n")
    with pytest.raises(BadSite, match=r"accepted our-methods 0\.3\.1 .* and has our-methods 0"):
        decided.acceptance(party)


def job_in(kit: Kit, text: str) -> Any:
    """What NVFlare tells of a job with this study, which runs in a kit."""
    path = kit.folder / "job" / "config" / "study.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return context_in(kit.folder)


@pytest.mark.parametrize("party", ["site", "server"])
def test_a_job_that_names_a_module_in_a_kit_is_refused_and_not_run(
    party: str, alder: Kit, monkeypatch: pytest.MonkeyPatch
):
    """NVFlare starts a job's process with -m: Python looks where it was started, first."""
    (alder.folder / "evil.py").write_text(HARM)
    monkeypatch.chdir(alder.folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    context = job_in(alder, to_toml(STUDY).replace('"fedavg"', '"evil:Evil"'))
    reads: dict[str, Callable[[], object]] = {
        "site": lambda: study_of_job(job_paths(context, "run"), "alder"),
        "server": lambda: StudyController("run").control_flow(Signal(), context),
    }
    with pytest.raises(BadStudy, match="evil is no installed package here"):
        reads[party]()
    assert not (alder.folder / "harm").exists()


def test_a_site_reads_a_job_s_study_where_its_code_is_what_was_accepted(
    study: Path, alder: Kit, packages: Path, ask: Ask
):
    words = (f"method.kind={WORD}",)
    ask("site", "accept", study, "--kit", alder.folder, "--set", *words)
    resolved = look_up(study, words).read()

    def read(site: str, text: str) -> object:
        (packages / "our_methods.imported").unlink(missing_ok=True)
        sys.modules.pop("our_methods", None)
        try:
            return study_of_job(job_paths(job_in(alder, text), "run"), site)
        except BadInput as refusal:
            assert not was_imported(packages)
            return str(refusal)

    text = to_toml(resolved)
    assert read("alder", text) == resolved
    assert "has not accepted this study" in str(read("alder", text + "\n"))
    assert "shows the acceptance of 'alder'" in str(read("birch", text))
    path = next((alder.local / "accepted").iterdir())
    signed = path.read_text()
    path.write_text(signed.replace("0.3.1", "0.3.2"))
    assert "the signature under its acceptance is not valid" in str(read("alder", text))
    path.write_text(signed)
    (packages / "our_methods.py").write_text(OURS + "# mended\n")
    assert "accepted our-methods 0.3.1" in str(read("alder", text))
    assert read("alder", to_toml(replace(STUDY, name="other")))
