"""An aggregation of one's own: a method whose server does something else with the updates."""

from dataclasses import dataclass, replace

import torch

import grandrounds as gr


@dataclass(frozen=True)
class ClippedMean(gr.Method):
    """Sun et al. 2019: no site moves the model further than the median site does."""

    def combine(self, state: gr.State, updates: gr.Updates) -> gr.State:
        """Average the sites' moves, each cut to the median length."""
        old, sites = state.weights, updates.of_each().values()
        moves = [{name: site.get(name, w) - w for name, w in old.items()} for site in sites]
        far = torch.stack([torch.cat([m.flatten() for m in a.values()]).norm() for a in moves])
        shares = (far.median() / far.clamp_min(1e-12)).clamp(max=1) / len(moves)
        cut = [{n: s * m for n, m in a.items()} for s, a in zip(shares, moves, strict=True)]
        return replace(state, weights={n: w + sum(a[n] for a in cut) for n, w in old.items()})
