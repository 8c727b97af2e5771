"""Losses of logits that leave out the structures which a sample does not ask for.

Shapes: logits and target (B, S, H, W) or (B, S, D, H, W); B batch, S structure; asked is 0 or 1.
"""

from torch import Tensor
from torch.nn import functional


def dice_loss(logits: Tensor, target: Tensor, asked_BS: Tensor) -> Tensor:
    """Give the Dice loss over the whole batch, averaged over the structures that are asked for.

    Milletari et al. 2016.
    """
    from monai.losses.dice import DiceLoss  # seconds, for those who need it

    mask = _spread(asked_BS, logits)
    loss = DiceLoss(batch=True, reduction="none")(logits.sigmoid() * mask, target * mask)
    present_S = asked_BS.amax(0)
    return (loss.flatten() * present_S).sum() / present_S.sum()


def cross_entropy(logits: Tensor, target: Tensor, asked_BS: Tensor) -> Tensor:
    """Give the binary cross-entropy, averaged over the pixels of what is asked for."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy.flatten(2).mean(2) * asked_BS).sum() / asked_BS.sum()


def _spread(asked_BS: Tensor, images: Tensor) -> Tensor:
    return asked_BS.view(*asked_BS.shape, *[1] * (images.ndim - 2))
