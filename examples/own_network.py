"""A network of MONAI's in the place of the built-in one: one line."""

from monai.networks.nets import SegResNet

import grandrounds as gr

study = gr.load("segmentation", rounds=1)
study = gr.load(study, task={"network": SegResNet})
