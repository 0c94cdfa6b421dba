"""GLAN in children that are killed: reads from stdin after how many seconds each is, and lets the last one finish.

python tests/glan_killed.py OUTPUT_DIR TAXONOMY BASE_URL < seconds
"""

import os
import signal
import sys
import time

from hf_select.generation.glan import GLAN
from hf_select.generation.server import ServerGenerator


def run() -> None:
    model = ServerGenerator("scripted", base_url=sys.argv[3], concurrency=8)
    glan = GLAN(model, taxonomy=sys.argv[2], queries_per_discipline=2, questions_per_subject=12)
    glan.run(sys.argv[1])


killed = 0
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
run()
print(killed)
