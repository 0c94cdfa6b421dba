"""LESS: speed beside one row at a time with a full backward pass and beside the limit, memory, storage.

    python benchmarks/less.py speed --model PATH_OR_ID --dataset FILE [--rows 400] [--lora-r 8] [--projection factored]
    python benchmarks/less.py speed --llama 10x384 --tied --tokenizer PATH --dataset FILE
    python benchmarks/less.py memory (the same)
    python benchmarks/less.py storage --model PATH --checkpoints RUN --dataset FILE --queries FILE [--rows 2000]

procedure  one row at a time: tokenise, forward with the logits of every position, backward to the adapter, the step
           that Adam would take, cosines with the queries (or the dense projection of it)
limit      bare batched forward and backward over the same tokens, sorted, the head on the response positions only, at
           the best of several batch sizes: no row's own gradient, no Adam, no comparison, no tokenising
memory     peak above the loaded model of ours, the limit and the procedure (a fresh process each)
storage    bytes a row of an index, and the rank agreement of its scores with float32 and with whole gradients
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from selectit import build, model_and_rows

from hf_select import LESS, PoolIndex
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations
from hf_select.data.loading import read_dataset
from hf_select.features.gradients import adapter_layers
from hf_select.features.projection import Dense
from hf_select.models import batching


def adapter(path: str, folder: Path, rank: int, targets: list[str]) -> str:
    """A random adapter with random moments of Adam: the arithmetic is that of a trained one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False),
    )
    model.save_pretrained(folder)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments = {f"{name}.exp_avg": torch.randn_like(p) * 1e-3 for name, p in trained.items()}
    moments |= {f"{name}.exp_avg_sq": torch.rand_like(p) * 1e-5 for name, p in trained.items()}
    save_file(moments, folder / "adam_moments.safetensors", metadata={"step": "100"})
    return str(folder)


class Setting:
    """A scorer with its queries, the rows as tokens and the adapter ready for a plain backward pass."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        lm = build(args, folder / "model")
        rows = read_dataset(args.dataset, limit=args.rows + args.queries)
        self.scorer = LESS(
            lm,
            [adapter(lm.model, folder / "adapter", args.lora_r, args.targets)],
            text_format="tulu",
            max_length=512,
            projection=args.projection,
            dimensions=args.dimensions,
            per_query=True,
        )
        self.scorer.fit(rows.select(range(args.rows, len(rows))))
        self.batch = rows[: args.rows]
        self.gradients = self.scorer._gradients
        self.loaded = self.gradients.lm.load()
        encoded = self.gradients.encode(conversations(self.batch))
        self.encoded = [item[0] for item in encoded if not isinstance(item, BadRow)]
        self.texts = self.loaded.tokenizer.batch_decode([e.input_ids for e in self.encoded])
        self.layers = adapter_layers(self.loaded.model, "checkpoint_0")

    def backward(self, rows: list[int], every_position: bool) -> None:
        width = max(len(self.encoded[i].input_ids) for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for b, i in enumerate(rows):
            row = self.encoded[i]
            ids[b, : len(row.input_ids)] = torch.tensor(row.input_ids)
            for start, end in row.responses:
                labels[b, start:end] = ids[b, start:end]
        ids, labels = ids.to(self.loaded.device), labels.to(self.loaded.device)
        if every_position:
            self.loaded.model(input_ids=ids, labels=labels).loss.backward()
            return
        hidden = self.loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        read = labels[:, 1:] != -100
        logits = self.loaded.head(hidden[read]).float()
        torch.nn.functional.cross_entropy(logits, labels[:, 1:][read]).backward()

    def ready(self, on: bool) -> None:
        for parameter in self.loaded.model.parameters():
            parameter.requires_grad_(False)
        for layer in self.layers.values():
            layer.weight.requires_grad_(on)
            layer.weight.grad = None

    def limit(self, max_tokens: int) -> float:
        self.ready(True)
        begin = time.perf_counter()
        for rows in batching.plan([len(e.input_ids) for e in self.encoded], max_tokens):
            self.backward(rows, every_position=False)
        rate = len(self.encoded) / (time.perf_counter() - begin)
        self.ready(False)
        return rate

    def procedure(self, rows: int) -> tuple[float, np.ndarray]:
        """Rows per second, and their cosines with the queries."""
        self.ready(True)
        adam, found = self.gradients._adams[0], []
        asked = torch.as_tensor(self.scorer.queries_[0], device=self.loaded.device)
        projection = None
        if self.gradients.projection != "none":
            shapes = {name.rpartition(".")[0]: tuple(layer.weight.shape) for name, layer in self.layers.items()}
            projection = Dense(shapes, self.gradients.dimensions, self.gradients.seed)
        begin = time.perf_counter()
        for i in range(rows):
            self.loaded.tokenizer(self.texts[i], return_tensors="pt")
            self.backward([i], every_position=True)
            steps = {name: adam(name, layer.weight.grad[None]) for name, layer in self.layers.items()}
            vector = torch.cat([step.flatten() for step in steps.values()])
            if projection is not None:
                vector = torch.zeros(1, projection.dimensions, device=asked.device)
                for name, step in steps.items():
                    projection.add_gradients(vector, name.rpartition(".")[0], step)
                vector = vector[0]
            found.append(torch.nn.functional.cosine_similarity(vector[None], asked).cpu().numpy())
            for layer in self.layers.values():
                layer.weight.grad = None
        rate = rows / (time.perf_counter() - begin)
        self.ready(False)
        return rate, np.stack(found)


def speed(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(args, Path(folder))
        out = setting.scorer(setting.batch)
        some = min(args.procedure_rows, len(setting.encoded))
        rates: dict[str, list[float]] = {"procedure": [], "ours": [], "limit": []}
        for _ in range(args.repeats):
            begin = time.perf_counter()
            setting.scorer(setting.batch)
            rates["ours"].append(len(setting.encoded) / (time.perf_counter() - begin))
            rates["limit"].append(max(setting.limit(budget) for budget in args.budgets))
            rate, reference = setting.procedure(some)
            rates["procedure"].append(rate)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    ours = np.array([row for row in out["less_similarities"] if row is not None])[:some]
    return {
        "parameters": setting.loaded.num_parameters,
        "adapter": sum(layer.weight.numel() for layer in setting.layers.values()),
        "rows": len(setting.encoded),
        "mean_tokens": float(np.mean([len(e.input_ids) for e in setting.encoded])),
        **{f"{name}_rows_per_s": value for name, value in rate.items()},
        "ours_over_procedure": rate["ours"] / rate["procedure"],
        "limit_over_procedure": rate["limit"] / rate["procedure"],
        "time_over_limit": rate["limit"] / rate["ours"],
        "largest_difference": None if args.projection == "factored" else float(np.abs(ours - reference).max()),
    }


def memory(args: argparse.Namespace) -> dict:
    if args.part is None:
        command = [sys.executable, *sys.argv, "--part"]
        found = {
            part: json.loads(subprocess.run([*command, part], capture_output=True, text=True, check=True).stdout)
            for part in ("ours", "limit", "procedure")
        }
        return {part: measured["above_mib"] for part, measured in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(args, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = peak()
        if args.part == "ours":
            setting.scorer(setting.batch)
        elif args.part == "limit":
            setting.limit(setting.loaded.budget.tokens)
        else:
            setting.procedure(min(args.procedure_rows, len(setting.encoded)))
        return {"above_mib": peak() - before}


def peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Remembered:
    """A featurizer that is asked for the same rows several times."""

    def __init__(self, featurizer):
        self.featurizer, self.known = featurizer, {}

    def __getattr__(self, name: str):
        return getattr(self.featurizer, name)

    def __call__(self, rows: list) -> list:
        new = [row for row in rows if repr(row) not in self.known]
        self.known |= zip(map(repr, new), self.featurizer(new), strict=True)
        return [self.known[repr(row)] for row in rows]


def storage(args: argparse.Namespace) -> dict:
    rows, queries = read_dataset(args.dataset, limit=args.rows), read_dataset(args.queries)
    settings = {"text_format": "chat", "max_length": 512, "per_query": True}
    whole = LESS(args.model, [args.checkpoints], **settings).fit(queries)
    exact = whole.similarities(conversations(rows[:]))[0]
    there = ~np.isnan(exact).any(1)
    exact = exact[there]
    found: dict = {"rows": len(rows), "queries": len(queries), "checkpoints": len(whole.checkpoints)}
    for kind in ("dense", "factored"):
        for dimensions in args.dimensions:
            scorer = LESS(args.model, [args.checkpoints], projection=kind, dimensions=dimensions, **settings)
            featurizer, similar = Remembered(scorer.fit(queries).featurizer), {}
            for stored_dtype in ("float32", "float16", "int8", "1bit"):
                with tempfile.TemporaryDirectory() as folder:
                    index = PoolIndex.build(rows, featurizer, folder, stored_dtype=stored_dtype)
                    size = sum(p.stat().st_size for p in Path(folder).glob("vectors/*.arrow"))
                    similar[stored_dtype], _ = scorer.similarities(
                        conversations(rows[:]), index.read(range(len(rows)))
                    )
                similar[stored_dtype] = similar[stored_dtype][there]
                mean = similar[stored_dtype].mean(1)
                found[f"{kind} {dimensions} {stored_dtype}"] = {
                    "bytes_a_row": round(size / len(rows)),
                    "rms_difference_from_whole": float(np.sqrt(((similar[stored_dtype] - exact) ** 2).mean())),
                    "spearman_with_float32": float(spearmanr(mean, similar["float32"].mean(1))[0]),
                    "spearman_with_whole": float(spearmanr(mean, exact.mean(1))[0]),
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("speed", speed), ("memory", memory)):
        run = commands.add_parser(name)
        model_and_rows(run)
        run.set_defaults(function=function)
        run.add_argument("--queries", type=int, default=20)
        run.add_argument("--lora-r", type=int, default=8)
        run.add_argument("--targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "o_proj"])
        run.add_argument("--projection", default="none", choices=["none", "dense", "factored"])
        run.add_argument("--dimensions", type=int, default=8192)
        run.add_argument("--part", choices=["ours", "limit", "procedure"])
    run = commands.add_parser("storage")
    for name in ("model", "checkpoints", "dataset", "queries"):
        run.add_argument(f"--{name}", required=True)
    run.add_argument("--rows", type=int, default=2000)
    run.add_argument("--dimensions", type=int, nargs="+", default=[512, 2048, 8192])
    run.set_defaults(function=storage)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
