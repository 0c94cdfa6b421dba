"""Settings that IRFT and RFT share: the stages of a run, and how the policy answers at the beginning of each."""

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_select.training import _compat
from hf_select.training.reward_learning.demonstrations import DEFAULT_MAX_LEFT_OUT
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from transformers import TrainingArguments
else:
    TrainingArguments = object  # StagesConfig comes before a configuration of TRL in the bases of a class


@dataclass
class StagesConfig(TrainingArguments):
    """Settings of stages and of the answers that each begins with, to be put before a configuration of TRL.
    `num_train_epochs` counts the passes of one stage."""

    num_stages: int = field(
        default=5,  # code: 5 slices of 10,000 prompts; paper: "IRFT T=5", caption of table 8
        metadata={
            "help": "T: number of stages; the policy answers at the beginning of each. 1 is one SPIN iteration."
        },
    )
    data_per_stage: Literal["slice", "full"] = field(
        default="slice",  # code
        metadata={
            "help": "'slice': each stage has its own part of the rows, so that each prompt is answered once in a run. "
            "'full': each stage answers every prompt (SPIN)."
        },
    )
    stage_schedule: Literal["stage", "run"] = field(
        default="stage",  # code: optimizer and schedule restart in every stage
        metadata={
            "help": "'stage': optimizer state and learning-rate schedule restart with each stage. 'run': "
            "one optimizer and one schedule over all stages."
        },
    )
    num_train_epochs: float = field(
        default=1.0,  # code: 1 for the 7B stages; caption of table 3 and SPIN: 2
        metadata={"help": "Passes over the rows of a stage; a whole number."},
    )
    stage_learning_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Peak learning rate of each stage, instead of one for all (SPIN: 5e-7 5e-7 1e-7 1e-7)."},
    )

    # Answers

    max_length: int = field(
        default=1024,  # SPIN's code
        metadata={"help": "Tokens of prompt and completion. Longer rows are left out and counted."},
    )
    max_completion_length: int = field(
        default=256,  # code and SPIN's code: 256 new tokens
        metadata={"help": "Tokens of an answer; longer demonstrations are left out and counted."},
    )
    max_left_out: float = field(
        default=DEFAULT_MAX_LEFT_OUT,
        metadata={
            "help": "Largest share of the rows that may be left out because they are too long or have no response; "
            "above it training does not begin."
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; 1 draws from the policy itself, 0 is greedy."}
    )
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 is the whole distribution."})
    top_k: int = field(default=0, metadata={"help": "Top-k sampling; 0 is the whole vocabulary."})
    generation_tokens_per_batch: int = field(
        default=32768,
        metadata={
            "help": "Tokens of one batch of generation: prompts, answers and padding. Halved when memory runs out."
        },
    )
    rows_per_shard: int = field(
        default=256,
        metadata={"help": "Answers per file. A killed run repeats at most this many."},
    )
    use_transformers_continuous_batching: bool = field(
        default=False,
        metadata={"help": "Continuous batching of transformers (generate_batch)."},
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of its engine: page_size, num_blocks, max_batch_tokens ..."}
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Under ZeRO-3 gather the weights on each device for generation, which is far faster. False where "
            "they do not fit."
        },
    )
    use_vllm: bool = field(default=False, metadata={"help": "Generate with vLLM, through TRL (extra `vllm`)."})
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate", metadata={"help": "'colocate': on the training devices. 'server': `trl vllm-serve`."}
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "URL of the server."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Devices per colocated model."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of a device's memory for colocated vLLM."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=True, metadata={"help": "Let colocated vLLM release its memory while a stage trains."}
    )

    # Logging, memory

    activation_checkpointing: bool | None = field(
        default=True,  # as in every trainer of TRL 1.16, there under the name that transformers 5.23 takes back
        metadata={"help": "Recompute activations in the backward pass instead of keeping them."},
    )
    num_completions_to_log: int = field(
        default=8, metadata={"help": "Answers of each stage that log_completions shows next to their demonstrations."}
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Print a table of answers of each stage and keep it in output_dir/_completions, which Trainer "
            "does not upload."
        },
    )

    # Settings of TRL's configuration that this trainer would ignore: setting one is an error. `_method` holds the
    # names of TRL's method and of ours for the message.
    _ignored: ClassVar[tuple[str, ...]] = ()
    _method: ClassVar[tuple[str, str]] = ("", "")

    def __post_init__(self) -> None:
        _compat.settle_checkpointing(self)
        super().__post_init__()
        check_choices(self)
        self._reject_ignored_settings()
        self._check_ranges()

    def _reject_ignored_settings(self) -> None:
        theirs, ours = self._method
        for f in fields(self):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in self._ignored and getattr(self, f.name) != default:
                raise ValueError(f"{f.name} is a setting of {theirs} that {ours} does not have; leave it out.")

    def _check_ranges(self) -> None:
        for name, smallest in (("num_stages", 1), ("rows_per_shard", 1), ("max_completion_length", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}.")
        if self.num_train_epochs < 1 or self.num_train_epochs != int(self.num_train_epochs):
            raise ValueError(
                f"num_train_epochs is {self.num_train_epochs}; a stage makes whole passes over its rows, at least 1."
            )
        self._check_one_per_stage("stage_learning_rates")
        if self.max_length is None or self.max_completion_length >= self.max_length:
            raise ValueError(
                f"max_completion_length is {self.max_completion_length} and max_length {self.max_length}, which "
                "leaves no room for a prompt; raise max_length."
            )
        if not 0 <= self.max_left_out <= 1:
            raise ValueError(f"max_left_out is {self.max_left_out}; it must be a share of the rows, from 0 to 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p} and top_k {self.top_k}; they must be at least "
                "0, in (0, 1] and at least 0."
            )
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("use_vllm and use_transformers_continuous_batching exclude each other; choose one.")
        if self.stage_schedule == "run" and self.stage_learning_rates is not None:
            raise ValueError('stage_learning_rates need stage_schedule="stage"; one schedule has one learning rate.')

    def _check_one_per_stage(self, name: str) -> None:
        values: Any = getattr(self, name)
        if values is not None and len(values) != self.num_stages:
            raise ValueError(f"{name} has {len(values)} values for {self.num_stages} stages; give one for each.")
