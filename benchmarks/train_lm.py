"""A small language model for the effect tables: trained from nothing on the texts and pools it will be asked about.

    python benchmarks/train_lm.py --data DATA_FOLDER --output FOLDER [--steps 3000]

Llama, byte-level BPE, one pass over rows in the Tulu layout mixed with prose, in blocks of 512 tokens, bf16 autocast.
Nothing under DATA_FOLDER/eval is read. The weights are for measuring here and are not published: several of the pools
are licensed for research only.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode
from hf_select.demo import tiny_model, train_tokenizer


BLOCK = 512


def read(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def documents(data: Path, leave_out: str | None = None) -> list[dict]:
    """Rows of all pools and a quarter of the texts' parts, shuffled; ids of published selections are no text."""
    pools = sorted(path for path in (data / "pools").glob("*.jsonl.gz") if "published" not in path.name)
    texts = sorted(path for path in (data / "text").glob("*.jsonl.gz") if "_test" not in path.name)
    rng = random.Random(0)
    found = []
    for path in pools + texts:
        if leave_out is not None and leave_out in path.name:
            continue
        for row in read(path):
            if "prompt_after" in row or ("text" in row and rng.random() > 0.25):
                continue
            keep = {name: row[name] for name in ("messages", "prompt", "completion", "text") if name in row}
            found.append(keep)
    rng.shuffle(found)
    return found


def plain(row: dict) -> str:
    if "messages" in row:
        return "\n".join(message["content"] for message in row["messages"])
    return row.get("text") or f"{row['prompt']}\n{row['completion']}"


def blocks(rows: list[dict], tokenizer, tokens: int) -> np.ndarray:
    stream: list[int] = []
    for row in rows:
        (conversation,) = conversations({name: [value] for name, value in row.items()})
        template = None if conversation.text is not None else FALLBACK_TEMPLATE
        ids = encode(conversation, tokenizer, template).input_ids
        stream += ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        if len(stream) >= tokens:
            break
    return np.array(stream[: len(stream) // BLOCK * BLOCK], dtype=np.int32).reshape(-1, BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8, help="blocks a step")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--leave-out", help="files of the data whose name has this in it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = documents(args.data, args.leave_out)
    tokenizer = train_tokenizer([plain(row) for row in rows[:40_000]], vocab_size=args.vocab)
    tokenizer.chat_template = FALLBACK_TEMPLATE
    packed = blocks(rows, tokenizer, args.steps * args.batch * BLOCK)
    model = tiny_model(
        tokenizer,
        hidden_size=args.hidden,
        intermediate_size=int(args.hidden * 2.75),
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {packed.size / 1e6:.1f}M tokens", flush=True)
    dataset = Dataset.from_dict({"input_ids": packed, "labels": packed}).with_format("torch")
    settings = TrainingArguments(
        output_dir=str(args.output),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 50,
        weight_decay=0.1,
        adam_beta2=0.98,
        bf16=True,
        use_cpu=True,
        logging_steps=25,
        save_strategy="steps",
        save_steps=max(1, args.steps // 4),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    begin = time.perf_counter()
    Trainer(model, settings, train_dataset=dataset).train()
    print(f"{time.perf_counter() - begin:.0f} s on {args.threads} threads")
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
