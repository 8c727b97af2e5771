"""How a report writes names, lists, numbers and differences."""

from collections.abc import Sequence
from datetime import UTC, datetime

from grandrounds.report.metrics import Metric

TIED = "\u00a0"  # keeps a number and its unit on one line


def shown(site: str) -> str:
    """Write a site's name as a name."""
    return site[:1].upper() + site[1:]


def listed(words: Sequence[str]) -> str:
    """Join words as people do: "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, noun: str) -> str:
    """Put a number before a noun that takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"


def level(value: float, metric: Metric) -> str:
    """Write a score, for example "24.3 dB"."""
    return f"{value:.{1 if metric.unit else 2}f}{TIED}{metric.unit}".rstrip()


def amount(difference: float, metric: Metric) -> str:
    """Write how large a difference is, without its sign, for example "0.4 dB"."""
    return level(abs(difference), metric)


def gained(difference: float, metric: Metric) -> str:
    """Write a gain with its sign: above 0 is better, whichever way the metric runs."""
    sign = "+" if difference > 0 else "-"
    return f"{sign}{amount(difference, metric)}"


def compared(difference: float, metric: Metric) -> str:
    """Write a difference as "0.4 dB better", "0.3 dB worse" or "practically equal"."""
    if abs(difference) < metric.negligible:
        return "practically equal"
    return f"{amount(difference, metric)} {'better' if difference > 0 else 'worse'}"


def compared_with(difference: float, metric: Metric) -> str:
    """Write a difference so that what it is compared with can follow."""
    small = abs(difference) < metric.negligible
    return f"{compared(difference, metric)} {'to' if small else 'than'}"


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
