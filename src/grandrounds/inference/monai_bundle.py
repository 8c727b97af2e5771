"""A trained model is exported as a MONAI bundle: TorchScript, its configuration, its facts."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from grandrounds import __version__
from grandrounds.core.files import create_whole
from grandrounds.core.quoting import for_markdown
from grandrounds.inference.export import FORMATS, checked
from grandrounds.inference.predictor import Predictor
from grandrounds.study.file import fingerprint
from grandrounds.tasks import Classification, Segmentation, Synthesis

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
MODEL = "models/model.ts"
IGNITE = "0.5.5"  # with which bundles are tested; writing one does not need it
DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
INTENDED_USE = "Research only. The model is no medical device, and nobody has tested it as one."


def export_bundle(predictor: Predictor, out: Path) -> float:
    """Write a bundle, and return the largest difference of its predictions from exact ones.

    The bundle needs MONAI, but not grandrounds. Raises `BadInput`, `RunFailed`.
    """
    form = FORMATS["torchscript"]
    with create_whole(out) as folder:
        for name in ("configs", "models", "docs"):
            (folder / name).mkdir(parents=True)
        form.write(predictor, folder / MODEL)
        apart = checked(predictor, form.load(folder / MODEL), "bundle")
        _write(folder / "configs" / "metadata.json", metadata(predictor))
        _write(folder / "configs" / "inference.json", configuration(predictor))
        (folder / "docs" / "README.md").write_text(readme(predictor), "utf-8")
        return apart


def _write(path: Path, table: Mapping[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def metadata(predictor: Predictor) -> dict[str, object]:
    """Return the model's metadata, inputs and outputs in the terms of MONAI's schema."""
    trained, study = predictor.trained, predictor.trained.study
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from round {trained.round} of its run"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "nibabel": version("nibabel"),
            "pytorch-ignite": IGNITE,
        },
        "name": _title(predictor),
        "task": f"{study.task.kind}: {', '.join(predictor.labels)}",
        "description": f"{_title(predictor)}. Trained by {study.build_method().title} "
        f"(grandrounds {__version__}); this is the model as site '{trained.site}' uses it.",
        "authors": f"the consortium of study '{study.name}'",
        "copyright": f"the consortium of study '{study.name}'",
        "intended_use": INTENDED_USE,
        "network_data_format": {
            "inputs": {"image": _image(predictor)},
            "outputs": {"pred": _prediction(predictor)},
        },
        "preparation": {
            "spacing": study.elements.spacing,
            "size": study.elements.size,
            "note": "docs/README.md says how a volume is brought there",
        },
        "study": {
            "name": study.name,
            "sha256": fingerprint(study),
            "site": trained.site,
            "round": trained.round,
        },
    }


def _title(predictor: Predictor) -> str:
    trained = predictor.trained
    return f"{', '.join(predictor.labels)} of study {trained.study.name}, site {trained.site}"


def _image(predictor: Predictor) -> dict[str, object]:
    return {
        "type": "image",
        "format": "magnitude",
        **_channels(predictor.contrasts),
        "spatial_shape": predictor.trained.study.elements.size,
    }


def _prediction(predictor: Predictor) -> dict[str, object]:
    study, channels = predictor.trained.study, _channels(predictor.outputs)
    match study.task:
        case Classification():
            kind, shape = ("probabilities", "probabilities"), ()
        case Segmentation():
            kind, shape = ("image", "segmentation"), study.elements.size
        case _:
            kind, shape = ("image", "magnitude"), study.elements.size
    return {"type": kind[0], "format": kind[1], **channels, "spatial_shape": shape}


def _channels(names: tuple[str, ...]) -> dict[str, object]:
    return {
        "num_channels": len(names),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }


def configuration(predictor: Predictor) -> dict[str, object]:
    """Return MONAI's configuration for running the model on a folder of slices."""
    channel = "no_channel" if len(predictor.contrasts) == 1 else 0
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/slices'",
        "output_dir": "$@bundle_root + '/predictions'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.n*'))",
        "device": DEVICE,
        "network_def": f"$torch.jit.load(@bundle_root + '/{MODEL}', map_location=@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": channel},
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [_saver(predictor)]},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _saver(predictor: Predictor) -> dict[str, object]:
    if isinstance(predictor.trained.study.task, Classification):
        return {
            "_target_": "SaveClassificationd",
            "keys": "pred",
            "meta_key_postfix": None,
            "output_dir": "@output_dir",
        }
    return {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "pred",
        "separate_folder": False,
        "resample": False,
    }


def readme(predictor: Predictor) -> str:
    """Write what a person needs to know before use."""
    study = predictor.trained.study
    rows, columns = study.elements.size
    along, across = study.elements.spacing
    return f"""# {for_markdown(_title(predictor))}

{INTENDED_USE}

The model was trained by {study.build_method().title}; this is the one that site
'{predictor.trained.site}' uses, with what is private to it. It runs with MONAI, PyTorch and
pytorch-ignite; grandrounds is not needed.

    pip install "monai[nibabel,ignite,fire]"
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
        --dataset_dir slices

Each file in `slices/` (.npy or NIfTI) is one slice: {_layout(predictor)}
of float32 in [0, 1]. It has {rows} rows from front to back and {columns} columns from the
patient's right to left, {along:g} x {across:g} mm. A volume is brought there by resampling each
axial slice about the volume's centre, dividing the volume by 1.2 times its 99th percentile inside
the brain, and clipping it to [0, 1].{_per_slice(predictor)}

The prediction of each slice goes to `predictions/`: {_meaning(predictor)}
"""


def _per_slice(predictor: Predictor) -> str:
    options = predictor.trained.study.task
    if not isinstance(options, Synthesis) or options.intensity == "volume":
        return ""
    return " Then each slice is scaled to its own range, in steps of 1/255."


def _layout(predictor: Predictor) -> str:
    if len(predictor.contrasts) == 1:
        return f"a {for_markdown(predictor.contrasts[0])} image (rows, columns)"
    names = for_markdown(", ".join(predictor.contrasts))
    return f"the images {names} as one array (contrasts, rows, columns)"


def _meaning(predictor: Predictor) -> str:
    names = for_markdown(", ".join(predictor.outputs))
    match predictor.trained.study.task:
        case Classification():
            return (
                f"the probability of {names}, in predictions.csv, in the order of the file names."
            )
        case Segmentation():
            return f"for each pixel the probability of {names}; from 0.5 on it is part of it."
        case _:
            return f"a {names} image, on the same scale."
