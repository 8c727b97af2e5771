"""The two cards are written here from templates, with limitations that follow from the facts."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grandrounds.core.files import make_output_folder, write_text
from grandrounds.core.quoting import Markdown, code_span, for_markdown
from grandrounds.core.run_folder import ResultFolder
from grandrounds.report.cards.facts import CardFacts, read_card_facts, totals
from grandrounds.report.prose.protection import left_open, protections
from grandrounds.report.prose.vocabulary import join_words

FEW_PATIENTS = 20  # a mean over fewer says little about a hospital


def limits(facts: CardFacts) -> list[str]:
    """Return sentences on what the results do not show, or show against the model."""
    said = [
        _simulated(facts),
        _few(facts),
        _apart(facts),
        _worse_off(facts),
        _unseen(facts),
        _seeds(facts),
        _missed(facts),
        _exposed(facts),
    ]
    return [sentence for sentence in said if sentence]


def _simulated(facts: CardFacts) -> str:
    if not facts.simulated:
        return ""
    return (
        f"The data of {join_words(facts.simulated)} are simulated: no patient was scanned. "
        "Scores on simulated data say little about real patients."
    )


def _few(facts: CardFacts) -> str:
    few = [f"{site} {s.spread.n}" for site, s in facts.sites.items() if s.spread.n < FEW_PATIENTS]
    if not few:
        return ""
    return (
        f"Few test patients: {join_words(few)}. With fewer than {FEW_PATIENTS}, a site's mean may "
        "lie far from what its other patients would give."
    )


def _apart(facts: CardFacts) -> str:
    if len(facts.sites) < 2:
        return ""
    worst, *_, best = facts.ranked
    return (
        f"Sites differ: the worst is {worst.site} with {worst.mean}, the best "
        f"{best.site} with {best.mean} ({worst.metric.label}, mean over patients)."
    )


def _worse_off(facts: CardFacts) -> str:
    if facts.arm.local:
        return "Every site trained alone: nothing was learned from another site."
    if not facts.best_alone:
        return (
            "Whether a site would have been better off training alone is unknown: no finished run "
            "beside this one trained alone."
        )
    worse = [
        f"{site} ({facts.sites[site].mean}; alone {alone.mean})"
        for site, alone in facts.best_alone.items()
        if site in facts.sites and alone.worth > facts.sites[site].worth
    ]
    if not worse:
        return "No site scored better by training alone, in the same comparison."
    return f"By training alone, these sites scored better: {join_words(worse)}."


def _unseen(facts: CardFacts) -> str:
    if facts.unseen:
        return ""
    return "How the model does at a hospital that did not train it is unknown: none was held out."


def _seeds(facts: CardFacts) -> str:
    if len(facts.seeds) > 1:
        return (
            f"This card is about seed {facts.run.seed}; the comparison has seeds "
            f"{join_words([str(seed) for seed in facts.seeds])}."
        )
    return "One random seed: what another one would change is unknown."


def _missed(facts: CardFacts) -> str:
    found = [f"{site} ({len(rounds)} rounds)" for site, rounds in facts.missed.items()]
    return f"Rounds went on without these sites: {join_words(found)}." if found else ""


def _exposed(facts: CardFacts) -> str:
    if not sum(work.bytes_up for work in facts.run.work):
        return ""
    told = [epsilon for curve in facts.run.epsilons.values() for _, epsilon in curve]
    return left_open(facts.study, max(told, default=None))


BLANK = "to be completed by the site"
CARDS = ("model-card.md", "data-sheet.md")


def write_cards(folder: Path, *, out: Path | None, arm: str | None, seed: int | None) -> list[Path]:
    """Write `model-card.md` and `data-sheet.md` of a finished run, and return their paths.

    Raises `BadInput`, `BadFolder` or `DiskFailed`.
    """
    facts = read_card_facts(folder, arm=arm, seed=seed)
    target = out or ResultFolder(folder).card
    make_output_folder(target)
    texts = {target / name: render_card(facts, name) for name in CARDS}
    for path, text in texts.items():
        write_text(path, text, refusal="{path}: the card cannot be written: {reason}")
    return list(texts)


def render_card(facts: CardFacts, name: str) -> str:
    """Return the text of one of `CARDS`; what others wrote is escaped, wherever it stands."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # that would escape for HTML
        finalize=for_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(f"{name}.j2")
    return template.render(
        facts=facts,
        limits=limits(facts),
        totals=totals,
        protections=protections(facts.study),
        code_span=code_span,
        blank=Markdown(f"*{BLANK}*"),
    )
