"""The policy of a trainer answers all prompts of a stage: by all processes together, under DDP, DeepSpeed and FSDP,
part by part onto disk.

Which parts are missing is decided once, by the first process, and dealt out; every process writes its own. Where the
weights are whole on each device (DDP, ZeRO-1 and 2, ZeRO-3 gathered) processes answer independently of one another and
meet when all is written. Where each forward pass is made by all together (FSDP, ZeRO-3 not gathered) all make the same
number of `generate` calls, those that have nothing left to do included: otherwise the others would wait for ever.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import xxhash
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from trl.models import unwrap_model_for_generation  # pyright: ignore[reportPrivateImportUsage]

from hf_select.models import batching
from hf_select.models.sampling import Sampling
from hf_select.training import _compat
from hf_select.training.reward_learning.demonstrations import PROMPT, StageFolder
from hf_select.training.reward_learning.sampling import answers, answers_continuously


Result = TypeVar("Result")


def answer_all(
    trainer: Any,
    folder: StageFolder,
    demonstrations: Dataset,
    seeds: list[int],
    sampling: Sampling,
    stop_ids: list[int],
    engine: Any = None,
    description: str = "answers",
) -> dict[str, float]:
    """Write every part of the folder that is not there yet.

    Args:
        trainer: prepared, as in its training loop; its args say how to generate (see IRFTConfig).
        demonstrations: with `prompt_ids`, one row for each answer.
        seeds: of each answer's stream of random numbers.
        engine: TRL's VLLMGeneration in place of the model's own `generate`.
    Returns: number of answers made, tokens and seconds, of this process.
    """
    args, accelerator = trainer.args, trainer.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    shards = on_main(accelerator, folder.missing)
    made = {"answers": 0, "tokens": 0}
    begin = time.perf_counter()
    together = engine is None and _weights_in_pieces(trainer, args.ds3_gather_for_generation)

    def prompts_of(shard: int) -> tuple[list[list[int]], list[int], list[int]]:
        rows = folder.rows_of(shard)
        prompts = demonstrations.select(rows)[PROMPT]
        limits = [min(sampling.max_new_tokens, args.max_length - len(prompt)) for prompt in prompts]
        return list(prompts), limits, [seeds[row] for row in rows]

    def num_batches(shard: int) -> int:
        prompts, limits, _ = prompts_of(shard)
        lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        return len(batching.plan(lengths, args.generation_tokens_per_batch))

    def answered(model: Any, shard: int, of_round: list[int]) -> list[list[int]]:
        prompts, limits, streams = prompts_of(shard)
        if engine is not None:  # as many prompts from every process, since a server takes them in equal slices
            size = max(len(folder.rows_of(other)) for other in of_round)
            padded = prompts + [prompts[-1]] * (size - len(prompts))
            found = engine.generate(prompts=padded, images=None, num_generations=1)[1][: len(prompts)]
            return [list(ids)[:limit] for ids, limit in zip(found, limits, strict=True)]
        if args.use_transformers_continuous_batching:
            settings = args.transformers_continuous_batching_config
            return answers_continuously(model, prompts, streams[0], limits, sampling, stop_ids, settings)
        calls = max(map(num_batches, of_round)) if together else None
        return answers(
            model, prompts, streams, limits, sampling, stop_ids, args.generation_tokens_per_batch, calls=calls
        )

    if shards:
        if engine is not None:
            engine.sync_weights()
        with _policy(trainer, engine is None) as model:
            rounds = [shards[i : i + world] for i in range(0, len(shards), world)]
            for of_round in tqdm(rounds, desc=description, unit="part", disable=args.disable_tqdm or rank > 0):
                mine = of_round[rank] if rank < len(of_round) else None
                if mine is None and engine is None and not together:
                    continue
                found = answered(model, of_round[0] if mine is None else mine, of_round)
                if mine is None:  # others had a part in this round, and this process only kept them company
                    continue
                folder.write(mine, found, [ids[-1] in stop_ids for ids in found])
                made["answers"] += len(found)
                made["tokens"] += sum(map(len, found))
    accelerator.wait_for_everyone()
    left = folder.missing()
    if left:
        raise ValueError(
            f'{len(left)} parts of "{folder.folder}" were written by other processes and cannot be seen by process '
            f"{rank}; output_dir must be on a file system that all machines share."
        )
    return {**made, "seconds": time.perf_counter() - begin}


def on_main(accelerator: Any, decide: Callable[[], Result]) -> Result:
    """What the first process decides, in all processes; an error of it is an error in all, since one that stopped
    alone would leave the others waiting."""
    said: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            said = [decide(), None]
        except (ValueError, OSError) as error:
            said = [None, error]
    broadcast_object_list(said, from_process=0)
    if said[1] is not None:
        raise said[1]
    return said[0]


@contextmanager
def _policy(trainer: Any, needed: bool) -> Iterator[Any]:
    """The model that generates, in eval mode and without checkpointing (with it, `generate` gives wrong tokens in
    train mode and says nothing: transformers 5.23); as it was before, afterwards."""
    if not needed:
        yield None
        return
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    ) as unwrapped:
        model: Any = unwrapped
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)
    if not trainer.args.ds3_gather_for_generation and any(hasattr(p, "ds_id") for p in trainer.model.parameters()):
        _compat.renew_zero3_hooks(trainer.model_wrapped)


def _weights_in_pieces(trainer: Any, gathered: bool) -> bool:
    """Whether forward passes are made by all processes together."""
    parameters = list(trainer.model.parameters())
    if trainer.is_fsdp_enabled or any(isinstance(p, DTensor) for p in parameters):
        return True
    return not gathered and any(hasattr(p, "ds_id") for p in parameters)


@contextmanager
def whole(parameter: Any, changed: bool = False) -> Iterator[Tensor]:
    """A parameter as one tensor, also where ZeRO-3 or FSDP2 holds it in pieces; every process must come along.

    Args:
        changed: what the first process writes into it becomes everybody's (ZeRO-3).
    """
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None):
            yield parameter.data
    elif isinstance(parameter, DTensor):
        yield cast(DTensor, parameter.detach()).full_tensor()
    else:
        yield parameter.data


def weights_digest(trainer: Any) -> str:
    """Hash of all parameters of the trainer's model, one at a time; the same however they are cut into pieces."""
    digest = xxhash.xxh3_128()
    for name, parameter in trainer.model.named_parameters():
        with whole(parameter) as tensor:
            if trainer.accelerator.is_main_process:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return on_main(trainer.accelerator, digest.hexdigest)
