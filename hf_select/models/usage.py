"""What running a model has cost."""

from dataclasses import dataclass


@dataclass
class Usage:
    """What measuring has cost so far. FLOPs are counted, not timed: 2 per multiply-add of the weights for every
    processed token (attention scores, a few percent at chat lengths, are left out)."""

    sequences: int = 0
    tokens: int = 0  # real tokens in, shared prefixes counted each time they are used
    processed_tokens: int = 0  # tokens the backbone ran over, padding included, shared prefixes once
    seconds: float = 0.0
    flops: float = 0.0
