"""A word of the study names code: one of the house's own, an installed package's, or an address.

An address is `module:Class`. This is the only place that imports by name; nothing is ever
unpickled, and no code travels.
"""

import sys
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from grandrounds.core.errors import BadStudy, require

METHOD_WORDS = "grandrounds.methods"  # entry points of installed packages
TASK_WORDS = "grandrounds.tasks"
_HERE = "__main__"  # the module of a notebook's cells, and of a script
_HOUSE = __name__.partition(".")[0]
_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("addresses of code", default=None)
_T = TypeVar("_T")


def is_address(word: str) -> bool:
    """Tell whether a word of the study is an address, `module:Class`."""
    return ":" in word


def chosen_class(
    path: str, word: object, kind: type[_T], own: Mapping[str, type[_T]], group: str
) -> type[_T]:
    """Return the class that a word of the study names at this path.

    `own` are the house's words; `group` names the entry points by which installed packages say
    theirs. Raises `BadStudy`.
    """
    if isinstance(word, str) and word in own:
        return own[word]
    if isinstance(word, str) and (address := address_of(path, word, group)):
        return class_named(path, address, kind)
    known = (*own, *(point.name for point in entry_points(group=group)))
    near = get_close_matches(str(word), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise BadStudy(f"{path} = '{word}' is unknown; {hint}")


def address_of(path: str, word: str, group: str) -> str:
    """Return the address of a word that is none of the house's own; empty where nobody has it.

    Raises `BadStudy` where two installed packages have the word.
    """
    if is_address(word):
        return word
    found = _points(group, word, tuple(sys.path))
    owners = ", ".join(sorted(_owner(point) for point in found))
    require(
        len({point.value for point in found}) <= 1,
        f'{path} = "{word}": several installed packages have this word ({owners}); remove one, or '
        'give the address, "module:Class"',
    )
    return found[0].value if found else ""


@lru_cache
def _points(group: str, word: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001
    """Find a word of installed packages; a path that changed is searched anew."""
    return tuple(entry_points(group=group, name=word))


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def class_named(path: str, address: str, kind: type[_T]) -> type[_T]:
    """Import the class at an address; `path` is where the study has it. Raises `BadStudy`."""
    check_address(path, address)
    module_name, _, name = address.partition(":")
    found = _module(path, address)
    for part in name.split("."):
        found = getattr(found, part, None)
    require(
        found is not None,
        f'{path} = "{address}": there is no {name} in {module_name}{_near(name, module_name)}',
    )
    if isinstance(found, type) and issubclass(found, kind):
        return found
    raise BadStudy(f'{path} = "{address}" is no class of {kind.__module__}.{kind.__qualname__}')


def check_address(path: str, address: str) -> None:
    """Check that an address is one. Raises `BadStudy`."""
    module_name, _, name = address.partition(":")
    require(
        all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))),
        f'{path} = "{address}" is no address; write it as "module:Class", for example '
        '"monai.networks.nets:SegResNet"',
    )


@contextmanager
def importing_only(addresses: Collection[str]) -> Generator[None, None, None]:
    """Let a study name these addresses alone, and the house's: what was looked up before."""
    token = _ALLOWED.set(addresses)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def _module(path: str, address: str) -> object:
    """Import the module of an address; a file where the program runs is found, too."""
    name, allowed = address.partition(":")[0], _ALLOWED.get()
    require(
        allowed is None or address in allowed or name.partition(".")[0] == _HOUSE,
        f'{path} = "{address}": between hospitals code is imported only where it was looked up in '
        "its package, and accepted; here a study cannot name any",
    )
    top, here = name.partition(".")[0], str(Path.cwd())
    if top not in sys.modules and find_spec(top) is None and here not in sys.path:
        sys.path.append(here)  # last, so that it hides no module
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        require(
            not (error.name and f"{name}.".startswith(f"{error.name}.")),
            f'{path} = "{address}": there is no module {error.name} here; install the package that '
            "has it, or run where the file lies",
        )
        raise BadStudy(
            f'{path} = "{address}": {name} needs {error.name}, which is not installed here'
        ) from None
    except Exception as error:
        raise BadStudy(
            f'{path} = "{address}": {name} cannot be imported ({type(error).__name__}: {error})'
        ) from error


def _near(name: str, module_name: str) -> str:
    near = get_close_matches(name, dir(sys.modules[module_name]), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def word_of(found: type, own: Mapping[str, type]) -> str:
    """Return the word by which a study names a class: the house's own, or its address."""
    words = (word for word, each in own.items() if each is found)
    return next(words, f"{found.__module__}:{found.__qualname__}")


def only_here(word: str) -> bool:
    """Tell whether a word names a class of this process alone: a notebook's, or a function's."""
    return is_address(word) and (word.startswith(f"{_HERE}:") or "<locals>" in word)
