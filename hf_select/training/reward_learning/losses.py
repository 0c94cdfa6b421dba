"""Losses on pairs of completions of one prompt, as pure functions of their log-probabilities.

Notation, after 2405.17888 and SPIN (2401.01335): y a demonstration, y' an answer of the policy itself, lp(y) the *sum*
of the log-probabilities of a completion's tokens in nats (not the mean), lp_ref(y) the same under the reference.

    r(y) = beta * (lp(y) - lp_ref(y))            the implicit reward, up to a term of the prompt that cancels
    z = r(y) - r(y')                             the margin
    sigmoid  -log sigmoid(z)                     IRFT, SPIN, and DPO's loss with y chosen and y' rejected
    hinge    max(0, 1 - z)
    linear   -z                                  the gradient of inverse reinforcement learning itself; unbounded
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


# B pairs

PairLoss = Literal["sigmoid", "hinge", "linear"]


def implicit_reward(log_probability: Tensor, reference: Tensor, beta: float) -> Tensor:
    """beta * (lp - lp_ref), (B,)."""
    return beta * (log_probability - reference)


def pair_loss(margin: Tensor, kind: PairLoss = "sigmoid") -> Tensor:
    """Loss of each pair from its margin z, (B,). Its gradient in lp(y) is beta * dloss/dz, in lp(y') minus that."""
    if kind == "sigmoid":
        return -F.logsigmoid(margin)
    if kind == "hinge":
        return torch.relu(1 - margin)
    return -margin
