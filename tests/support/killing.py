"""Children that are killed, and what they had finished."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def killed_then_finished(run: Callable[[], object]) -> None:
    """Kill a child for each line of stdin, after the seconds it says; let one finish; print how many died of it."""
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


def finished_parts(folder: Path, pattern: str) -> dict[str, int]:
    """When each finished part of a chunked job was written, by its name. A part is finished once its record is there:
    a kill may come between the two, and that part is made anew."""
    done = {path.stem for path in (folder / "done").glob("part-*.json")}
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern) if path.stem in done}
