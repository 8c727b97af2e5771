"""How often is a volume refused because the site's model has not seen the like?

Of each simulated site of the demo's study the training patients make a profile, and its test
patients are given to it: as what they are, under another contrast's name, from the other sites'
scanners, and as CT would look (air 0, bone bright, soft tissue alike). Nothing is trained.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.data.cohort import HEADROOM, Cohort, Session
from grandrounds.data.profile import DataProfile, ImageLook, look_of, make_profile
from grandrounds.data.simulation.simulate import simulate_session
from grandrounds.study.file import read_study
from grandrounds.study.study import Study

DEMO = Path(__file__).parents[1] / "studies" / "demo.toml"
SLICES = 8
SOFT, BONE = 0.3, 1.0  # of CT without its offset, in a narrow and in no window


def sessions_of(study: Study, patients: int) -> dict[str, list[Session]]:
    return {
        spec.name: [
            simulate_session(
                study.seed, spec.name, f"sub-{n}", spec.scanner, study.elements, slices=SLICES
            )
            for n in range(patients)
        ]
        for spec in study.site
    }


def as_ct(session: Session) -> NDArray[np.float32]:
    """Soft tissue of one grey value in a rim of bone, prepared as every image is."""
    shares = session.images.mean(axis=1) > 0.05
    brain = session.masks["brain"] > 0
    image = np.where(brain, SOFT, np.where(shares, BONE, 0.0))
    noise = np.random.default_rng(1).normal(0, 0.01, image.shape)
    top = HEADROOM * np.percentile(image[shares], 99)
    return ((image + noise) / top).clip(0, 1).astype(np.float32)


def looks(session: Session, pixel: tuple[float, float]) -> dict[str, ImageLook]:
    found = {
        name: look_of(session.images[:, place], pixel)
        for place, name in enumerate(session.contrasts)
    }
    return {name: look for name, look in found.items() if look}


def rates(study: Study, train: int, test: int) -> dict[str, float]:
    pixel, made = study.elements.spacing, sessions_of(study, train + test)
    profiles = {
        site: make_profile(
            [Cohort(site, {"train": tuple(each[:train]), "validation": (), "test": ()})], pixel
        )
        for site, each in made.items()
    }
    refused: dict[str, list[bool]] = defaultdict(list)
    for site, sessions in made.items():
        for session in sessions[train:]:
            judge(refused, profiles, site, session, pixel)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(refused.items())}


def judge(
    refused: dict[str, list[bool]],
    profiles: dict[str, DataProfile],
    site: str,
    session: Session,
    pixel: tuple[float, float],
) -> None:
    own, ct = profiles[site], look_of(as_ct(session), pixel)
    for name, look in looks(session, pixel).items():
        refused["own test patients"].append(bool(own.objections(name, look)))
        for other in own.contrasts:
            if other != name:
                refused[f"{name} given as {other}"].append(bool(own.objections(other, look)))
        for elsewhere, profile in profiles.items():
            if elsewhere != site:
                refused["from another scanner"].append(bool(profile.objections(name, look)))
        if ct:
            refused["like CT"].append(bool(own.objections(name, ct)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of shares")
    parser.add_argument("--train", type=int, default=20, help="training patients of each site")
    parser.add_argument("--test", type=int, default=10, help="test patients of each site")
    wishes = parser.parse_args()
    found = rates(read_study(DEMO, ()), wishes.train, wishes.test)
    if wishes.json:
        print(json.dumps(found))
        return
    print(f"share refused, {wishes.train} training and {wishes.test} test patients of each site")
    for name, share in found.items():
        print(f"{name:>22}: {share:.3f}")


if __name__ == "__main__":
    main()
