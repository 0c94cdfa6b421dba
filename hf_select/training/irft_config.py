"""Settings of IRFT and SPIN: those of TRL's DPO, whose loss a stage is, and of the stages."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from trl import DPOConfig  # pyright: ignore[reportPrivateImportUsage]

from hf_select.choices import check_choices
from hf_select.training.losses import PairLoss


# Settings of DPO that mean nothing here, or something else: a value that was set and not used would be a lie.
_NOT_OURS = (
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "label_smoothing",
    "ld_alpha",
    "use_weighting",
    "loss_weights",
    "discopop_tau",
    "sync_ref_model",
    "truncation_mode",
    "padding_free",
)


@dataclass
class IRFTConfig(DPOConfig):
    """Configuration of the [`IRFTTrainer`]: [`~trl.DPOConfig`] and the fields below, each described in its `help`.

    `num_train_epochs` counts the passes over the pairs of one stage. "Code" in a default's source is the authors'
    (configs_stagewise_7b); the body of the paper could not be obtained.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    # Stages

    num_stages: int = field(
        default=5,  # code: 5 slices of 10,000 prompts; paper: "IRFT T=5", caption of table 8
        metadata={"help": "T: how many times the policy answers anew. 1 is one iteration of SPIN."},
    )
    data_per_stage: Literal["slice", "full"] = field(
        default="slice",  # code
        metadata={
            "help": "'slice': each stage has its own part of the rows, so that all stages together answer each prompt "
            "once. 'full': each stage answers every prompt (SPIN)."
        },
    )
    ref_update: Literal["stage", "fixed"] = field(
        default="stage",  # code and SPIN; the formula of the paper has a fixed reference
        metadata={
            "help": "'stage': the reference is the policy as it was when the stage began. 'fixed': as it was when "
            "training began (its trainable weights are kept in host memory)."
        },
    )
    mix_last_stage: bool = field(
        default=False,
        metadata={
            "help": "Train on the pairs of the stage before as well, with log-probabilities under the present "
            "reference (SPIN: iterations 1-3 train on 100k pairs, iteration 0 on 50k)."
        },
    )
    stage_schedule: Literal["stage", "run"] = field(
        default="stage",  # code: optimizer and schedule restart in every stage
        metadata={
            "help": "'stage': the optimizer's state and the learning-rate schedule begin anew with each stage. 'run': "
            "one optimizer and one schedule over all stages."
        },
    )
    num_train_epochs: float = field(
        default=1.0,  # code: 1 for the 7B stages; caption of table 3 and SPIN: 2
        metadata={"help": "Passes over the pairs of a stage; a whole number."},
    )
    learning_rate: float = field(
        default=5e-7,  # code and SPIN, appendix B
        metadata={"help": "Highest learning rate of a stage."},
    )
    stage_learning_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Highest learning rate of each stage in place of one (SPIN: 5e-7 5e-7 1e-7 1e-7)."},
    )
    stage_betas: list[float] | None = field(
        default=None, metadata={"help": "beta of each stage in place of one (SPIN: 0.1 0.1 0.1 5.0)."}
    )

    # Loss

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],  # code
        metadata={"help": "One of 'sigmoid', 'hinge', 'linear' (unbounded): see hf_select.training.losses."},
    )
    nll_coef: float = field(
        default=0.0,  # the published loss has no such term
        metadata={"help": "Coefficient of the mean negative log-likelihood of the demonstrations' tokens, added."},
    )

    # Answers

    max_length: int = field(
        default=1024,  # SPIN's code
        metadata={"help": "Tokens of prompt and completion. Rows that are longer are left out and counted."},
    )
    max_completion_length: int = field(
        default=256,  # code and SPIN's code: 256 new tokens
        metadata={"help": "Tokens of an answer, and so of a demonstration: longer ones are left out and counted."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling; 1 draws from the policy itself, 0 takes the likeliest token."}
    )
    top_p: float = field(default=1.0, metadata={"help": "Of sampling; 1 is all of the distribution."})
    top_k: int = field(default=0, metadata={"help": "Of sampling; 0 is all of the vocabulary."})
    generation_tokens_per_batch: int = field(
        default=32768,
        metadata={
            "help": "Tokens of one batch of generation, prompts, answers and padding; halved when memory runs out."
        },
    )
    rows_per_shard: int = field(
        default=256,
        metadata={"help": "Answers that are written together; a killed run has to make at most so many again."},
    )
    use_transformers_continuous_batching: bool = field(
        default=False,
        metadata={"help": "Let a prompt take the place of an answer that has ended (transformers' generate_batch)."},
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of its engine: page_size, num_blocks, max_batch_tokens ..."}
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Under ZeRO-3 put the weights together on each device for generation: far faster. False where "
            "they do not fit."
        },
    )
    use_vllm: bool = field(default=False, metadata={"help": "Answer with vLLM, through TRL (extra `vllm`)."})
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate", metadata={"help": "'colocate': on the training devices. 'server': `trl vllm-serve`."}
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Where the server listens."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Devices that share one colocated model."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of a device's memory for colocated vLLM."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=True, metadata={"help": "Let colocated vLLM give its memory back while a stage trains."}
    )

    # Logging, memory

    activation_checkpointing: bool | None = field(
        default=True,  # as in every trainer of TRL 1.16, there under the name that transformers 5.23 takes back
        metadata={"help": "Compute activations again in the backward pass in place of keeping them."},
    )
    num_completions_to_log: int = field(
        default=8, metadata={"help": "Answers of each stage in the table of completions beside their demonstrations."}
    )
    log_completions: bool = field(default=False, metadata={"help": "Also print that table."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        for f in fields(self):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in _NOT_OURS and getattr(self, f.name) != default:
                raise ValueError(f"{f.name} is a setting of DPO that IRFT does not have; leave it out.")
        losses = get_args(PairLoss)
        if len(self.loss_type) != 1 or self.loss_type[0] not in losses:
            raise ValueError(f"loss_type is {', '.join(self.loss_type)}; it can be one of {', '.join(losses)}.")
        for name, smallest in (("num_stages", 1), ("rows_per_shard", 1), ("max_completion_length", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}.")
        if self.num_train_epochs < 1 or self.num_train_epochs != int(self.num_train_epochs):
            raise ValueError(
                f"num_train_epochs is {self.num_train_epochs}; a stage takes whole passes over its pairs, at least 1."
            )
        for name in ("stage_learning_rates", "stage_betas"):
            values: Any = getattr(self, name)
            if values is not None and len(values) != self.num_stages:
                raise ValueError(f"{name} has {len(values)} values for {self.num_stages} stages; give one for each.")
        if self.max_length is None or self.max_completion_length >= self.max_length:
            raise ValueError(
                f"max_completion_length is {self.max_completion_length} and max_length {self.max_length}, which "
                "leaves no room for a prompt; raise max_length."
            )
        if any(beta <= 0 for beta in (self.beta, *(self.stage_betas or []))):
            raise ValueError("beta must be above 0: at 0 the loss does not see the policy.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p} and top_k {self.top_k}; they must be at least "
                "0, in (0, 1] and at least 0."
            )
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("use_vllm and use_transformers_continuous_batching are two ways to answer; choose one.")
        if self.stage_schedule == "run" and self.stage_learning_rates is not None:
            raise ValueError('stage_learning_rates need stage_schedule="stage"; one schedule has one learning rate.')
        self.precompute_ref_log_probs = True  # tells DPOTrainer to load no second model: references come with a stage
