"""Pairs of contrasts, and the codes that tell a network its site and its pair."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grandrounds.data.elements import Elements
from grandrounds.tasks.checks import check_contrasts, require


@dataclass(frozen=True)
class Pair:
    """One synthesis task: which contrast is made from which."""

    source: str
    target: str

    @staticmethod
    def parse(label: str) -> "Pair":
        """Read a label such as "T1w->T2w". Raises `ValueError`."""
        source, target = (word.strip() for word in label.split("->"))
        return Pair(source, target)

    @property
    def label(self) -> str:
        """Write the label."""
        return f"{self.source}->{self.target}"

    @property
    def reversed(self) -> "Pair":
        """Give the way back."""
        return Pair(self.target, self.source)


@dataclass(frozen=True)
class Coding:
    """Turns (site, pair) into the code that the mapper reads.

    It is the one-hots of site, source and target in a row. `codes` says which of them are told to
    the network; the others are zero. Dalmaz et al. 2024. With "direction" it is the one-hot of the
    pair among `pairs`, and nothing of the site. The code of a site that is not among `sites` is
    the mean of theirs; with a `reader`, that site's code stands for every site.
    """

    sites: tuple[str, ...]
    contrasts: tuple[str, ...]
    codes: Literal["both", "site", "task", "none", "direction"] = "both"
    pairs: tuple[Pair, ...] = ()
    reader: str = ""

    @property
    def size(self) -> int:
        """Count the values of a code."""
        if self.codes == "direction":
            return len(self.pairs)
        return len(self.sites) + 2 * len(self.contrasts)

    def code(self, site: str, pair: Pair) -> Tensor:
        """Give the code, (K,)."""
        code = torch.zeros(self.size)
        if self.codes == "direction":
            code[self.pairs.index(pair)] = 1.0
        if self.codes in ("both", "site"):
            code[: len(self.sites)] = self._site_code(self.reader or site)
        if self.codes in ("both", "task"):
            code[len(self.sites) + self.contrasts.index(pair.source)] = 1.0
            code[len(self.sites) + len(self.contrasts) + self.contrasts.index(pair.target)] = 1.0
        return code

    def _site_code(self, site: str) -> Tensor:
        if site not in self.sites:
            return torch.full((len(self.sites),), 1 / len(self.sites))
        return torch.tensor([float(name == site) for name in self.sites])


def check_pair(site: str, label: str, elements: Elements) -> None:
    """Refuse a label that is no pair of two of the study's contrasts. Raises `BadStudy`."""
    where = f"site '{site}', task '{label}'"
    require(
        label.count("->") == 1, f'{where}: write it as "SOURCE->TARGET", for example "T1w->T2w"'
    )
    pair = Pair.parse(label)
    check_contrasts(where, (pair.source, pair.target), elements)
    require(pair.source != pair.target, f"{where}: source and target are the same contrast")
