"""A site beside a finished run: one that the study knows, or a new one with its site file."""

from dataclasses import dataclass, replace
from pathlib import Path

from grandrounds.data.case import Cohort, Split
from grandrounds.data.inspect import check_elements
from grandrounds.errors import BadSite
from grandrounds.opening import open_site
from grandrounds.site_file import SiteFile, read_site
from grandrounds.study import SiteSpec, Study


@dataclass(frozen=True)
class Guest:
    """A site and where its data lies; without a file it is simulated."""

    spec: SiteSpec
    file: SiteFile | None

    @property
    def name(self) -> str:
        """Name the site."""
        return self.spec.name

    def unknown_to(self, study: Study) -> dict[str, tuple[str, ...]]:
        """Map the site to its tasks if the study has no such site."""
        return {} if self.name in study.roster else {self.name: self.spec.tasks}

    def cohort(self, study: Study, *splits: Split) -> Cohort:
        """Open the site's data. Raises `BadSite` where a task has no case in one of the splits."""
        cohort, summary = open_site(study, self.spec, self.file)
        check_elements(summary, study.elements, self.spec.tasks, splits)
        return cohort


def guest_of(study: Study, given: str) -> Guest:
    """Find a site by the path of its file, or by its name if it is simulated. Raises `BadSite`."""
    if given in study.roster and not Path(given).is_file():
        spec = _spec(study, given)
        if spec.data == "files":
            raise BadSite(f"site '{given}' is a real one; give the path of its site file instead")
        return Guest(spec, None)
    file = read_site(Path(given))
    if file.name not in study.roster:
        return Guest(SiteSpec(file.name, _asked(study, file)), file)
    return Guest(_spec(study, file.name), file)


def _spec(study: Study, name: str) -> SiteSpec:
    """Give a site of the study, with the tasks that somebody trained."""
    [spec] = [spec for spec in study.site if spec.name == name]
    return replace(spec, tasks=study.held_out.get(name, spec.tasks))


def _asked(study: Study, file: SiteFile) -> tuple[str, ...]:
    """Give the tasks that a new site asks for: its file's, else all that were trained."""
    known = tuple(dict.fromkeys(t for name in study.trainers for t in study.roster[name]))
    for label in file.tasks:
        if label not in known:
            raise BadSite(
                f"site file of '{file.name}': no site trained the task '{label}'; trained were "
                f"{', '.join(known)}"
            )
    return file.tasks or known
