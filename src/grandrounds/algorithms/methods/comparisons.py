"""What a federation is compared with: each site alone, or all data in one place."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class Local(Method):
    """No federation: every site trains alone, from the same first weights."""

    @property
    def title(self) -> str:
        return "Local only"

    def sharing(self) -> Sharing:
        return Sharing(shared=())


@dataclass(frozen=True)
class Central(Method):
    """No federation: one model on all sites' pooled data, which a consortium could not have."""

    @property
    def title(self) -> str:
        return "Centralised"

    def sharing(self) -> Sharing:
        return Sharing(shared=(), pooled=True)


@dataclass(frozen=True)
class PGAN(Central):
    """Dar et al. 2019, on pooled data: a ResNet with a critic; without its perceptual loss."""

    @property
    def title(self) -> str:
        return "pGAN, centralised"


@dataclass(frozen=True)
class Pix2Pix(Central):
    """Isola et al. 2017, on pooled data: a U-Net with a critic."""

    @property
    def title(self) -> str:
        return "pix2pix, centralised"

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "unet"}
