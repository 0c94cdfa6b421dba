"""Sampling settings shared by all generators and trainers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings of an answer. The defaults sample from the model's own distribution.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: sample from the smallest set of most likely tokens with at least this probability; 1 is all tokens.
        top_k: sample from this many of the most likely tokens; 0 is all tokens.
        max_new_tokens: longer answers are cut, with finish reason "length".
        seed: seed of the answer; None: a random one.
    Raises: ValueError for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")

    def settings(self) -> dict[str, float | int]:
        """The settings without the seed, which differs between answers."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
        }
