"""Every contrast that a cohort's sessions lack is made, in a folder apart, from the best source.

The best is the one of the site's pairs that scored highest in validation, in the tested round.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, cast

from grandrounds.core.errors import BadImage, BadInput, BadSite
from grandrounds.core.files import make_output_folder, remove, whole_lines, write_text
from grandrounds.core.quoting import table_text
from grandrounds.data.acquisition import read_sidecar, sidecar_of
from grandrounds.data.measured import SYNTHETIC_KEY, synthetic_name
from grandrounds.data.session_cache import file_digest
from grandrounds.data.session_files import SessionFiles, find_sessions
from grandrounds.inference.slices import SlicePredictor, Told, nobody_listens
from grandrounds.inference.synthesize import SynthesisOptions, synthesize_volume
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.study.site_file import read_site
from grandrounds.tasks.synthesis.examples import ContrastPair

TABLE = "synthesized.csv"
COLUMNS = ("patient", "session", "contrast", "source", "score", "state", "reason", "file")
_CANNOT = "cannot write {path}: {reason}; what was made before is intact"
MadeState: TypeAlias = Literal["made", "there already", "refused", "no source"]


@dataclass(frozen=True)
class RankedPair:
    """A pair of the site, and its validation score, where one is known."""

    pair: ContrastPair
    score: float | None


@dataclass(frozen=True)
class Filled:
    """What became of each contrast that a cohort lacked, as rows of a table."""

    table: Path
    rows: tuple[Mapping[str, str], ...] = field(default=())


@dataclass(frozen=True)
class _Filling:
    """One run over a cohort."""

    trained: TrainedModel
    out: Path
    ranked: tuple[RankedPair, ...]
    anyway: bool
    told: Told

    def fill(self, session: SessionFiles, contrast: str) -> Mapping[str, str]:
        """Make one contrast of one session, and return its row."""
        sources = [
            each
            for each in self.ranked
            if each.pair.target == contrast and each.pair.source in session.contrasts
        ]
        if not sources:
            known = [each.pair.source for each in self.ranked if each.pair.target == contrast]
            reason = f"the site's model makes it from {', '.join(known)}"
            return _row(session, contrast, None, "no source", reason)
        out = self.out / synthetic_name(session.patient, session.session, contrast)
        best, refusals = sources[0], list[str]()
        for each in sources:
            state, reason = self._made(session, each.pair, out)
            if state != "refused":
                return _row(session, contrast, each, state, reason, out.name)
            refusals.append(f"{each.pair.source}: {reason}")
        return _row(session, contrast, best, "refused", "; ".join(refusals))

    def _made(self, session: SessionFiles, pair: ContrastPair, out: Path) -> tuple[MadeState, str]:
        source = session.contrasts[pair.source]
        if out.exists():
            return self._found(source, pair, out)
        _remove_leftover(out)
        options = SynthesisOptions(
            brain=session.masks.get("brain"),
            anyway=self.anyway,
            named={"Sources": [source.name]},
        )
        try:
            made = synthesize_volume(self.trained, pair, source, out, options, self.told)
        except BadImage as error:
            return "refused", str(error)
        return "made", "; ".join(made.notes)

    def _found(self, source: Path, pair: ContrastPair, out: Path) -> tuple[MadeState, str]:
        """Tell whether a file that is there is what would be made; it is left as it is."""
        sidecar = sidecar_of(out)
        known = read_sidecar(sidecar) if sidecar.exists() else dict[str, object]()
        wanted = {
            "ModelDigest": self.trained.digest,
            "SourceContrast": pair.source,
            "SourceDigest": file_digest(source),
        }
        other = [name for name, value in wanted.items() if known.get(name) != value]
        if not other:
            return "there already", ""
        return "there already", f"of another {' and '.join(other)}; move it away to make it anew"


def fill_missing(
    trained: TrainedModel,
    cohort: Path,
    out: Path,
    *,
    anyway: bool = False,
    told: Told = nobody_listens,
) -> Filled:
    """Make every contrast that a session of a cohort lacks and the site's model can make.

    `cohort` is a folder named by the house's rule, or a site file; `out` a folder apart from it.
    What is there already is left, so the same call goes on where one stopped. A table there says
    what was made of what. Raises `BadInput`; a volume that is refused costs itself alone.
    """
    folder = _folder_of(trained, cohort)
    _check_apart(folder, out)
    ranked = ranked_pairs(trained)
    sessions = find_sessions(folder)
    wanted = tuple(dict.fromkeys(each.pair.target for each in ranked))
    make_output_folder(out)
    filling = _Filling(trained, out, ranked, anyway, told)
    rows: list[Mapping[str, str]] = []
    try:
        for session in sessions:
            lacking = [contrast for contrast in wanted if contrast not in session.contrasts]
            rows.extend(filling.fill(session, contrast) for contrast in lacking)
    finally:
        write_text(out / TABLE, table_text(COLUMNS, rows), refusal=_CANNOT)
    return Filled(out / TABLE, tuple(rows))


def _folder_of(trained: TrainedModel, cohort: Path) -> Path:
    if cohort.suffix != ".toml":
        return cohort
    site = read_site(cohort)
    if site.name != trained.site:
        raise BadSite(f"{cohort}: is the file of site '{site.name}', not of '{trained.site}'")
    return site.data


def _check_apart(folder: Path, out: Path) -> None:
    if out.resolve().is_relative_to(folder.resolve()):
        raise BadInput(
            f"{out}: lies in the cohort's own folder, where training would find it; choose a "
            "folder elsewhere"
        )


def ranked_pairs(trained: TrainedModel) -> tuple[RankedPair, ...]:
    """Return the site's pairs, the one with the best validation score first.

    Those without a score come last, in the study's order.
    """
    pairs = [SlicePredictor.of(trained, ContrastPair.parse(label)).pair for label in trained.labels]
    known = _validation_scores(trained)
    ranked = [RankedPair(pair, known.get(pair.label)) for pair in pairs]
    return tuple(sorted(ranked, key=lambda each: (each.score is None, -(each.score or 0.0))))


def _validation_scores(trained: TrainedModel) -> Mapping[str, float]:
    """Return the site's score of each pair in the tested round; a repeated round counts once."""
    path = trained.site_folder.validation
    lines = whole_lines(path.read_bytes()).splitlines() if path.exists() else []
    found = [_score_in(line, trained.round) for line in lines]
    return {task: score for site, task, score in found if site == trained.site}


def _score_in(line: bytes, round: int) -> tuple[str, str, float]:
    try:
        row = cast(Mapping[str, object], json.loads(line))
        score = row["score"]
        if row["round"] == round and isinstance(score, int | float):
            return str(row["site"]), "".join(str(row["task"]).split()), float(score)
    except (ValueError, TypeError, KeyError):
        pass  # a line that is none says nothing
    return "", "", 0.0


def _remove_leftover(out: Path) -> None:
    """Remove a sidecar of ours that a stopped command left without its volume."""
    sidecar = sidecar_of(out)
    if sidecar.exists() and read_sidecar(sidecar).get(SYNTHETIC_KEY) is True:
        remove(sidecar, refusal=_CANNOT)


def _row(
    session: SessionFiles,
    contrast: str,
    chosen: RankedPair | None,
    state: MadeState,
    reason: str,
    file: str = "",
) -> Mapping[str, str]:
    score = "" if chosen is None or chosen.score is None else f"{chosen.score:.4f}"
    source = chosen.pair.source if chosen else ""
    values: Sequence[str] = (
        *(session.patient, session.session, contrast, source),
        *(score, state, reason, file),
    )
    return dict(zip(COLUMNS, values, strict=True))
