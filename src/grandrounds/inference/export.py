"""A trained model is exported for other programs, and the file's predictions are compared."""

import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from grandrounds.core.errors import BadInput, RunFailed
from grandrounds.core.extras import install_command
from grandrounds.core.files import create_whole
from grandrounds.inference.predictor import Predictor

TOLERANCE = 1e-4  # how far a file's predictions may be from the model's in float64, at any pixel
COUNTS = (1, 3)  # images in the batches that a file is tested on
DYNAMIC = {0: torch.export.Dim("batch")}
IMAGE, PREDICTION = "image", "prediction"
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """One kind of file: how its name ends, how it is written, and how it is run again."""

    suffix: str
    write: Callable[[Predictor, Path], None]
    load: Callable[[Path], Predict]
    needs: tuple[str, ...] = ()


def write_program(predictor: Predictor, path: Path) -> None:
    """Write an exported program, for `torch.export.load`."""
    program = torch.export.export(
        predictor.network, (predictor.example(2),), dynamic_shapes=(DYNAMIC,)
    )
    torch.export.save(program, path)


def _load_program(path: Path) -> Predict:
    return torch.export.load(path).module()


def write_torchscript(predictor: Predictor, path: Path) -> None:
    """Write TorchScript, for `torch.jit.load` in Python and C++."""
    with torch.no_grad(), _quiet():
        traced = cast(
            torch.jit.ScriptModule,
            torch.jit.trace(predictor.network, predictor.example(2)),  # pyright: ignore[reportUnknownMemberType]
        )
        traced.save(str(path))  # pyright: ignore[reportUnknownMemberType]


def _load_torchscript(path: Path) -> Predict:
    with _quiet():
        return cast(Predict, torch.jit.load(path))  # pyright: ignore[reportUnknownMemberType]


def write_onnx(predictor: Predictor, path: Path) -> None:
    """Write ONNX with a batch axis of any length."""
    with _quiet():
        program = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
            predictor.network,
            (predictor.example(2),),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[IMAGE],
            output_names=[PREDICTION],
            verbose=False,
        )
    assert program is not None, "with dynamo, a program comes back"
    program.save(path, external_data=False)  # pyright: ignore[reportUnknownMemberType]


def _load_onnx(path: Path) -> Predict:
    from onnxruntime import InferenceSession  # pyright: ignore[reportMissingTypeStubs]

    session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        feed = {IMAGE: images.numpy()}
        return torch.as_tensor(cast(list[object], session.run([PREDICTION], feed))[0])  # pyright: ignore[reportUnknownMemberType]

    return predict


FORMATS: Mapping[str, Format] = {
    "torch-export": Format(".pt2", write_program, _load_program),
    "torchscript": Format(".ts", write_torchscript, _load_torchscript),
    "onnx": Format(".onnx", write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


def export_program(predictor: Predictor, kind: str, out: Path) -> float:
    """Write a model, and return the largest difference of its predictions from exact ones.

    No file is left where they differ by more than 1e-4. Raises `BadInput`, `RunFailed`.
    """
    form = FORMATS[kind]
    if out.suffix != form.suffix:
        raise BadInput(f"--out {out}: a file of format '{kind}' must be named *{form.suffix}")
    check_packages(kind, form.needs)
    with create_whole(out) as path:
        form.write(predictor, path)
        return checked(predictor, form.load(path), kind)


def check_packages(kind: str, needed: tuple[str, ...]) -> None:
    """Refuse a format whose packages are not installed. Raises `BadInput`."""
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"--format {kind} needs {', '.join(missing)}; install them with "
            f"{install_command('export')}"
        )


def checked(predictor: Predictor, predict: Predict, kind: str) -> float:
    """Return the largest difference of a file's predictions; `RunFailed` where it is too large."""
    with torch.no_grad():
        apart = max(_apart(predictor, predict, count) for count in COUNTS)
    if not apart <= TOLERANCE:
        raise RunFailed(
            f"--format {kind}: its predictions are up to {apart:.1e} from the model's own in "
            f"float64, more than {TOLERANCE:.0e}; nothing was written. Choose another format."
        )
    return apart


def _apart(predictor: Predictor, predict: Predict, count: int) -> float:
    images = predictor.example(count)
    return float((predict(images) - predictor.predict_float64(images)).abs().max())


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence PyTorch's warnings about its exporters and about packages that it does not find."""
    registry = logging.getLogger("torch.onnx")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
            # It warns of constant sizes: rows and columns may be; `checked` tests other batches.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
            warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
            yield
    finally:
        registry.setLevel(level)
