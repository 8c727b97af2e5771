"""Model card and data sheet of a finished run, filled from its study and results, without torch.

What only people know is left blank and marked. Mitchell et al. 2019; Gebru et al. 2021.
"""

from grandrounds.cards.write import write_cards

__all__ = ["write_cards"]
