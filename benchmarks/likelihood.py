"""Perplexity and IFD: speed beside one row at a time with full logits and beside the limit; memory of large
vocabularies.

    python benchmarks/likelihood.py perplexity --model PATH_OR_ID --dataset FILE [--rows 1000]
    python benchmarks/likelihood.py ifd --llama 10x384 --tied --tokenizer PATH --dataset FILE
    python benchmarks/likelihood.py memory [--vocab 150000]

procedure  one row (for IFD: one pass) at a time: tokenise, forward with the logits of every position, mean loss
limit      the bare backbone over the same tokens, sorted, and the head on the positions that are read, at the best of
           several batch sizes; no tokenising
memory     peak of one pass over 16 rows of 512 tokens, beside that of full logits (a fresh process each)
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from selectit import build, model_and_rows

from hf_select import IFD, Perplexity
from hf_select.data.loading import read_dataset
from hf_select.models import batching
from hf_select.models.causal_lm import CausalLM
from hf_select.models.loaded_model import LoadedModel


def limit(loaded, sequences: list[list[int]], spans: list[list[tuple[int, int]]], max_tokens: int) -> float:
    """Sequences per second of backbone and head alone."""
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in batching.plan([len(s) for s in sequences], max_tokens):
            width = max(len(sequences[i]) for i in batch)
            ids = torch.tensor([sequences[i] + [0] * (width - len(sequences[i])) for i in batch], device=loaded.device)
            hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state
            read = torch.zeros(ids.shape, dtype=torch.bool, device=loaded.device)
            for b, i in enumerate(batch):
                for start, end in spans[i]:
                    read[b, max(start, 1) - 1 : end - 1] = True
            for block in hidden[read].split(max(256, (1 << 20) // loaded.vocab_size)):
                loaded.head(block)
    return len(sequences) / (time.perf_counter() - begin)


def procedure(loaded, sequences: list[list[int]], spans: list[list[tuple[int, int]]], texts: list[str]) -> list[float]:
    """Mean NLL of each, one pass at a time."""
    found = []
    for ids, some, text in zip(sequences, spans, texts, strict=True):
        loaded.tokenizer(text, return_tensors="pt")  # as the scripts do, row by row; the ids in use are ours
        labels = torch.full((1, len(ids)), -100)
        for start, end in some:
            labels[0, start:end] = torch.tensor(ids[start:end])
        with torch.no_grad():
            inputs = torch.tensor([ids], device=loaded.device)
            found.append(float(loaded.model(input_ids=inputs, labels=labels.to(loaded.device)).loss))
    return found


def speed(args: argparse.Namespace, make) -> dict:
    rows = read_dataset(args.dataset, limit=args.rows)
    batch = rows[:]
    with tempfile.TemporaryDirectory() as folder:
        lm = build(args, Path(folder))
        loaded = lm.load()
        scorer = make(lm)
        seen: list = []

        def record(sequences, spans):
            seen[:] = [list(sequences), list(spans)]
            return CausalLM.response_nll(lm, sequences, spans)

        lm.response_nll = record
        scorer(batch)
        del lm.response_nll
        sequences, spans = seen
        passes = len(sequences) / len(rows)
        some = min(args.procedure_rows, len(sequences))
        texts = loaded.tokenizer.batch_decode(sequences[:some], skip_special_tokens=True)
        rates: dict[str, list[float]] = {"procedure": [], "ours": [], "limit": []}
        for _ in range(args.repeats):
            begin = time.perf_counter()
            scorer(batch)
            rates["ours"].append(len(rows) / (time.perf_counter() - begin))
            rates["limit"].append(max(limit(loaded, sequences, spans, b) for b in args.budgets) / passes)
            begin = time.perf_counter()
            reference = procedure(loaded, sequences[:some], spans[:some], texts)
            rates["procedure"].append(some / passes / (time.perf_counter() - begin))
        ours = [float(np.mean(nll)) for nll in lm.response_nll(sequences[:some], spans[:some])]
    rate = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "parameters": loaded.num_parameters,
        "vocabulary": loaded.vocab_size,
        "rows": len(rows),
        "passes_a_row": passes,
        "mean_tokens_a_pass": sum(map(len, sequences)) / len(sequences),
        **{f"{name}_rows_per_s": value for name, value in rate.items()},
        "ours_over_procedure": rate["ours"] / rate["procedure"],
        "share_of_limit": rate["ours"] / rate["limit"],
        "largest_difference": float(np.abs(np.array(ours) - reference).max()),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def memory(args: argparse.Namespace) -> dict:
    if args.part is None:
        command = [sys.executable, __file__, "memory", "--vocab", str(args.vocab), "--part"]
        parts = {
            part: json.loads(subprocess.run([*command, part], capture_output=True, text=True, check=True).stdout)
            for part in ("model", "ours", "full")
        }
        base = parts["model"]["peak_mib"]
        return {
            "vocabulary": args.vocab,
            "model_loaded_mib": base,
            **{f"{part}_above_it_mib": parts[part]["peak_mib"] - base for part in ("ours", "full")},
        }
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=args.vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    lm = CausalLM(LlamaForCausalLM(config), tokenizer="none", tokens_per_batch=8192)

    lm._loaded = LoadedModel(lm.model, None, 8192)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, args.vocab, 512).tolist() for _ in range(16)]
    if args.part == "ours":
        lm.response_nll(sequences, [[(0, 512)]] * 16)
    elif args.part == "full":
        with torch.no_grad():
            ids = torch.tensor(sequences)
            lm.model(input_ids=ids, labels=ids)
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    makers = {
        "perplexity": lambda lm: Perplexity(lm, text_format="tulu"),
        "ifd": lambda lm: IFD(lm, text_format="alpaca", max_length=512),
    }
    for name, make in makers.items():
        run = commands.add_parser(name)
        model_and_rows(run)
        run.set_defaults(function=lambda args, make=make: speed(args, make))
    run = commands.add_parser("memory")
    run.add_argument("--vocab", type=int, default=150_000)
    run.add_argument("--part", choices=["model", "ours", "full"])
    run.set_defaults(function=memory)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
