"""A schedule is drawn from a seed: the same seed, the same schedule."""

from dataclasses import asdict
from random import Random
from typing import Literal

from tests.nemesis.faults import (
    HOUR,
    SERVER,
    SILENCE,
    Damage,
    Deed,
    Fault,
    Harm,
    Moment,
    Schedule,
    Trouble,
    World,
)
from tests.nemesis.studies import ARMS, study_of

WORLDS: tuple[World, ...] = (
    *("remote", "workers", "remote", "remote"),
    *("workers", "remote", "remote", "federation"),
)
SHORT = (
    *("lost", "unanswered", "twice", "corrupt", "corrupt answer"),
    *("older answer", "old letter", "older instead"),
)
SLOW = ("late", "late answer", "overtaken", "cut", "slow")
DEADLY = ("kill", "kill server", "restart", "old kit", "foreign kit", "stop", "cut off")
CROWD = ("second server", "second site")


def schedule_of(seed: int, world: World | None = None) -> Schedule:
    """Draw the schedule of a seed, of one world or of the seed's own."""
    rng = Random(f"nemesis {seed}")
    world = world or WORLDS[seed % len(WORLDS)]
    draw = {"remote": _remote, "workers": _workers, "federation": _federation}[world]
    arms = [arm for arm in ARMS if world != "federation" or len(study_of(arm).site) == 2]
    arm = rng.choice(arms)
    return Schedule(seed, world, arm, draw(rng, arm))


def _remote(rng: Random, arm: str) -> tuple[Fault, ...]:
    kinds = [rng.choice(("trouble", "trouble", "harm", "damage")) for _ in range(rng.randint(1, 4))]
    faults: list[Fault] = [_trouble(rng, arm) for kind in kinds if kind == "trouble"]
    faults += [_harm(rng, arm) for kind in kinds if kind == "harm"]
    damages = [_damage(rng, arm) for kind in kinds if kind == "damage"][:2]
    if damages:
        faults.append(_end(rng, arm))
    if rng.random() < 0.3 and (damages or arm.startswith("swarm")):
        faults.append(_end(rng, arm))
        faults.append(_old_letters(rng, arm))
    return (*faults, *damages)


def _workers(rng: Random, arm: str) -> tuple[Fault, ...]:
    harm = _harm(rng, arm) if rng.random() < 0.6 else _end(rng, arm)
    damages = [_damage(rng, arm) for _ in range(rng.choice((0, 0, 1, 2)))]
    if damages and harm.deed in ("stop", "clock"):
        harm = _end(rng, arm)
    second = [_second(rng)] if rng.random() < 0.2 else []
    return (harm, *second, *damages)


def _federation(rng: Random, arm: str) -> tuple[Fault, ...]:
    harm = _harm(rng, arm)
    damages = [_damage(rng, arm)] if rng.random() < 0.5 else []
    if damages and harm.deed in ("stop", "clock"):
        harm = _end(rng, arm)
    return (harm, *damages)


def _party(rng: Random, arm: str) -> str:
    return rng.choice([SERVER, *study_of(arm).trainers])


def _end(rng: Random, arm: str) -> Harm:
    """What surely ends a run in the midst of it: the server is killed."""
    moment: Moment = rng.choice(("writing", "written", "named", "journal"))
    return Harm(SERVER, rng.randint(2, study_of(arm).rounds), moment, "kill")


def _harm(rng: Random, arm: str) -> Harm:
    party = _party(rng, arm)
    moments: list[Moment] = ["writing", "written", "named"]
    if party == SERVER:
        moments.append("journal")
    elif arm != "split":  # its sites take turns, step by step
        moments.append("training")
    deed: Deed = rng.choice(("kill", "kill", "stop", "full disk", "clock"))
    seconds = {"stop": rng.choice((0.5, SILENCE + 2)), "clock": rng.choice((-HOUR, HOUR))}
    number = rng.randint(1, study_of(arm).rounds)
    return Harm(party, number, rng.choice(moments), deed, seconds.get(deed, 0.0))


def _trouble(rng: Random, arm: str) -> Trouble:
    study, site = study_of(arm), rng.choice(study_of(arm).trainers)
    letters = 2 * study.rounds + 2
    what = rng.choice((*SHORT, *SHORT, *SLOW, *SLOW, *DEADLY, *CROWD))
    if arm.startswith("swarm") and rng.random() < 0.4 and what in (*SHORT, *SLOW):
        return _on_its_way(rng, Trouble(site, "mail", rng.randint(1, study.rounds), what))
    return _on_its_way(rng, Trouble(site, "ask", rng.randint(1, letters), what))


def _on_its_way(rng: Random, trouble: Trouble) -> Trouble:
    fields = asdict(trouble)
    if trouble.what in SHORT:
        fields["times"] = rng.choice((1, 1, 2, 3, 6))
    elif trouble.what in SLOW:
        fields["seconds"] = rng.choice((0.1, 0.5, 1.5))
    elif trouble.what == "cut off":
        fields["seconds"] = SILENCE + 2
    elif trouble.what == "stop":
        fields["seconds"] = rng.choice((0.5, SILENCE + 2))
    return Trouble(**fields)


def _old_letters(rng: Random, arm: str) -> Trouble:
    """After the run was resumed, all letters of before come to a site again."""
    topic: Literal["ask", "mail"] = "mail" if arm.startswith("swarm") else "ask"
    return Trouble(
        rng.choice(study_of(arm).trainers), topic, rng.randint(1, 2), "old letters", attempt=2
    )


def _second(rng: Random) -> Trouble:
    return Trouble(SERVER, "ask", 1, "second server")


def _damage(rng: Random, arm: str) -> Damage:
    sites = study_of(arm).trainers
    site = rng.choice(sites)
    files = [
        *("newest state", "newest state", "oldest state", "journal", "journal", "study.toml"),
        *(f"newest state of {site}", f"oldest state of {site}", f"log of {site}"),
        *(["newest merged of " + site] if arm.startswith("swarm") else []),
    ]
    folders = ["state", f"sites/{site}/state", f"sites/{site}"]
    if rng.random() < 0.25:
        return Damage("delete", rng.choice([*folders, "journal", "newest state", "study.toml"]))
    what: Literal["flip", "cut"] = "flip" if rng.random() < 0.6 else "cut"
    return Damage(what, rng.choice(files), round(rng.random(), 3))
