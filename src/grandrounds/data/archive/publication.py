"""Of a session's volumes the best of each contrast goes among the site's volumes, and only it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from grandrounds.core.errors import BadImage
from grandrounds.core.files import remove, write_bytes, write_text
from grandrounds.data.acquisition import sidecar_of
from grandrounds.data.archive.conversion import converted_file
from grandrounds.data.archive.faces import shows_face
from grandrounds.data.archive.sources import Ingestion
from grandrounds.data.archive.states import ArchiveCase, CaseQuality
from grandrounds.data.nifti import read_grid, read_voxels
from grandrounds.data.session_files import MASKS

RULE_OF_BETTER = "not derived, then 3-D, then smaller voxels, then more slices"
FACE = "probably shows a face: it must not be shown or given away with its pixels"
PARTICIPANTS_FILE = "participants.tsv"
_BY_HAND = "cannot remove {path}: {reason}; remove it by hand"
_OLDEST = 90  # years: older ages are told as this one, since few people have them
_COMPARED = ("converted", "checked", "set aside")


def publish_session(run: Ingestion, patient: str, study: str) -> bool:
    """Put the best volume of each contrast among the site's volumes; the others are set aside.

    Returns False where that has to be done again: a volume that was set aside is the best one now
    and must be made anew, or the best one was refused.
    """
    cases = run.table.of_study(patient, study)
    by_contrast: dict[str, list[ArchiveCase]] = defaultdict(list)
    for case in cases:
        if case.state in _COMPARED:
            by_contrast[case.contrast].append(case)
    winners = [max(each, key=_goodness) for each in by_contrast.values()]
    lost = [case for case in winners if not _is_there(run, case)]
    if lost:
        run.table.put(*(replace(case, state="found") for case in lost))
        return False
    published = [_publish(run, winner, by_contrast[winner.contrast]) for winner in winners]
    return all(published)


def _goodness(case: ArchiveCase) -> tuple[object, ...]:
    quality = case.quality or CaseQuality(True, 2, 0.0, 0)
    return not quality.derived, quality.dimensions, -quality.voxel, quality.slices, case.id


def _is_there(run: Ingestion, case: ArchiveCase) -> bool:
    if case.state == "checked":
        return (run.archive.volumes / case.output).exists()
    return converted_file(run, case).exists()


def _publish(run: Ingestion, winner: ArchiveCase, all_: Sequence[ArchiveCase]) -> bool:
    """Put a volume in place, and note of the others of its contrast that it is the better one."""
    session = run.table.session(winner.patient, winner.study)
    output = f"{winner.patient}_{session}_{winner.contrast}.nii.gz"
    published = winner
    if winner.state != "checked" or winner.output != output:
        published = _checked(run, replace(winner, session=session, output=output))
    changed = [published]
    if published.state == "checked":
        reason = _reason(published)
        changed += [
            replace(each, state="set aside", session=session, output="", reason=reason)
            for each in all_
            if each.id != winner.id
        ]
    changed = [case for case in changed if case not in all_]
    if changed:
        run.table.put(*changed)
    for case in changed:
        _drop_converted(run, case)
    return published.state == "checked"


def _checked(run: Ingestion, case: ArchiveCase) -> ArchiveCase:
    """Read a volume as training will, and put it and its sidecar in place."""
    made = converted_file(run, case)
    try:
        voxels, spacing = read_voxels(made), read_grid(made).spacing
    except BadImage as error:
        reason = str(error.safe or "cannot be read")
        return replace(case, state="refused", output="", reason=reason)
    if not voxels.any():
        return replace(case, state="refused", output="", reason="a volume has no value but 0")
    notes = tuple(note for note in case.notes if note != FACE)
    if case.contrast not in MASKS and shows_face(voxels, spacing):
        notes += (FACE,)
    place = run.archive.volumes / case.output
    run.table.note_output(case.output)
    write_text(sidecar_of(place), sidecar_of(made).read_text("utf-8"))
    write_bytes(place, made.read_bytes())
    return replace(case, state="checked", reason="", notes=notes)


def _reason(better: ArchiveCase) -> str:
    return f"{better.output} is the better one of its contrast ({RULE_OF_BETTER})"


def _drop_converted(run: Ingestion, case: ArchiveCase) -> None:
    made = converted_file(run, case)
    for path in (made, sidecar_of(made)):
        path.unlink(missing_ok=True)


def remove_old(run: Ingestion, patient: str, study: str) -> None:
    """Remove what was written for a session and is no case's any more."""
    beginning = f"{patient}_{run.table.session(patient, study)}_"
    cases = run.table.of_study(patient, study)
    owned = {case.output for case in cases if case.state == "checked"}
    for name in run.table.outputs(beginning):
        path = run.archive.volumes / name
        if name not in owned:
            for old in (path, sidecar_of(path)):
                remove(old, refusal=_BY_HAND)


def write_participants(run: Ingestion) -> None:
    """Write the age at the first session and the sex of each patient, where the archive has them.

    A table that somebody else put there is left as it is.
    """
    path = run.archive.volumes / PARTICIPANTS_FILE
    if path.exists() and not run.table.outputs(PARTICIPANTS_FILE):
        return
    rows = _participants(case for case in run.table.all() if case.state == "checked")
    if not any(age or sex for _, age, sex in rows):
        remove(path, refusal=_BY_HAND)
        return
    run.table.note_output(PARTICIPANTS_FILE)
    lines = [("participant_id", "age", "sex"), *((p, a or "n/a", s or "n/a") for p, a, s in rows)]
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def _participants(cases: Iterable[ArchiveCase]) -> list[tuple[str, str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for case in sorted(cases, key=lambda each: (each.patient, each.day, each.id)):
        age = str(min(int(case.age), _OLDEST)) if case.age is not None and case.age >= 0 else ""
        sex = case.sex if case.sex in ("F", "M", "O") else ""
        before = found.get(case.patient, ("", ""))
        found[case.patient] = (before[0] or age, before[1] or sex)
    return [(patient, *values) for patient, values in found.items()]


def published_path(run: Ingestion, case: ArchiveCase) -> Path:
    """Return where the volume of a case that was checked lies."""
    return run.archive.volumes / case.output
