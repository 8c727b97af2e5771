"""First weights are read from a file whose SHA-256 stands in the study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import torch
from torch import Tensor, nn

from grandrounds.core.errors import BadFolder, BadStudy, require
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import Weights, read
from grandrounds.models.layer_groups import first_names

PREFIXES = ("", "network.", "generator.network.")  # which names in a file may have, or lack


@dataclass
class _Place:
    """The folder in which this process looks up the files that a study names."""

    folder: Path | None = None


_PLACE = _Place()


def look_up_files_in(folder: Path) -> None:
    """Let this process look up a study's files in a folder: a site's own, in a federation."""
    _PLACE.folder = folder


def path_of(word: str) -> Path:
    """Return where a file that a study names lies here: beside where the program runs.

    At a site of a federation it is in the site's local folder.
    """
    return (_PLACE.folder or Path.cwd()) / word


def sha256_of(word: str) -> str:
    """Return the SHA-256 of a file that a study names, in hex. Raises `BadStudy`."""
    path = path_of(word)
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadStudy(
            f'task.weights = "{word}": {path} cannot be read ({error.strerror}); put the file '
            "there",
            safe=phrase("it lacks the file that the study's task.weights names"),
        ) from None


@dataclass(frozen=True)
class Pretrained:
    """A safetensors file of first weights, as the study names it."""

    word: str
    sha256: str

    @property
    def _said(self) -> str:
        return f'task.weights = "{self.word}"'

    def load(self, network: nn.Module) -> None:
        """Overwrite a network's weights with the file's, which must be these and no others.

        Whole numbers, such as batch norm's counter, may be missing. Raises `BadStudy`.
        """
        found = sha256_of(self.word)
        if found != self.sha256:
            raise BadStudy(
                f"{self._said} has the SHA-256 {found}, and task.weights_sha256 is "
                f"{self.sha256}; get the file that was agreed on",
                safe=phrase("its file of first weights is another one than the study's"),
            )
        tensors: Weights = dict(network.state_dict())
        weights = self._without_prefix(self._read(), tensors)
        self._check(weights, tensors, first_names(network))
        with torch.no_grad():
            for name, tensor in weights.items():
                tensors[name].copy_(tensor)

    def _read(self) -> Weights:
        try:
            return read(path_of(self.word))[0]
        except BadFolder as error:
            raise BadStudy(f"{self._said}: {error}") from None

    def _without_prefix(self, weights: Weights, own: Mapping[str, Tensor]) -> Weights:
        """Return the weights by the network's names, without the prefix that fits most of them."""

        def fitting(prefix: str) -> int:
            return sum(n.startswith(prefix) and n.removeprefix(prefix) in own for n in weights)

        prefix = max(PREFIXES, key=fitting)
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}

    def _check(self, weights: Weights, own: Mapping[str, Tensor], first: Sequence[str]) -> None:
        odd = [name for name in weights if name not in own]
        require(
            not odd,
            f"{self._said} has {_counted(odd)} that the network does not have; its tensors are "
            f"called as {next(iter(own))}",
        )
        missing = [n for n in first if n in own and n not in weights]
        missing = [name for name in missing if own[name].is_floating_point()]
        require(not missing, f"{self._said} lacks {_counted(missing)} of the network")
        for name, tensor in weights.items():
            require(
                tensor.shape == own[name].shape,
                f"{self._said}: '{name}' is {tuple(tensor.shape)}; the network has "
                f"{tuple(own[name].shape)}",
            )


def _counted(names: list[str]) -> str:
    """Write how many tensors there are, and the first three of them."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}{more})"
