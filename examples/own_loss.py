"""A loss of MONAI's in the place of the built-in one: one line."""

from monai.losses import DiceFocalLoss

import grandrounds as gr

study = gr.load("segmentation", rounds=1)
study = gr.load(study, task={"loss": DiceFocalLoss, "loss_options": {"sigmoid": True}})
