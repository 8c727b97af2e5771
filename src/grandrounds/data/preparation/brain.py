"""Where the brain is: the site's own mask, or a simple one found by thresholds and distances.

The simple mask is no trained network: it takes the greys of the brain's core, lets them grow inside
the skull, and closes what is left open. docs/how-to/prepare.md says how well it does.
"""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.preparation.registration import working
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    StepRecord,
    WorkingVolume,
    grown,
    head_in,
    resampled,
    voxels_of,
)

MASK_GRID = 2.0  # mm
CORE_DEPTH = 25.0  # mm below the skin, where there is brain and nothing else but its fluid
SKULL_DEPTH = 9.0  # mm of scalp and bone
BRIDGE_WIDTH = 4.0  # mm: half of the widest bridge from brain to eye or muscle
RIM_WIDTH, GAP_WIDTH = 5.0, 12.0  # mm of fluid around the greys, and mm over which gaps are closed
BRAIN_GREYS = (0.4, 1.7)  # of the median of the core: what is brain


@dataclass(frozen=True)
class FindBrain:
    """A simple mask of the brain, on the reference's grid, where the site has none of its own."""

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session with a mask called "brain"."""
        if "brain" in session.masks:
            return session
        reference = session.fixed
        found = simple_brain(reference.image)
        record: StepRecord = {
            "Step": "brain mask",
            "Method": "simple: greys of the core, inside of the skull, opened and closed",
            "From": session.reference,
            "GridInMm": MASK_GRID,
            "DepthInMm": CORE_DEPTH,
            "SkullInMm": SKULL_DEPTH,
            "BridgeInMm": BRIDGE_WIDTH,
            "RimInMm": RIM_WIDTH,
            "GapsInMm": GAP_WIDTH,
            "Greys": list(BRAIN_GREYS),
        }
        mask = WorkingVolume(found, reference.digest, steps=(record,))
        return replace(session, masks={**session.masks, "brain": mask})


@dataclass(frozen=True)
class StripSkull:
    """What lies outside of the brain's mask becomes 0 in every contrast."""

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session without skulls. Raises `BadImage` where it has no mask."""
        brain = session.masks.get("brain")
        if brain is None:
            raise BadImage(
                "has no brain mask, which prepare.strip needs; add sub-ID[_ses-ID]_brainmask, or "
                'choose brain = "simple".',
                safe=phrase("a session has no brain mask to strip the skull by"),
            )
        inside = sitk.Cast(brain.image > 0, sitk.sitkFloat32)
        record: StepRecord = {"Step": "strip skull", "MaskSHA256": brain.digest}
        images = {n: v.after(record, v.image * inside) for n, v in session.images.items()}
        return replace(session, images=images)


def simple_brain(image: sitk.Image) -> sitk.Image:
    """Return where the brain probably is, as 0 and 1 in float32 on the image's grid."""
    small = working(image, MASK_GRID)
    head = head_in(small)
    core = _core(head)
    middle = float(np.median(voxels_of(small)[voxels_of(core) > 0]))
    low, high = (share * middle for share in BRAIN_GREYS)
    smooth = sitk.CurvatureFlow(small, 0.05, 5)
    inner = grown(head, -SKULL_DEPTH)
    tissue = (smooth >= low) & (smooth <= high) & inner
    kept = _reached(grown(tissue | core, -BRIDGE_WIDTH), core)
    closed = grown(grown(kept, BRIDGE_WIDTH + RIM_WIDTH + GAP_WIDTH), -GAP_WIDTH)
    brain = sitk.BinaryFillhole(closed & inner)
    shares = resampled(sitk.Cast(brain, sitk.sitkFloat32), image)
    return sitk.Cast(shares > 0.5, sitk.sitkFloat32)


def _core(head: sitk.Image) -> sitk.Image:
    """Return the deepest part of the upper head; a head with shoulders is deep there, too."""
    depth = CORE_DEPTH
    while depth > SKULL_DEPTH:
        deep = grown(head, -depth)
        if voxels_of(deep).any():
            return sitk.RelabelComponent(sitk.ConnectedComponent(deep), sortByObjectSize=True) == 1
        depth -= 3.0
    raise BadImage(
        'is too small for a simple brain mask; choose brain = "own" or "none".',
        safe=phrase("a volume is too small for a simple brain mask"),
    )


def _reached(pieces: sitk.Image, core: sitk.Image) -> sitk.Image:
    """Return the piece that holds most of the core."""
    parts = sitk.ConnectedComponent(pieces)
    counts = np.bincount(voxels_of(parts)[voxels_of(core) > 0].astype(int))
    return parts == int(counts[1:].argmax() + 1) if counts[1:].any() else core
