"""FedAvg."""

from grandrounds.algorithms.method import Method


class FedAvg(Method):
    """McMahan et al. 2017: every site trains all of the network, the server averages all of it.

    site      w_k <- w - eta g(w), batch by batch
    server    w <- sum_k n_k / n w_k
    """
