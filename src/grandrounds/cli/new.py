"""This command proposes a study from the sites' own data, and writes it with a reason for each key.

Heavy modules are imported inside the command, so that `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grandrounds.cli.app import Json, Quiet, Set, app
from grandrounds.core.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grandrounds.runs.draft import Proposal
    from grandrounds.study.site_file import SiteFile

REFUSAL = "{path}: cannot be written: {reason}"


@app.command()
def new(
    study: Annotated[
        Path, typer.Argument(help="The study file to write (TOML).", show_default=False)
    ],
    site: Annotated[
        list[Path],
        typer.Option(
            "--site", help="A site file, or where a site's data lie: a folder, an .npz, a table."
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="What is learned, such as T1w->T2w or T1w+FLAIR->lesion."),
    ] = None,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Propose a study from the sites' own data; it can be run as it is written."""
    from grandrounds.api.progress import ProgressBars, plain_console
    from grandrounds.cli.output import print_json
    from grandrounds.core.files import write_text
    from grandrounds.core.names import check_distinct, check_name
    from grandrounds.runs.draft import check_reads_back
    from grandrounds.runs.proposal import propose

    check_name(study.stem, f"{study}: study name")
    files = [_site_file(path) for path in site]
    check_distinct([file.name for file in files], "sites")
    beside = {f.name: study.parent / f"{f.name}.toml" for f in files if f.data in site}
    _check_new([study, *beside.values()])
    with ProgressBars(plain_console(stderr=True, quiet=quiet)) as bars:
        proposal = propose(
            study.stem, files, overrides=set or [], tasks=task or [], preparing=bars.prepare
        )
    check_reads_back(proposal)
    for file in files:
        if file.name in beside:
            write_text(beside[file.name], _text_of(file), refusal=REFUSAL)
    write_text(study, proposal.text, refusal=REFUSAL)
    if json:
        print_json(_as_json(proposal, study, beside))
        return
    for line in [*(_said(proposal) if not quiet else []), *_written(study, beside)]:
        plain_console().print(line, soft_wrap=True)


def _check_new(paths: "Sequence[Path]") -> None:
    for path in paths:
        if path.exists():
            raise BadInput(f"{path}: exists already, and is not written over; choose another name")


def _as_json(proposal: "Proposal", study: Path, beside: "Mapping[str, Path]") -> dict[str, object]:
    return {
        "study": str(study),
        "sites": {name: str(path) for name, path in beside.items()},
        "choices": {c.key: {"value": c.value, "why": c.why} for c in proposal.choices},
        "tasks": proposal.study.roster,
        "left_out": list(proposal.notes),
    }


def _said(proposal: "Proposal") -> list[str]:
    """Say each choice and its reason, and what is left out."""
    return [
        *(f"{choice.key} = {choice.value}: {choice.why}" for choice in proposal.choices),
        *(f"{name}: {', '.join(labels)}" for name, labels in proposal.study.roster.items()),
        *(f"note: {note}" for note in proposal.notes),
    ]


def _written(study: Path, beside: "Mapping[str, Path]") -> list[str]:
    return [*(f"site file: {path}" for path in beside.values()), f"study: {study}"]


def _site_file(path: Path) -> "SiteFile":
    """Read a site file, or make one for data that lie in a place named as the site is."""
    from grandrounds.core.names import check_site_name
    from grandrounds.study.site_file import SiteFile, read_site

    if path.suffix == ".toml":
        return read_site(path)
    if not path.exists():
        raise BadInput(f"--site {path}: is neither a site file nor a place of data")
    name = path.resolve().name.partition(".")[0]
    check_site_name(name)
    return SiteFile(name, path)


def _text_of(file: "SiteFile") -> str:
    import tomli_w

    return tomli_w.dumps({"name": file.name, "data": str(file.data.resolve())})
