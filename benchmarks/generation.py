"""Generation: how busy the client keeps a server, and what the bookkeeping of a large run takes.

    python benchmarks/generation.py throughput [--requests 3200] [--slots 64] [--latency 2]
    python benchmarks/generation.py memory [--questions 100000]
    python benchmarks/generation.py batching --model PATH [--prompts 64] [--new-tokens 64]

throughput   a server in another process answers each request after a fixed time, in so many slots. Time of all
             requests, connecting included, against requests * latency / slots, by requests under way
memory       anonymous memory of a GLAN run of so many questions with a model that takes no time, while they are asked
             for and answered; and its time a question
batching     answers of a causal LM in this process: all prompts given to TransformersGenerator at once, against one
             prompt at a time; both greedy, and whether the answers are the same. The two take turns, three times
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_select.demo import teacher
from hf_select.generation.generator import Answer, Generator, Request, RequestCounts
from hf_select.generation.glan.run import GLAN
from hf_select.generation.server import ServerGenerator


SERVER = Path(__file__).parents[1] / "tests" / "support" / "scripted_server.py"


def throughput(args: argparse.Namespace) -> dict:
    command = [sys.executable, str(SERVER), "--latency", str(args.latency), "--slots", str(args.slots)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port, found = int(process.stdout.readline()), {}
    try:
        for concurrency in args.concurrency:
            model = ServerGenerator("fixed", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency)
            requests = (Request([{"role": "user", "content": f"Question {i}."}]) for i in range(args.requests))
            cpu, begin = time.process_time(), time.perf_counter()
            answers = sum(not answer.error for _, answer in model.stream(requests))
            seconds = time.perf_counter() - begin
            assert answers == args.requests and model.usage.retries == 0
            found[concurrency] = {
                "requests_per_s": answers / seconds,
                "share_of_what_the_slots_allow": answers * args.latency / args.slots / seconds,
                "cpu_ms_a_request": 1000 * (time.process_time() - cpu) / answers,
            }
    finally:
        process.kill()
    return {"slots": args.slots, "latency_s": args.latency, "requests": args.requests, "by_concurrency": found}


class Instant(Generator):
    """The scripted teacher without a server; the memory of this process when so many requests have been answered."""

    name = "instant"

    def __init__(self, marks: list[int]):
        self.usage, self.marks, self.anonymous_mib = RequestCounts(), marks, {}

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            text = teacher({"messages": request.messages, "seed": request.sampling.seed})
            answer = Answer(text, "stop", 100, 20)
            self.usage.count(answer)
            if self.usage.answers in self.marks:
                self.anonymous_mib[self.usage.answers] = anonymous_mib()
            yield request, answer


def anonymous_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def memory(args: argparse.Namespace) -> dict:
    per_subject, queries = 500, 5
    disciplines = args.questions // per_subject // queries // 2  # the teacher names two subjects a query
    with tempfile.TemporaryDirectory() as folder:
        taxonomy = Path(folder) / "taxonomy.yaml"
        taxonomy.write_text("".join(f"- Discipline {i}\n" for i in range(disciplines)))
        before = 2 * disciplines * queries + 2 * disciplines * queries * 2
        shares = {f"{n} % of the {what}": before + args.questions * (n + 100 * past) // 100 for n, what, past in [
            (10, "questions", 0), (50, "questions", 0), (100, "questions", 0),
            (10, "answers", 1), (50, "answers", 1), (100, "answers", 1),
        ]}  # fmt: skip
        model = Instant(list(shares.values()))
        glan = GLAN(
            model,
            taxonomy=str(taxonomy),
            queries_per_discipline=queries,
            questions_per_subject=per_subject,
            near_duplicates=args.near_duplicates,
        )
        begin = time.perf_counter()
        summary = glan.run(Path(folder) / "out")
        seconds, begin = time.perf_counter() - begin, time.perf_counter()
        again = glan.run(Path(folder) / "out")
        assert again.pairs == summary.pairs
        return {
            "pairs": summary.pairs,
            "anonymous_mib_at": {name: round(model.anonymous_mib.get(at, 0), 1) for name, at in shares.items()},
            "peak_mib": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024,
            "seconds": seconds,
            "seconds_of_a_run_that_finds_all_done": time.perf_counter() - begin,
        }


def batching(args: argparse.Namespace) -> dict:
    import torch

    from hf_select import CausalLM, TransformersGenerator
    from hf_select.demo import make_pool
    from hf_select.models.sampling import Sampling

    lm = CausalLM(args.model, dtype="float32")
    lm.load()
    chats = [[{"role": "user", "content": row["prompt"]}] for row in make_pool(args.prompts, 0.0)]
    sampling = Sampling(temperature=0.0, max_new_tokens=args.new_tokens)
    model = TransformersGenerator(lm)
    model.generate(chats[:2], sampling)  # warm
    rounds = []
    for _ in range(3):
        begin = time.process_time(), time.perf_counter()
        together = model.generate(chats, sampling)
        middle = time.process_time(), time.perf_counter()
        alone = [model.generate([chat], sampling)[0] for chat in chats]
        end = time.process_time(), time.perf_counter()
        rounds.append((middle[1] - begin[1], end[1] - middle[1], middle[0] - begin[0], end[0] - middle[0]))
        assert [a.completion_tokens for a in together] == [a.completion_tokens for a in alone]
    same = sum(a.text == b.text for a, b in zip(together, alone, strict=True))
    tokens = sum(answer.completion_tokens for answer in together)
    return {
        "model": args.model,
        "parameters": lm.num_parameters,
        "threads": torch.get_num_threads(),
        "prompts": len(chats),
        "tokens_written": tokens,
        "same_answers": same,
        "tokens_per_s_together": [round(tokens / a) for a, _, _, _ in rounds],
        "tokens_per_s_one_at_a_time": [round(tokens / b) for _, b, _, _ in rounds],
        "times_faster": [round(b / a, 2) for a, b, _, _ in rounds],
        "times_less_cpu_time": [round(d / c, 2) for _, _, c, d in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("throughput")
    run.set_defaults(function=throughput)
    run.add_argument("--requests", type=int, default=3200)
    run.add_argument("--slots", type=int, default=64)
    run.add_argument("--latency", type=float, default=2.0)
    run.add_argument("--concurrency", type=int, nargs="+", default=[64, 96])
    run = commands.add_parser("memory")
    run.set_defaults(function=memory)
    run.add_argument("--questions", type=int, default=100_000)
    run.add_argument("--near-duplicates", type=float, default=1.0)
    run = commands.add_parser("batching")
    run.set_defaults(function=batching)
    run.add_argument("--model", required=True)
    run.add_argument("--prompts", type=int, default=64)
    run.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
