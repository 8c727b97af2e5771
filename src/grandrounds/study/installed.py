"""Between hospitals a study names installed code alone, which is looked up before it is imported.

To read a study as `Study` imports what it names; so its table is looked at first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from grandrounds.algorithms import METHODS
from grandrounds.core.code import Code, NamedCode, WordPlace, check_signed_code, code_of
from grandrounds.core.errors import BadStudy
from grandrounds.core.extensions import METHOD_WORDS, TASK_WORDS, importing_only
from grandrounds.study.acceptance import check_acceptance, load_acceptance, not_accepted
from grandrounds.study.file import Table, overridden, parse_study, read_table, to_table
from grandrounds.study.study import Study
from grandrounds.tasks import TASKS

_PLACES = (
    WordPlace("method.kind", METHODS, METHOD_WORDS),
    WordPlace("task.kind", TASKS, TASK_WORDS),
    WordPlace("task.network"),
    WordPlace("task.loss"),
)


def code_named(table: Mapping[str, object]) -> tuple[NamedCode, ...]:
    """Return the words of a study's table that are none of the house's. Raises `BadStudy`."""
    found = [place.named_in(table) for place in _PLACES]
    return tuple(named for named in found if named)


def code_of_study(study: Study) -> tuple[Code, ...]:
    """Return the installed code that a study names, as it is now. Raises `BadStudy`."""
    return code_of(code_named(to_table(study)))


@dataclass(frozen=True)
class UnreadStudy:
    """A study's table, and the installed code that it names; none of it is imported yet."""

    table: Table
    source: str
    named: tuple[NamedCode, ...]
    code: tuple[Code, ...]

    def read(self) -> Study:
        """Make the checked study, for which the code is imported. Raises `BadStudy`."""
        with importing_only([each.address for each in self.named]):
            return parse_study(self.table, source=self.source)


def look_up(path: Path, overrides: Sequence[str] = ()) -> UnreadStudy:
    """Look up in which installed packages the code of a study file is. Raises `BadStudy`."""
    table = overridden(read_table(path), overrides)
    try:
        named = code_named(table)
        return UnreadStudy(table, str(path), named, code_of(named))
    except BadStudy as error:
        raise BadStudy(f"{path}: {error}", safe=error.safe) from None


def read_accepted(path: Path, *, site: str, accepted: Path, root: Path) -> Study:
    """Read the resolved study of a job, whose code must be what the site accepted.

    `accepted` is the folder of its acceptances, `root` the certificate of the federation's
    authority. Where the study names code, nothing is imported before the acceptance of this very
    file was found and its signature checked. Raises `BadSite` and `BadStudy`.
    """
    unread = look_up(path)
    if unread.code:
        study = sha256(path.read_bytes()).hexdigest()
        acceptance = load_acceptance(study, accepted)
        if acceptance is None:
            raise not_accepted(site)
        check_acceptance(acceptance, site=site, study=study, root=root)
        check_signed_code(acceptance.code, unread.code, site)
    return unread.read()
