"""Replies asked for in children that are killed: reads from stdin after how many seconds each is, and lets the last
one finish.

python tests/responses_killed.py OUTPUT_DIR DATASET BASE_URL < seconds
"""

import sys

from datasets import load_dataset
from killing import killed_then_finished

from hf_select.generation.responses import Responses
from hf_select.generation.server import ServerGenerator


rows = load_dataset("json", data_files=sys.argv[2], split="train")


def run() -> None:
    models = [ServerGenerator(name, base_url=sys.argv[3], concurrency=8) for name in ("a", "b")]
    Responses(models, history="own_history").run(rows, sys.argv[1])


killed_then_finished(run)
