"""The body of `grandrounds site prepare`: bars, a table, and a sentence for each refused session.

Heavy modules are imported inside, so that `--help` answers at once.
"""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from grandrounds.core.errors import BadImage, BadInput, RunFailed, Stopped
from grandrounds.core.extras import install_command

if TYPE_CHECKING:
    from grandrounds.runs.preparation import SitePreparation


def prepare_volumes_of(path: Path, *, workers: int, json: bool, quiet: bool) -> None:
    """Prepare the volumes of a site file, and print what became of them.

    Raises `BadImage` where sessions were refused, and `RunFailed` where some failed.
    """
    if find_spec("SimpleITK") is None:
        raise BadInput(
            "site prepare needs SimpleITK, which is not installed here: "
            f"{install_command('prepare')}"
        )
    from grandrounds.api.progress import ProgressBars, plain_console
    from grandrounds.runs.preparation import prepare_site
    from grandrounds.study.site_file import read_site

    site = read_site(path)
    console = plain_console(stderr=True, quiet=quiet)
    try:
        with ProgressBars(console, silent=quiet) as bars:
            done = prepare_site(
                site, workers=workers, told=lambda n, total: bars.prepare(site.name, n, total)
            )
    except KeyboardInterrupt:
        raise Stopped(
            "stopped; every finished session is kept. Give the same command again to go on."
        ) from None
    _print(done, json=json)
    _raise_if_refused(done)


def _print(done: "SitePreparation", *, json: bool) -> None:
    from grandrounds.api.progress import plain_console, warn
    from grandrounds.cli.output import print_json

    for outcome in done.outcomes:
        if outcome.reason:
            warn(outcome.reason)
    if json:
        plain = [{k: v for k, v in asdict(o).items() if k != "quality"} for o in done.outcomes]
        values = {"sessions": plain, "removed": done.removed, "look": done.look}
        print_json(values | {"page": str(done.page)})
        return
    counts = {
        "prepared": done.count("prepared"),
        "as they were": done.count("unchanged"),
        "not prepared": done.count("refused", "failed"),
    }
    words = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    gone = f"; {done.removed} volumes removed whose source is gone" if done.removed else ""
    console = plain_console()
    console.print(f"sessions: {words}{gone}", soft_wrap=True)
    console.print(f"to look at first: {done.look}\nquality page: {done.page}", soft_wrap=True)


def _raise_if_refused(done: "SitePreparation") -> None:
    left_out = done.count("refused", "failed")
    if not left_out:
        return
    sentence = (
        f"{left_out} of {len(done.outcomes)} sessions could not be prepared, for the reasons "
        "above; all others are ready."
    )
    raise RunFailed(sentence) if done.count("failed") else BadImage(sentence)
