"""What `grandrounds export` and `grandrounds synthesize` do: from arguments to files."""

import json
from pathlib import Path

from grandrounds.core.errors import BadInput
from grandrounds.inference.export import FORMATS, export
from grandrounds.inference.monai_bundle import export_bundle
from grandrounds.inference.predictor import inference_of
from grandrounds.inference.synthesize import synthesize
from grandrounds.inference.trained_model import trained_at
from grandrounds.tasks.synthesis.examples import Pair

BUNDLE = "bundle"


def export_model(
    folder: Path, site: str, *, task: str, kind: str, out: Path, as_json: bool, quiet: bool
) -> None:
    """Write a site's model for other programs."""
    if kind not in (*FORMATS, BUNDLE):
        known = ", ".join((*FORMATS, BUNDLE))
        raise BadInput(f"--format {kind}: is unknown; known: {known}")
    inference = inference_of(trained_at(folder, site), task)
    bundled = kind == BUNDLE
    apart = export_bundle(inference, out) if bundled else export(inference, kind, out)
    told = {
        "path": str(out),
        "format": kind,
        "site": site,
        "tasks": inference.labels,
        "round": inference.trained.round,
        "input": ["batch", len(inference.contrasts), *inference.trained.study.elements.size],
        "largest_difference": apart,
    }
    if as_json:
        print(json.dumps(told, indent=2))
    elif not quiet:
        print(f"{kind}: {out} ({', '.join(inference.labels)}; at most {apart:.1e} from exact)")


def synthesize_volume(
    folder: Path,
    site: str,
    *,
    source: str,
    target: str,
    volume: Path,
    out: Path,
    brain: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a contrast of a volume with a site's model."""
    synthesize(trained_at(folder, site), Pair(source, target), volume, out, brain=brain)
    if as_json:
        print(json.dumps({"path": str(out), "site": site, "task": f"{source}->{target}"}, indent=2))
    elif not quiet:
        print(f"synthetic {target}: {out}")
