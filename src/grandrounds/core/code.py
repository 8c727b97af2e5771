"""Which installed package the code that a study names belongs to, found without importing it.

Nothing here imports or executes what it looks at: paths are searched in the order in which an
import would search them, and packages are known by what their installers recorded.
"""

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
    all_suffixes,
)
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.extensions import address_of, check_address, is_address
from grandrounds.core.sentence import phrase

_HOUSE = __name__.partition(".")[0]  # its own code is known by its version
_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
_POINTS = "entry_points.txt"  # in a package's notes: says which class a word is
_SHOWN = 12  # digits of a hash in a sentence
_NONE_TRAVELS = (
    "Between hospitals only code that each site has installed and accepted runs, and none ever "
    "travels: make it a package, let every site install the same version, and accept the study "
    "again"
)


@dataclass(frozen=True)
class Code:
    """The installed package that a word of a study belongs to.

    `sha256` is of the package's files: of a line for each, its SHA-256, two spaces and its path,
    in the order of the paths.
    """

    word: str
    package: str
    version: str
    sha256: str

    @property
    def sentence(self) -> str:
        """Return what is shown and signed of it."""
        return f"{self.word} of {self.package} {self.version} (SHA-256 {self.sha256} of its files)"

    @property
    def state(self) -> str:
        """Return what tells this code from another of the same package."""
        return f"{self.version} ({self.sha256[:_SHOWN]}...)"


@dataclass(frozen=True)
class NamedCode:
    """A word by which a study names code, where it stands, its entry points, and its address."""

    path: str
    word: str
    group: str
    address: str


@dataclass(frozen=True)
class WordPlace:
    """Where a study may name code: the key's path, the house's own words, and entry points."""

    path: str
    own: Collection[str] = ()
    group: str = ""

    def named_in(self, table: Mapping[str, object]) -> NamedCode | None:
        """Return the code that a study's table names here; none for a word of the house.

        What is no word of anybody is left for the study's own checks. Raises `BadStudy`.
        """
        section, _, key = self.path.partition(".")
        entries = table.get(section)
        word = cast(Mapping[str, object], entries).get(key) if isinstance(entries, dict) else None
        if not isinstance(word, str) or word in self.own:
            return None
        says = is_address(word) or self.group
        address = address_of(self.path, word, self.group) if says else ""
        return NamedCode(self.path, word, self.group, address) if address else None


def code_of(named: Iterable[NamedCode]) -> tuple[Code, ...]:
    """Return the installed code that a study names, none of which is imported.

    The house's own has none. Raises `BadStudy` for what no installed package has, and for a package
    whose files cannot be told or may change.
    """
    found = [_code(each) for each in named]
    return tuple(code for code in found if code)


def _code(named: NamedCode) -> Code | None:
    check_address(named.path, named.address)
    module = named.address.partition(":")[0]
    if module.partition(".")[0] == _HOUSE:
        return None
    try:
        owner = _owner(module)
        if not is_address(named.word):
            _check_says(owner, named)
        return Code(named.word, owner.name, owner.version, _hash(owner))
    except _Unknown as problem:
        raise BadStudy(
            f'{named.path} = "{named.word}": {problem}',
            safe=phrase("code that this study names is not installed there as a package"),
        ) from None


class _Unknown(Exception):  # noqa: N818 - it ends inside this module
    """Code cannot be told by its package, and why."""


def _owner(module: str) -> Distribution:
    """Return the installed package that a module is of. Raises `_Unknown`."""
    missing = f"{module.partition('.')[0]} is no installed package here. {_NONE_TRAVELS}"
    files = list(_files_of(module))
    if not files:
        raise _Unknown(_why_not(module, files) or missing)
    levels = len(module.split(".")) - (files[-1].name.partition(".")[0] != "__init__")
    folder = files[-1].parents[levels]
    if folder.resolve() == Path.cwd() or any(not file.is_file() for file in files):
        raise _Unknown(missing)
    paths = [file.relative_to(folder).as_posix() for file in files]
    here = [each for each in distributions(path=[str(folder)]) if each.read_text("RECORD")]
    owners = [each for each in here if paths[-1] in _recorded(each)]
    if not owners:
        raise _Unknown(_why_not(module, files) or missing)
    if len(owners) > 1:
        names = ", ".join(sorted(each.name for each in owners))
        raise _Unknown(f"several installed packages have {paths[-1]} ({names}); remove one")
    if foreign := [path for path in paths if path not in _recorded(owners[0])]:
        raise _Unknown(f"{foreign[0]}, which is imported first, is not of {owners[0].name}")
    return owners[0]


def _files_of(module: str) -> Iterator[Path]:
    """Give the files that an import of a module would execute: its packages' and its own.

    It gives none where there is no such module, or one without a file.
    """
    PathFinder.invalidate_caches()
    top, *below = module.split(".")
    spec, name = PathFinder.find_spec(top), top
    found = list[Path]()
    for part in (*below, ""):
        if spec is None:
            return
        if spec.has_location and spec.origin:
            found.append(Path(spec.origin).absolute())
        if part:
            name = f"{name}.{part}"
            spec = _below(name, list(spec.submodule_search_locations or ()))
    yield from found if spec and spec.has_location else ()


def _below(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """Find a module in its package's folders; `find_spec` would import the package for that."""
    shared = ModuleSpec(name, None, is_package=True)  # a namespace, which has no file
    for folder in folders:
        spec = FileFinder(folder, *_LOADERS).find_spec(name)
        if spec and spec.loader:
            return spec
        if spec:
            cast(list[str], shared.submodule_search_locations).extend(
                spec.submodule_search_locations or ()
            )
    return shared if shared.submodule_search_locations else None


def _why_not(module: str, files: Sequence[Path]) -> str:
    """Say why the package of a module cannot be told, although something is installed."""
    top = module.partition(".")[0]
    for each in distributions():
        if each.name == _HOUSE:  # what lies in its developers' folder is not of it
            continue
        of_module = top in (each.read_text("top_level.txt") or "").split()
        if (folder := _edited(each)) and (of_module or any(folder in f.parents for f in files)):
            return (
                f"{each.name} {each.version} is installed as editable, so that its files lie "
                f"elsewhere and may change; install it without --editable. {_NONE_TRAVELS}"
            )
        if of_module and not each.read_text("RECORD"):
            return (
                f"{each.name} {each.version} has no list of its files (RECORD); install it as a "
                f"wheel, for example with pip. {_NONE_TRAVELS}"
            )
    return ""


def _edited(package: Distribution) -> Path | None:
    """Return the folder of the files of a package that is installed as editable."""
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(str(origin["url"])).path))


def _check_says(owner: Distribution, named: NamedCode) -> None:
    """Check that the package of a module says the word itself. Raises `_Unknown`."""
    own = [(point.group, point.name, point.value) for point in owner.entry_points]
    if (named.group, named.word, named.address) not in own:
        raise _Unknown(
            f"another package than {owner.name}, to which {named.address} belongs, has this word; "
            f'write the address, "{named.address}"'
        )


def _recorded(package: Distribution) -> frozenset[str]:
    """Return the paths that an installer recorded; `files` may leave out what is missing."""
    lines = csv.reader((package.read_text("RECORD") or "").splitlines())
    return frozenset(str(PurePosixPath(line[0])) for line in lines if line)


def _hash(package: Distribution) -> str:
    """Return the SHA-256 of a package's files. Raises `_Unknown` where one is missing."""
    root, total = Path(str(package.locate_file(""))), sha256()
    for path in sorted(_hashed(package, root)):
        try:
            with (root / path).open("rb") as file:
                own = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            name = f"{package.name} {package.version}"
            raise _Unknown(
                f"{name} lacks its file {path} ({error.strerror}); install it anew"
            ) from None
        total.update(f"{own}  {path}\n".encode())
    return total.hexdigest()


def _hashed(package: Distribution, root: Path) -> set[str]:
    """Return the paths of all files of a package but compiled copies and its installer's notes.

    What was put into its folders later, and would be imported from there, is among them.
    """
    recorded = {path for path in map(PurePosixPath, _recorded(package)) if _is_own(path)}
    folders = {path.parent for path in recorded if path.name == "__init__.py"}
    top = [folder for folder in folders if folder.parent not in folders]
    suffixes = tuple(all_suffixes())
    added = [
        PurePosixPath(file.relative_to(root).as_posix())
        for folder in top
        for file in (root / folder).rglob("*")
        if file.name.endswith(suffixes)
    ]
    return {str(path) for path in (*recorded, *added) if "__pycache__" not in path.parts}


def _is_own(path: PurePosixPath) -> bool:
    """Tell whether a recorded path is of the package: neither a script nor an installer's note."""
    if path.is_absolute() or ".." in path.parts:
        return False
    return not path.parts[0].endswith(".dist-info") or path.name == _POINTS


def check_same_code(ours: Sequence[Code], theirs: Sequence[Code], site: str) -> None:
    """Check that a site signed the very code that the coordinator has. Raises `BadSite`."""
    for own, other in _differing(ours, theirs, site):
        there = f"the coordinator {own.state}"
        if own.package != other.package:
            there = f"the coordinator {own.package} {own.state}"
        raise BadSite(
            f"site '{site}' has {other.package} {other.state} for \"{own.word}\", {there}; "
            "install the same everywhere, and accept the study anew"
        )


def check_signed_code(signed: Sequence[Code], now: Sequence[Code], site: str) -> None:
    """Check that the code of a study is still what the site signed. Raises `BadSite`."""
    for own, accepted in _differing(now, signed, site):
        raise BadSite(
            f"site '{site}' accepted {accepted.package} {accepted.state} for \"{own.word}\", and "
            f"has {own.package} {own.state} now; install what it accepted, or accept the study "
            "anew",
            safe=phrase(
                "the code that this study names is not what it accepted; install that again, or "
                "accept the study anew there"
            ),
        )


def _differing(
    ours: Sequence[Code], signed: Sequence[Code], site: str
) -> Iterator[tuple[Code, Code]]:
    """Give the pairs of code that differ. Raises `BadSite` where the site signed none."""
    theirs = {code.word: code for code in signed}
    for own in ours:
        if own.word not in theirs:
            raise BadSite(
                f"site '{site}' accepted the study without the code of \"{own.word}\"; let it "
                "accept the study anew",
                safe=phrase("it accepted the study without its code; accept the study anew there"),
            )
        if theirs[own.word] != own:
            yield own, theirs[own.word]
