"""Children that are killed: after how many seconds each is, stands on a line of stdin; the last run is let finish."""

import os
import signal
import sys
import time
from collections.abc import Callable


def killed_then_finished(run: Callable[[], object]) -> None:
    """Print how many of the children died of it."""
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
