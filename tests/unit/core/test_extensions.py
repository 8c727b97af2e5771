"""A word of the study names code that is found, or refused with a sentence that says why."""

import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest

from grandrounds.algorithms import METHODS, method_class
from grandrounds.algorithms.method import Method
from grandrounds.core.errors import BadStudy
from grandrounds.core.extensions import class_named, is_address, only_here, word_of

MODULE = '''
from dataclasses import dataclass
from grandrounds import Method

@dataclass(frozen=True)
class Mine(Method):
    """Mine."""
    class Inner(Method):
        """Within."""
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of one's own, in which the program runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path][1:])
    return tmp_path


def wheel_like(folder: Path, name: str, word: str, address: str) -> None:
    """Lay down what an installer writes of a package that says a word for a method."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[grandrounds.methods]\n{word} = {address}\n")


def test_words_of_the_house_are_its_own_classes():
    assert all(method_class(word) is kind for word, kind in METHODS.items())
    assert all(word_of(kind, METHODS) == word for word, kind in METHODS.items())


def test_a_module_where_the_program_runs_is_found(here: Path):
    (here / "mine_here.py").write_text(MODULE)
    found = method_class("mine_here:Mine")
    assert issubclass(found, Method)
    assert word_of(found, METHODS) == "mine_here:Mine"
    assert method_class("mine_here:Mine.Inner").__doc__ == "Within."


def test_a_file_here_hides_no_module(here: Path):
    (here / "collections.py").write_text("raise SystemExit('a file here was taken')")
    assert class_named("task.network", "collections:OrderedDict", dict) is OrderedDict


def test_an_installed_package_says_words(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "mine_installed.py").write_text(MODULE)
    wheel_like(here, "our-methods", "ours", "mine_installed:Mine")
    monkeypatch.syspath_prepend(here)
    assert method_class("ours").__name__ == "Mine"
    with pytest.raises(BadStudy, match=r"method\.kind = 'our' is unknown; did you mean 'ours'"):
        method_class("our")


def test_a_word_of_two_packages_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    wheel_like(here, "one", "twice", "mine_one:Mine")
    wheel_like(here, "two", "twice", "mine_two:Mine")
    monkeypatch.syspath_prepend(here)
    with pytest.raises(BadStudy, match=r"several installed packages have this word \(one, two\)"):
        method_class("twice")


def test_a_word_of_the_house_is_not_another_package_s(here: Path, monkeypatch: pytest.MonkeyPatch):
    wheel_like(here, "thief", "fedavg", "mine_thief:Mine")
    monkeypatch.syspath_prepend(here)
    assert method_class("fedavg") is METHODS["fedavg"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("nowhere.nets:A", "there is no module nowhere here; install the package that has it, or "),
        ("grandrounds.nowhere:A", "there is no module grandrounds.nowhere here"),
        ("grandrounds.algorithms:FedAvgg", "there is no FedAvgg in .*; did you mean FedAvg"),
        ("subprocess:Popen", "is no class of grandrounds.algorithms.method.Method"),
        ("os:system", "is no class of grandrounds.algorithms.method.Method"),
        ("grandrounds.algorithms:METHODS", "is no class of"),
        ("a b:C", "is no address; write it as"),
        (":C", "is no address"),
        ("os:", "is no address"),
        ("..os:path", "is no address"),
        ("../evil:C", "is no address"),
        ("os:path:join", "is no address"),
    ],
)
def test_what_is_no_method_is_refused_before_anything_is_called(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object, **__: object):
        raise AssertionError("called")

    monkeypatch.setattr(subprocess.Popen, "__init__", never)
    with pytest.raises(BadStudy, match=sentence) as refused:
        method_class(address)
    assert str(refused.value).startswith(f'method.kind = "{address}"')


def test_what_a_module_lacks_or_does_wrong_is_said(here: Path):
    (here / "mine_needy.py").write_text("import absent_package")
    (here / "mine_broken.py").write_text("1 / 0")
    with pytest.raises(BadStudy, match="mine_needy needs absent_package, which is not installed"):
        method_class("mine_needy:A")
    with pytest.raises(BadStudy, match=r"cannot be imported \(ZeroDivisionError: division by zero"):
        method_class("mine_broken:A")


def test_classes_of_a_notebook_are_known_as_such():
    assert only_here("__main__:ByHand")
    assert only_here("module:f.<locals>.Own")
    assert not only_here("module:Own")
    assert not only_here("fedavg")
    assert is_address("module:Own")
    assert not is_address("fedavg")
