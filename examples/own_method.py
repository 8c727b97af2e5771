"""A personalised method of one's own: what a site does in a round, and what it keeps."""

from dataclasses import dataclass

import grandrounds as gr


@dataclass(frozen=True)
class OwnMRMTL(gr.Method):
    """Liu et al. 2022: each site trains a model of its own, pulled towards the mean of all.

    site      w_k <- w_k - eta (g(w_k) + strength (w_k - w)), from the site's own w_k
    server    w <- sum_k n_k / n w_k; each site is scored with its w_k
    """

    strength: float = 0.1

    def train(self, site: gr.LocalRound) -> gr.Update:
        """Go on from the site's own model, pulled towards the mean."""
        site.restart(site.kept("personal") or site.first)
        update = site.train(gr.Pull(self.strength, towards=site.start))
        return update.keeping(personal=update.model)
