"""Train on a number of tokens, in this process or launched on several devices."""

import tempfile
from typing import Any

from datasets import Dataset

from hf_select.models.causal_lm import CausalLM
from hf_select.training.equal_tokens import Recipe, Trained, plan_steps
from hf_select.training.planned_steps import train


def train_on_tokens(recipe: Recipe, lm: CausalLM, rows: Dataset, tokens: int, steps: int, seed: int) -> Trained:
    """The base model after training on `tokens` tokens of the rows in `steps` steps; see `plan_steps`.

    Args:
        lm: the base model. It is trained itself, unless the run is launched with an accelerate_config.
        rows: input_ids and labels.
    """
    loaded = lm.load()
    # An embedding lookup costs no multiplications.
    flops = (6.0 if recipe.lora_r is None else 4.0) * (loaded.backbone_parameters + loaded.head_parameters)
    plan = plan_steps([len(ids) for ids in rows["input_ids"]], tokens, steps, seed)
    if recipe.accelerate_config is not None:
        from hf_select.training.launched import train_launched

        del loaded  # frees the devices for the launched processes
        lm.release()
        lm, figures = train_launched(recipe, rows, plan, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            trainer, figures = train(recipe, loaded.model, loaded.tokenizer, rows, plan, seed, folder)
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        lm = CausalLM(model.eval(), tokenizer=loaded.tokenizer)
    return Trained(lm, **figures, flops=flops * figures["tokens"])
