"""The words for each kind of task, and for names and numbers, are defined here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from grandrounds.core.extensions import is_address
from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.depth import Span
from grandrounds.report.analysis.metrics import METRICS, Metric
from grandrounds.report.analysis.statistics import LEVEL, Interval, PairedDifference

_PLAIN = Metric("", "validation score", "", True, 0.005, "higher is better")
LOG_SCORE = Metric("log_score", "log loss below 0", "", True, 0.01, "0 is perfect")


@dataclass(frozen=True)
class Wording:
    """The words for one kind of task: the score that validation watches, and what pictures show.

    `graded` tells whether a pixel can be more or less wrong, or only right or wrong.
    """

    watched: Metric = _PLAIN
    pictures: bool = True
    target: str = "What is right"
    target_note: str = "what the model should find"
    made: str = "Found by"
    error: str = "Error"
    error_note: str = "Error: the difference between what was found and what is right."
    graded: bool = True


WORDINGS = {
    "synthesis": Wording(
        watched=METRICS["psnr"],
        target="Target",
        target_note="what it should look like",
        made="Image synthesised by",
        error_note="Error: the difference between the synthesised image and the target, as a share "
        "of the brightness range. One scale for the whole report.",
    ),
    "segmentation": Wording(
        watched=METRICS["dice"],
        target="Reference outline",
        target_note="what should be outlined; each structure has its own grey",
        made="Outline drawn by",
        error="Differences",
        error_note="Differences: the pixels that were given to another structure, or to none.",
        graded=False,
    ),
    "classification": Wording(watched=LOG_SCORE, pictures=False),
    "tabular": Wording(watched=LOG_SCORE, pictures=False),
}


def wording(task: str) -> Wording:
    """Return the words for a kind of task; plain ones where it is none of the house's."""
    return WORDINGS.get(task, Wording(pictures=not is_address(task)))


TIED = "\u00a0"  # keeps a number and its unit on one line
MINUS = "\u2212"


def display_name(site: str) -> str:
    """Write a site's name as a name."""
    return site[:1].upper() + site[1:]


def join_words(words: Sequence[str]) -> str:
    """Join words as people do: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def capital(sentence: str) -> str:
    """Begin a sentence with a capital letter."""
    return sentence[:1].upper() + sentence[1:]


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, which takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def level(value: float, metric: Metric) -> str:
    """Write a score, for example "24.3 dB"."""
    return f"{value:.{1 if metric.unit else 2}f}{TIED}{metric.unit}".rstrip()


def amount(difference: float, metric: Metric) -> str:
    """Write how large a difference is, without its sign, for example "0.4 dB"."""
    return level(abs(difference), metric)


def trifle(metric: Metric) -> str:
    """Write the difference up to which scores are practically equal."""
    return f"{metric.negligible:g}{TIED}{metric.unit}".rstrip()


def signed(difference: float, metric: Metric) -> str:
    """Write a difference with its sign, and one digit more than a level has."""
    digits = 2 if metric.unit else 3
    rounded = f"{abs(difference):.{digits}f}"
    sign = "" if not float(rounded) else "+" if difference > 0 else MINUS
    return f"{sign}{rounded}"


def steps(found: Span | None) -> str:
    """Write a count of steps, or its range; "not known" where it is not."""
    if found is None:
        return "not known"
    if found.low == found.high:
        return f"{found.low:,}"
    return f"{found.low:,} to {found.high:,}"


def own_steps(arm: Arm) -> str:
    """Write a hospital's own steps for the tested model; of pooled data there are all."""
    found = steps(arm.local_steps)
    return f"{found}, pooled" if arm.pooled and arm.local_steps else found


def tick(value: float) -> str:
    """Write an axis's mark."""
    return f"{value:g}".replace("-", MINUS)


def gained(difference: float, metric: Metric) -> str:
    """Write a gain with its sign and unit: above 0 is better, whichever way the metric runs."""
    return f"{signed(difference, metric)}{TIED}{metric.unit}".rstrip()


def between(interval: Interval | None, metric: Metric) -> str:
    """Write the interval of a difference, for example "+0.12 to +0.40"; empty where none is."""
    if interval is None:
        return ""
    return f"{signed(interval.low, metric)} to {signed(interval.high, metric)}"


def within(interval: Interval | None, metric: Metric) -> str:
    """Write the interval of a score, for example "23.85 to 24.40"; empty where none is."""
    if interval is None:
        return ""
    digits = 2 if metric.unit else 3
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def probability(p: float | None) -> str:
    """Write a p-value."""
    if p is None:
        return "too few"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def few(words: Sequence[str], most: int = 6) -> str:
    """Join at most `most` words as people do, and count the others."""
    if len(words) <= most:
        return join_words(words)
    return join_words([*words[:most], f"{len(words) - most} more"])


def operations(flops: float) -> str:
    """Write a number of floating-point operations in the unit that people use for it."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flops >= scale:
            return f"{flops / scale:.1f}{TIED}{unit}"
    return f"{flops:.0f}{TIED}FLOP"


def arrow(task: str) -> str:
    """Write a task such as "T1w->T2w" with a real arrow."""
    return task.replace("->", " → ")


def size(num_bytes: int) -> str:
    """Write a number of bytes in the unit that people use for it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes" if num_bytes else "nothing"


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def day(moment: float) -> str:
    """Write unix seconds as a date, in UTC."""
    return f"{datetime.fromtimestamp(moment, UTC):%d %B %Y}".lstrip("0")


INTERVAL = f"{LEVEL} % interval"


def format_difference(paired: PairedDifference, metric: Metric) -> str:
    """Write a difference and its interval, if any: "+0.31 dB, 95 % interval +0.10 to +0.50"."""
    if paired.interval is None:
        return gained(paired.mean, metric)
    return f"{gained(paired.mean, metric)}, {INTERVAL} {between(paired.interval, metric)}"
