"""What protected updates on their way is said here, and what that leaves open."""

from collections.abc import Mapping
from typing import Any

from grandrounds.report.analysis.folder import PrivacyFacts

_UNIT = {"client": "a site's part in the training", "record": "a training patient"}


def protections(study: Mapping[str, Any]) -> list[str]:
    """Return what a resolved study has to protect updates, as the study file says it."""
    privacy = PrivacyFacts.of(study.get("privacy", {}))
    found: list[str] = []
    if privacy:
        found.append(
            f'privacy.kind = "{privacy.kind}" (clip {privacy.clip:g}, noise {privacy.noise:g})'
        )
    if _is_masked(study):
        found.append("privacy.secure_sum")
    return found


def left_open(study: Mapping[str, Any], epsilon: float | None) -> str:
    """Say what those who saw updates, or the model, may learn in spite of what protected them.

    `epsilon` is the largest that a site told; None where none did.
    """
    privacy = PrivacyFacts.of(study.get("privacy", {}))
    if privacy and privacy.noise:
        return _behind_noise(privacy, _is_masked(study), epsilon)
    if _is_masked(study):
        return (
            "Who merged the updates could read their sum alone (privacy.secure_sum); no noise "
            "bounds what this sum, and so the model, tells about patients."
        )
    reason = "privacy.noise = 0" if privacy else 'privacy.kind = "none"'
    said = (
        f"What left a site was not protected by noise or masks ({reason}); updates may tell "
        "something about the patients that they were trained on."
    )
    form = str(study.get("exchange", {}).get("kind", "full"))
    return f'{said} Fewer bits (exchange.kind = "{form}") hide nothing.' if form != "full" else said


def _behind_noise(privacy: PrivacyFacts, masked: bool, epsilon: float | None) -> str:
    reached = "epsilon was not told" if epsilon is None else f"epsilon up to {epsilon:.3g}"
    said = (
        f"Noise bounds what the run tells of {_UNIT[privacy.kind]} ({reached} at delta "
        f"{privacy.delta:g}); patients for validation and test have no such bound."
    )
    if privacy.kind == "client" and not masked:
        said += (
            " Who merged the updates saw each one with its site's share of the noise alone (no "
            "privacy.secure_sum)."
        )
    return said


def _is_masked(study: Mapping[str, Any]) -> bool:
    return bool(study.get("privacy", {}).get("secure_sum"))
