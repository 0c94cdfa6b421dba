"""GLAN in children that are killed: reads from stdin after how many seconds each is, and lets the last one finish.

python tests/glan_killed.py OUTPUT_DIR TAXONOMY BASE_URL < seconds
"""

import sys

from killing import killed_then_finished

from hf_select.generation.glan.run import GLAN
from hf_select.generation.server import ServerGenerator


def run() -> None:
    model = ServerGenerator("scripted", base_url=sys.argv[3], concurrency=8)
    glan = GLAN(model, taxonomy=sys.argv[2], queries_per_discipline=2, questions_per_subject=12)
    glan.run(sys.argv[1])


killed_then_finished(run)
