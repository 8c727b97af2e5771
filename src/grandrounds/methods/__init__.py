"""Methods: what is shared, how a site trains, how updates are combined.

A new one is a preset and a dict entry.
"""

from grandrounds.methods.presets import METHODS

__all__ = ["METHODS"]
