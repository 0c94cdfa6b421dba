"""Records the seconds of a training run in its log, through kills."""

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback


if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class Clock(TrainerCallback):
    """Logs with each step the seconds since training began, including those before a kill: checkpoints keep the
    log."""

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Continue from the last second of the log."""
        before = max((entry["seconds"] for entry in state.log_history if "seconds" in entry), default=0.0)
        self._begin = time.perf_counter() - before

    def on_log(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Add the seconds to the entry that was just made."""
        state.log_history[-1]["seconds"] = time.perf_counter() - self._begin
