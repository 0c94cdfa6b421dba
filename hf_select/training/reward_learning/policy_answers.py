"""The policy of a trainer answers all prompts of a stage, part by part onto disk, under DDP, DeepSpeed and FSDP.

The main process decides which parts are missing and assigns them to the processes; each writes its own. Where each
device has the whole weights (DDP, ZeRO-1 and 2, ZeRO-3 gathered), processes answer independently and synchronise at
the end. Where all processes take part in each forward pass (FSDP, ZeRO-3 not gathered), all make the same number of
`generate` calls, including those with no prompts left: otherwise the others would deadlock.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import xxhash
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from hf_select.models import batching
from hf_select.models.sampling import Sampling
from hf_select.training import _compat
from hf_select.training.reward_learning.demonstrations import PROMPT
from hf_select.training.reward_learning.sampling import answers, answers_continuously
from hf_select.training.reward_learning.stage_folder import StageFolder
from hf_select.training.sharding import gathered_parameter, has_zero3_parameters, uses_fsdp


if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, Trainer
    from trl.generation.vllm_generation import VLLMGeneration


Decision = TypeVar("Decision")


def answer_all(
    trainer: Any,
    folder: StageFolder,
    demonstrations: Dataset,
    seeds: list[int],
    sampling: Sampling,
    stop_ids: list[int],
    engine: "VLLMGeneration | None" = None,
    description: str = "answers",
) -> dict[str, float]:
    """Write every part of the folder that does not exist yet.

    Args:
        trainer: prepared, as in its training loop; its args are a StagesConfig.
        demonstrations: with `prompt_ids`, one row per answer.
        seeds: of the random stream of each answer.
        engine: TRL's VLLMGeneration, instead of the model's own `generate`.
    Returns: number of answers generated, tokens and seconds, in this process.
    Raises: ValueError if the processes do not share a file system.
    """
    accelerator = trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    shards = on_main(accelerator, folder.missing)
    generated = {"answers": 0, "tokens": 0}
    begin = time.perf_counter()
    generation = _Generation(trainer, folder, demonstrations, seeds, sampling, stop_ids, engine)
    if shards:
        if engine is not None:
            engine.sync_weights()
        with _policy(trainer, engine is None) as model:
            rounds = [shards[i : i + world] for i in range(0, len(shards), world)]
            hidden = trainer.args.disable_tqdm or rank > 0
            for shards_of_round in tqdm(rounds, desc=description, unit="part", disable=hidden):
                mine = shards_of_round[rank] if rank < len(shards_of_round) else None
                if mine is None and engine is None and not generation.lockstep:
                    continue
                completions = generation.answer(model, shards_of_round[0] if mine is None else mine, shards_of_round)
                if mine is None:  # this process only took part in the calls of the others
                    continue
                folder.write(mine, completions, [ids[-1] in stop_ids for ids in completions])
                generated["answers"] += len(completions)
                generated["tokens"] += sum(map(len, completions))
    accelerator.wait_for_everyone()
    missing = folder.missing()
    if missing:
        raise ValueError(
            f'{len(missing)} parts of "{folder.folder}" were written by other processes and are not visible to '
            f"process {rank}; output_dir must be on a file system that all machines share."
        )
    return {**generated, "seconds": time.perf_counter() - begin}


@dataclass
class _Generation:
    """Generates the answers of a part; the fields are arguments of `answer_all`."""

    trainer: Any
    folder: StageFolder
    demonstrations: Dataset
    seeds: list[int]
    sampling: Sampling
    stop_ids: list[int]
    engine: "VLLMGeneration | None"

    def __post_init__(self) -> None:
        trainer, self.args = self.trainer, self.trainer.args
        gathered = self.args.ds3_gather_for_generation
        sharded = uses_fsdp(trainer) or (not gathered and has_zero3_parameters(trainer.model))
        self.lockstep = self.engine is None and sharded  # all processes take part in each forward pass

    def answer(self, model: "PreTrainedModel", shard: int, shards_of_round: list[int]) -> list[list[int]]:
        """Answers to the prompts of a part, while other processes answer the other parts of the round."""
        args = self.args
        prompts, limits, streams = self._prompts_of(shard)
        if self.engine is not None:  # a server takes equally many prompts of every process
            size = max(len(self.folder.rows_of(other)) for other in shards_of_round)
            padded = prompts + [prompts[-1]] * (size - len(prompts))
            completions = self.engine.generate(prompts=padded, images=None, num_generations=1)[1][: len(prompts)]
            return [list(ids)[:limit] for ids, limit in zip(completions, limits, strict=True)]
        if args.use_transformers_continuous_batching:
            settings = args.transformers_continuous_batching_config
            return answers_continuously(model, prompts, streams[0], limits, self.sampling, self.stop_ids, settings)
        calls = max(map(self._num_batches, shards_of_round)) if self.lockstep else None
        tokens = args.generation_tokens_per_batch
        return answers(model, prompts, streams, limits, self.sampling, self.stop_ids, tokens, calls=calls)

    def _prompts_of(self, shard: int) -> tuple[list[list[int]], list[int], list[int]]:
        """(prompts of a part, longest answer to each, seed of each)"""
        rows = self.folder.rows_of(shard)
        prompts = self.demonstrations.select(rows)[PROMPT]
        limits = [min(self.sampling.max_new_tokens, self.args.max_length - len(prompt)) for prompt in prompts]
        return list(prompts), limits, [self.seeds[row] for row in rows]

    def _num_batches(self, shard: int) -> int:
        prompts, limits, _ = self._prompts_of(shard)
        lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        return len(batching.plan(lengths, self.args.generation_tokens_per_batch))


def on_main(accelerator: "Accelerator", decide: Callable[[], Decision]) -> Decision:
    """The main process's result of `decide`, in all processes. Its ValueError or OSError is raised in all of them,
    so that none waits for a process that has stopped."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [decide(), None]
        except (ValueError, OSError) as error:
            outcome = [None, error]
    broadcast_object_list(outcome, from_process=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def _policy(trainer: Any, needed: bool) -> Iterator[Any]:
    """The model that generates, in eval mode and without checkpointing (with it `generate` silently returns wrong
    tokens in train mode: transformers 5.23). Its state is restored at the end."""
    if not needed:
        yield None
        return
    with _compat.model_for_generation(trainer) as unwrapped:
        model: Any = unwrapped
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)
    if not trainer.args.ds3_gather_for_generation and has_zero3_parameters(trainer.model):
        _compat.renew_zero3_hooks(trainer.model_wrapped)


def weights_digest(trainer: "Trainer") -> str:
    """Hash of all parameters of the trainer's model, gathered one at a time, so it does not depend on sharding."""
    digest = xxhash.xxh3_128()
    for name, parameter in cast(nn.Module, trainer.model).named_parameters():
        with gathered_parameter(parameter) as tensor:
            if trainer.accelerator.is_main_process:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return on_main(trainer.accelerator, digest.hexdigest)
