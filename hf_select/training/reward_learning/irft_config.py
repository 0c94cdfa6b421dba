"""Settings of IRFT and SPIN: those of TRL's DPO, whose loss a stage minimises, and of the stages."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from trl import DPOConfig  # pyright: ignore[reportPrivateImportUsage]

from hf_select.training.reward_learning.losses import PairLoss
from hf_select.training.reward_learning.releases import check_trl
from hf_select.training.reward_learning.stages_config import StagesConfig


check_trl()


@dataclass
class IRFTConfig(StagesConfig, DPOConfig):
    """Configuration of the [`IRFTTrainer`]: [`~trl.DPOConfig`], [`StagesConfig`] and the fields
    below, each described in its `help`.

    `num_train_epochs` counts the passes over the pairs of one stage. "Code" in a default's source is the authors'
    (configs_stagewise_7b); the body of the paper could not be obtained.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    # Stages

    ref_update: Literal["stage", "fixed"] = field(
        default="stage",  # code and SPIN; the formula of the paper has a fixed reference
        metadata={
            "help": "'stage': the reference is the policy at the beginning of the stage. 'fixed': the policy at the "
            "beginning of training (its trainable weights are kept in host memory)."
        },
    )
    mix_last_stage: bool = field(
        default=False,
        metadata={
            "help": "Also train on the pairs of the previous stage, with log-probabilities under the current "
            "reference (SPIN: iterations 1-3 train on 100k pairs, iteration 0 on 50k)."
        },
    )
    learning_rate: float = field(
        default=5e-7,  # code and SPIN, appendix B
        metadata={"help": "Peak learning rate of a stage."},
    )
    stage_betas: list[float] | None = field(
        default=None, metadata={"help": "beta of each stage, instead of one for all (SPIN: 0.1 0.1 0.1 5.0)."}
    )

    # Loss

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],  # code
        metadata={
            "help": "One of 'sigmoid', 'hinge', 'linear' (unbounded): see hf_select.training.reward_learning.losses."
        },
    )
    nll_coef: float = field(
        default=0.0,  # the published loss has no such term
        metadata={"help": "Coefficient of an added mean negative log-likelihood of the demonstrations' tokens."},
    )

    _ignored: ClassVar[tuple[str, ...]] = (
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
    _method: ClassVar[tuple[str, str]] = ("DPO", "IRFT")

    def __post_init__(self) -> None:
        super().__post_init__()
        losses = get_args(PairLoss)
        if len(self.loss_type) != 1 or self.loss_type[0] not in losses:
            raise ValueError(f"loss_type is {', '.join(self.loss_type)}; it must be one of {', '.join(losses)}.")
        self._check_one_per_stage("stage_betas")
        if any(beta <= 0 for beta in (self.beta, *(self.stage_betas or []))):
            raise ValueError("beta must be above 0: at 0 the loss does not depend on the policy.")
        self.precompute_ref_log_probs = True  # DPOTrainer then loads no second model
