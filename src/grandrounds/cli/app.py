"""The program and the options that several commands share are declared here."""

from pathlib import Path
from typing import Annotated

import typer

from grandrounds import __version__

app = typer.Typer(
    name="grandrounds",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"grandrounds {__version__}")
        raise typer.Exit


@app.callback()
def grandrounds(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Federated learning for medical imaging: one study file, the same numbers everywhere."""


StudyPath = Annotated[Path, typer.Argument(help="The study file (TOML).", show_default=False)]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run folder.", show_default="runs/NAME")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the study, for example training.epochs=2."),
]
SitePaths = Annotated[
    list[Path] | None,
    typer.Option("--site", help="A site file (TOML) that says where a real site's data lies."),
]
Page = Annotated[
    Path | None,
    typer.Option("--page", help="Write the sites' statistics side by side, as one HTML file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Go on although the version or a site's data changed since the run was stopped.",
    ),
]
IncludeImages = Annotated[
    bool,
    typer.Option("--include-images", help="Show images of real patients that sites allow, too."),
]
NoFigures = Annotated[bool, typer.Option("--no-figures", help="Write no figures/ for a paper.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="Log to a tracker: mlflow:sqlite:///PATH.db, mlflow:http://..., tensorboard:DIR, "
        "wandb:PROJECT, wandb:offline:DIR.",
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", help="How many arms train at a time; 0: one for each core.")
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        help="Where the processes compute, in turn, at least one on each: cuda:0,cuda:1.",
        show_default="all there are",
    ),
]
FinishedRunFolder = Annotated[Path, typer.Argument(help="A finished run's folder.")]
AnyFolder = Annotated[Path, typer.Argument(help="A run folder, or a comparison's.")]
