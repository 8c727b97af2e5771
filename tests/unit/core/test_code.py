"""The installed package of a word is found, and hashed, without importing anything of it."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from grandrounds.core.code import (
    Code,
    NamedCode,
    WordPlace,
    check_same_code,
    check_signed_code,
    code_of,
)
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.extensions import METHOD_WORDS
from tests.helpers.packages import lay_down

PLACE = WordPlace("method.kind", ("fedavg",), METHOD_WORDS)
EXPLODES = "raise SystemExit('imported')\n"
FILES = {"our_methods/__init__.py": EXPLODES, "our_methods/core.py": EXPLODES}
NOT_INSTALLED = (
    'method.kind = "{word}": {top} is no installed package here. Between hospitals only code that '
    "each site has installed and accepted runs, and none ever travels: make it a package, let "
    "every site install the same version, and accept the study again"
)
CODE = Code("our_methods:A", "our-methods", "0.3.1", "5be1" * 16)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages; the program runs beside it."""
    folder, here = tmp_path / "installed", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(here)
    return folder


def looked_up(word: str) -> Code:
    """The code of a word."""
    named = PLACE.named_in({"method": {"kind": word}})
    assert named
    [code] = code_of([named])
    return code


def refused(word: str) -> str:
    """Why a word has no code."""
    with pytest.raises(BadStudy) as refusal:
        looked_up(word)
    return str(refusal.value)


def not_installed(word: str) -> str:
    return NOT_INSTALLED.format(word=word, top=word.partition(":")[0].partition(".")[0])


@pytest.mark.parametrize("module", ["our_methods", "our_methods.core"])
def test_a_package_is_found_by_a_module_s_file_and_nothing_is_imported(
    module: str, installed: Path
):
    lay_down(installed, files=FILES)
    code = looked_up(f"{module}:A")
    assert (code.word, code.package, code.version) == (f"{module}:A", "our-methods", "0.3.1")
    assert not {"our_methods", "our_methods.core"} & sys.modules.keys()


def test_the_hash_is_of_a_line_for_each_file_as_sha256sum_prints_it(installed: Path):
    lay_down(installed, files=FILES)
    (installed / "our_methods" / "__pycache__").mkdir()
    (installed / "our_methods" / "__pycache__" / "core.cpython-311.pyc").write_bytes(b"compiled")
    one = sha256(EXPLODES.encode()).hexdigest()
    lines = f"{one}  our_methods/__init__.py\n{one}  our_methods/core.py\n"
    assert looked_up("our_methods:A").sha256 == sha256(lines.encode()).hexdigest()


def test_the_same_package_has_the_same_hash_in_another_folder(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lay_down(installed, files=FILES)
    here = looked_up("our_methods:A")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(installed, elsewhere)
    monkeypatch.syspath_prepend(elsewhere)
    assert looked_up("our_methods:A") == here


CHANGES: Mapping[str, str] = {
    "a file was changed": "our_methods/core.py",
    "a module was added": "our_methods/more.py",
    "a folder was added": "our_methods/core/__init__.py",
    "a binary file was added": "our_methods/core.abi3.so",
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_an_import_would_take_changes_the_hash(change: str, installed: Path):
    lay_down(installed, files=FILES)
    before = looked_up("our_methods:A").sha256
    path = installed / CHANGES[change]
    path.parent.mkdir(exist_ok=True)
    path.write_text("pass\n")
    assert looked_up("our_methods:A").sha256 != before


def test_words_of_the_house_and_addresses_in_it_have_no_code():
    for word in ("fedavg", "unknown", 3, None):
        assert PLACE.named_in({"method": {"kind": word}}) is None
    for table in ({}, {"method": "fedavg"}, {"method": {}}, {"method": []}):
        assert PLACE.named_in(table) is None
    named = PLACE.named_in({"method": {"kind": "grandrounds.algorithms.methods.fedavg:FedAvg"}})
    assert named
    assert code_of([named]) == ()


def test_a_file_where_the_program_runs_is_no_package(installed: Path):
    Path("evil.py").write_text(EXPLODES)
    assert refused("evil:Evil") == not_installed("evil:Evil")


@pytest.mark.parametrize("entry", ["", "."])
def test_nor_is_one_that_python_would_find_there_first(
    entry: str, installed: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where Python was started with -m: what it would import is what counts."""
    lay_down(installed, files=FILES)
    Path("our_methods.py").write_text(EXPLODES)
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    assert refused("our_methods:A") == not_installed("our_methods:A")


def test_a_folder_in_which_the_program_runs_holds_no_installed_package(
    installed: Path, monkeypatch: pytest.MonkeyPatch
):
    """A study may be sent with a module beside it, and notes as an installer writes them."""
    lay_down(Path.cwd(), files={"evil.py": EXPLODES})
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert refused("evil:Evil") == not_installed("evil:Evil")


@pytest.mark.parametrize(
    "word", ["os:system", "subprocess:Popen", "sys:path", "__main__:Mine", "nowhere.nets:A"]
)
def test_python_s_own_modules_a_notebook_and_what_is_not_there_are_no_packages(word: str):
    assert refused(word) == not_installed(word)


def test_a_file_in_the_house_s_own_folder_is_not_said_to_be_of_it(installed: Path):
    lay_down(installed, "grandrounds", files={"grandrounds.pth": f"{installed}\n"})
    origin = f'{{"url": "{installed.as_uri()}", "dir_info": {{"editable": true}}}}'
    (installed / "grandrounds-0.3.1.dist-info" / "direct_url.json").write_text(origin)
    (installed / "evil.py").write_text(EXPLODES)
    assert refused("evil:Evil") == not_installed("evil:Evil")


def test_an_address_is_one_before_anything_is_looked_for():
    assert "is no address" in refused("../evil:A")


def test_an_editable_install_is_refused(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "source"
    (source / "src").mkdir(parents=True)
    (source / "src" / "our_methods.py").write_text(EXPLODES)
    lay_down(installed, files={"our_methods.pth": f"{source / 'src'}\n"})
    info = installed / "our_methods-0.3.1.dist-info"
    origin = f'{{"url": "{source.as_uri()}", "dir_info": {{"editable": true}}}}'
    (info / "direct_url.json").write_text(origin)
    monkeypatch.syspath_prepend(source / "src")
    sentence = "our-methods 0.3.1 is installed as editable, so that its files lie elsewhere and may"
    assert sentence in refused("our_methods:A")
    (info / "top_level.txt").write_text("our_methods\n")
    (source / "src" / "our_methods.py").unlink()  # found by a hook of the installer's
    assert sentence in refused("our_methods:A")


def test_a_package_without_a_list_of_its_files_is_refused(installed: Path):
    lay_down(installed, files=FILES)
    info = installed / "our_methods-0.3.1.dist-info"
    (info / "RECORD").unlink()
    assert refused("our_methods:A") == not_installed("our_methods:A")
    (info / "top_level.txt").write_text("our_methods\n")
    assert "our-methods 0.3.1 has no list of its files (RECORD)" in refused("our_methods:A")


def test_a_package_that_lacks_a_file_is_refused(installed: Path):
    lay_down(installed, files=FILES)
    (installed / "our_methods" / "core.py").unlink()
    assert refused("our_methods:A") == (
        'method.kind = "our_methods:A": our-methods 0.3.1 lacks its file our_methods/core.py '
        "(No such file or directory); install it anew"
    )


def test_a_file_of_two_packages_is_refused(installed: Path):
    lay_down(installed, "one", files=FILES)
    lay_down(installed, "two", files=FILES)
    assert "several installed packages have our_methods/__init__.py (one, two); remove one" in (
        refused("our_methods:A")
    )


def test_packages_that_share_a_namespace_are_told_apart(installed: Path, tmp_path: Path):
    lay_down(installed, "one", files={"shared/sub/one/__init__.py": EXPLODES})
    lay_down(installed, "two", files={"shared/sub/two/core.py": EXPLODES})
    one, two = looked_up("shared.sub.one:A"), looked_up("shared.sub.two.core:A")
    assert (one.package, two.package) == ("one", "two")
    (installed / "shared/sub/two/core.py").write_text("pass\n")
    assert looked_up("shared.sub.one:A") == one
    assert looked_up("shared.sub.two.core:A").sha256 != two.sha256
    assert refused("shared.sub:A") == not_installed("shared.sub:A")


def test_a_module_in_another_package_s_folder_is_refused(installed: Path):
    lay_down(installed, "one", files={"shared/__init__.py": EXPLODES})
    lay_down(installed, "two", files={"shared/core.py": EXPLODES})
    assert "shared/__init__.py, which is imported first, is not of two" in refused("shared.core:A")


def test_an_entry_point_is_found_and_is_part_of_the_hash(installed: Path):
    words = "[grandrounds.methods]\nours = our_methods:{name}\n"
    lay_down(installed, files=FILES, points=words.format(name="A"))
    one = looked_up("ours")
    assert (one.word, one.package, one.version) == ("ours", "our-methods", "0.3.1")
    lay_down(installed, files=FILES, points=words.format(name="B"))
    [other] = code_of([NamedCode("method.kind", "ours", METHOD_WORDS, "our_methods:B")])
    assert other.sha256 != one.sha256
    assert "our_methods" not in sys.modules


def test_an_entry_point_into_another_package_is_refused(installed: Path):
    lay_down(installed, files=FILES)
    points = "[grandrounds.methods]\ntheirs = our_methods:A\n"
    lay_down(installed, "thief", files={}, points=points)
    assert refused("theirs") == (
        'method.kind = "theirs": another package than our-methods, to which our_methods:A belongs, '
        'has this word; write the address, "our_methods:A"'
    )


def test_other_code_than_the_coordinator_s_is_refused():
    check_same_code([CODE], [CODE], "alder")
    check_same_code([], [], "alder")
    other = replace(CODE, sha256="77aa" * 16)
    with pytest.raises(BadSite) as refusal:
        check_same_code([other], [CODE], "alder")
    assert str(refusal.value) == (
        "site 'alder' has our-methods 0.3.1 (5be15be15be1...) for \"our_methods:A\", the "
        "coordinator 0.3.1 (77aa77aa77aa...); install the same everywhere, and accept the study "
        "anew"
    )
    with pytest.raises(BadSite, match=r"the coordinator methods 0\.3\.1 \(5be1"):
        check_same_code([replace(CODE, package="methods")], [CODE], "alder")
    with pytest.raises(BadSite, match='accepted the study without the code of "our_methods:A"'):
        check_same_code([CODE], [], "alder")


def test_code_that_changed_since_it_was_signed_is_refused():
    check_signed_code([CODE], [CODE], "alder")
    with pytest.raises(BadSite) as refusal:
        check_signed_code([CODE], [replace(CODE, version="0.3.2")], "alder")
    assert str(refusal.value) == (
        "site 'alder' accepted our-methods 0.3.1 (5be15be15be1...) for \"our_methods:A\", and has "
        "our-methods 0.3.2 (5be15be15be1...) now; install what it accepted, or accept the study "
        "anew"
    )
