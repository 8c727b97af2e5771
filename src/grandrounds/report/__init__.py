"""The report of a run or of a comparison: numbers, sentences and one HTML file, without torch."""

from grandrounds.report.facts import Facts, read_facts
from grandrounds.report.html import write_report

__all__ = ["Facts", "read_facts", "write_report"]
