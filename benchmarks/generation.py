"""Generation: how busy the client keeps a server, and what the bookkeeping of a large run takes.

    python benchmarks/generation.py throughput [--requests 3200] [--slots 64] [--latency 2]
    python benchmarks/generation.py memory [--questions 100000]

throughput   a server in another process answers each request after a fixed time, in so many slots. Time of all
             requests, connecting included, against requests * latency / slots, by requests under way
memory       anonymous memory of a GLAN run of so many questions with a model that takes no time, while they are asked
             for and answered; and its time a question
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
from hf_select.generation.engine import Answer, Generator, Request, Usage
from hf_select.generation.glan import GLAN
from hf_select.generation.server import ServerGenerator


SERVER = Path(__file__).parents[1] / "tests" / "scripted_server.py"


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
        self.usage, self.marks, self.anonymous_mib = Usage(), marks, {}

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
        assert again["pairs"] == summary["pairs"]
        return {
            "pairs": summary["pairs"],
            "anonymous_mib_at": {name: round(model.anonymous_mib.get(at, 0), 1) for name, at in shares.items()},
            "peak_mib": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024,
            "seconds": seconds,
            "seconds_of_a_run_that_finds_all_done": time.perf_counter() - begin,
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
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
