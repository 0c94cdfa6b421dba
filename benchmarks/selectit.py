"""SelectIT: the published procedure, ours and the limit, on the same rows in the same process.

    python benchmarks/selectit.py --model PATH_OR_ID --dataset FILE [--rows 1000]
    python benchmarks/selectit.py --llama 14x384 --tokenizer PATH --dataset FILE      # a random Llama of that size

procedure  one row and one rating prompt at a time, full logits at every position, softmax over the vocabulary
ours       SelectIT as a user calls it, tokenisation and scores included
limit      the bare backbone of the same model over the tokens that ours has to run (prompts without their shared
prefix,
           sorted), no output head, no cache, at the best of several batch sizes
last       rating_position="last"

Procedure and ours must give the same scores. Rates are medians of interleaved repeats: compare ratios, not seconds.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from hf_select import CausalLM, SelectIT
from hf_select.data.conversation import conversations
from hf_select.data.loading import read_dataset
from hf_select.models import batching
from hf_select.scoring.rating import rating_token_ids
from hf_select.scoring.selectit import ANSWER, sentence_score, token_scores


def procedure(loaded, prompts: list[str], pairs: list[tuple[str, str]], digits: list[int]) -> np.ndarray:
    """Sentence-level scores as the authors' scripts form them (arXiv:2402.16705), plain normalisation."""
    scores = []
    for x, y in pairs:
        p = []
        for line in prompts:
            text = f"{line}\nInstruction:{x}\nResponse:{y}\n{ANSWER}"
            inputs = loaded.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(loaded.device)
            with torch.no_grad():
                logits = loaded.model(**inputs).logits
            p.append(torch.softmax(logits[0, -1].float(), dim=-1)[digits].cpu().numpy())
        scores.append(sentence_score(token_scores(np.stack(p))[0]))
    return np.array(scores)


def limit(loaded, sequences: list[list[int]], max_tokens: int) -> float:
    """Tokens per second, padding not counted, of the bare backbone."""
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in batching.plan([len(s) for s in sequences], max_tokens):
            width = max(len(sequences[i]) for i in batch)
            ids = torch.tensor([sequences[i] + [0] * (width - len(sequences[i])) for i in batch], device=loaded.device)
            loaded.backbone(input_ids=ids, use_cache=False)
    _wait(loaded)
    return sum(map(len, sequences)) / (time.perf_counter() - begin)


def build(args: argparse.Namespace, folder: Path) -> CausalLM:
    options = {"dtype": args.dtype, "device": args.device, "tokens_per_batch": args.tokens_per_batch}
    if not args.llama:
        return CausalLM(args.model, tokenizer=args.tokenizer, **options)
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    layers, hidden = map(int, args.llama.split("x"))
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(args.vocab, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        initializer_range=0.05,
        tie_word_embeddings=args.tied,
    )
    with torch.device(args.device or "cpu"):
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, args.dtype if args.dtype != "auto" else "float32")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CausalLM(str(folder), **options)


def model_and_rows(parser: argparse.ArgumentParser) -> None:
    """What to measure, and how often."""
    parser.add_argument("--model")
    parser.add_argument("--llama", help="LAYERSxHIDDEN of a random Llama")
    parser.add_argument("--tokenizer")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--procedure-rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--tokens-per-batch", type=int)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 2048, 4096, 8192])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_and_rows(parser)
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args()

    rows = read_dataset(args.dataset, limit=args.rows)[:]
    pairs = [conversation.first_pair() for conversation in conversations(rows)]
    with tempfile.TemporaryDirectory() as folder:
        lm = build(args, Path(folder))
        loaded = lm.load()
        first, last = SelectIT(lm), SelectIT(lm, rating_position="last")
        prompts = first._prompts
        texts = [[f"{line}\nInstruction:{x}\nResponse:{y}\n{ANSWER}" for x, y in pairs] for line in prompts]
        digits = rating_token_ids(lm, texts[0][0], 5)
        ids = [lm.encode_texts(column) for column in texts]
        shared = [_shared(column) for column in ids]
        suffixes = [sequence[cut:] for column, cut in zip(ids, shared, strict=True) for sequence in column]

        n = min(args.procedure_rows, len(pairs))
        reference = procedure(loaded, prompts, pairs[: min(n, 3)], digits)  # warm up
        first({name: values[:50] for name, values in rows.items()})
        times: dict[str, list[float]] = {"procedure": [], "ours": [], "last": [], "limit": []}
        memory = {}
        for _ in range(args.repeats):
            start = time.perf_counter()
            ours = first(rows)["score_selectit"]
            _wait(loaded)
            times["ours"].append(len(pairs) / (time.perf_counter() - start))
            memory["ours"] = _peak_memory()
            start = time.perf_counter()
            last(rows)
            _wait(loaded)
            times["last"].append(len(pairs) / (time.perf_counter() - start))
            times["limit"].append(max(limit(loaded, suffixes, budget) for budget in args.budgets))
            start = time.perf_counter()
            reference = procedure(loaded, prompts, pairs[:n], digits)
            _wait(loaded)
            times["procedure"].append(n / (time.perf_counter() - start))
            memory["procedure"] = _peak_memory()
        difference = float(np.abs(np.array(ours[:n]) - reference).max())
        usage_before = (lm.usage.tokens, lm.usage.processed_tokens)
        first(rows)
        real, processed = lm.usage.tokens - usage_before[0], lm.usage.processed_tokens - usage_before[1]

    rate = {name: statistics.median(values) for name, values in times.items()}
    suffix_tokens = sum(map(len, suffixes))
    figures = {
        "model": args.llama or Path(args.model).name,
        "parameters": loaded.num_parameters,
        "dtype": str(loaded.model.dtype),
        "rows": len(pairs),
        "mean_prompt_tokens": real / len(suffixes),
        "procedure_rows_per_s": rate["procedure"],
        "ours_rows_per_s": rate["ours"],
        "last_rows_per_s": rate["last"],
        "ours_real_tokens_per_s": rate["ours"] * real / len(pairs),
        "ours_processed_tokens_per_s": rate["ours"] * processed / len(pairs),
        "limit_tokens_per_s": rate["limit"],
        "speedup_over_procedure": rate["ours"] / rate["procedure"],
        "last_over_ours": rate["last"] / rate["ours"],
        "share_of_limit": rate["ours"] * suffix_tokens / len(pairs) / rate["limit"],
        "largest_score_difference": difference,
        "peak_memory_mib": memory,
        "device": torch.cuda.get_device_name() if loaded.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "transformers", "hf-select")},
    }
    if loaded.device.type == "cuda":
        figures["flops_share_of_matmul"] = _share_of_matmul(figures, loaded, rate["ours"] * processed / len(pairs))
    print(json.dumps(figures, indent=1))
    if args.output:
        Path(args.output).write_text(json.dumps(figures, indent=1) + "\n")
    assert difference < (1e-4 if loaded.model.dtype == torch.float32 else 0.5), "the scores differ"


def _share_of_matmul(figures: dict, loaded, tokens_per_s: float) -> float:
    """Counted FLOPs of ours over the rate of a large matrix product in the same type."""
    a = torch.randn(8192, 8192, device=loaded.device, dtype=loaded.model.dtype)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / (time.perf_counter() - begin)
    figures["matmul_tflops"] = rate / 1e12
    return 2 * loaded.backbone_parameters * tokens_per_s / rate


def _shared(sequences: list[list[int]]) -> int:
    low, high = min(sequences), max(sequences)
    return next(t for t in range(len(low)) if low[t] != high[t])


def _wait(loaded) -> None:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory() -> dict[str, float]:
    """Host: the process's peak so far. Device: the peak since the last call."""
    found = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
    return found


if __name__ == "__main__":
    main()
