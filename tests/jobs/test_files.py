"""A file or folder is there whole, as it was before, or not at all."""

import os
import socket
import subprocess
import sys
import time

import pytest

from hf_select.atomic import atomic_path


def write(path, text):
    path.mkdir()
    (path / "a.txt").write_text(text)


def test_a_file_and_a_folder_take_the_place_of_the_old_one(tmp_path):
    for text in ("one", "two"):
        with atomic_path(tmp_path / "f.txt") as temporary:
            temporary.write_text(text)
        with atomic_path(tmp_path / "d") as temporary:
            write(temporary, text)
        assert (tmp_path / "f.txt").read_text() == (tmp_path / "d" / "a.txt").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f.txt"]


@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path, before):
    if before:
        (tmp_path / "f.txt").write_text("old")
        write(tmp_path / "d", "old")
    with pytest.raises(OSError, match="disk full"), atomic_path(tmp_path / "f.txt") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"), atomic_path(tmp_path / "d") as temporary:
        write(temporary, "half")
        raise OSError("disk full")
    assert sorted(p.name for p in tmp_path.iterdir()) == (["d", "f.txt"] if before else [])
    if before:
        assert (tmp_path / "f.txt").read_text() == (tmp_path / "d" / "a.txt").read_text() == "old"


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    host, now = socket.gethostname(), time.time()
    left = {
        "killed": (f"f.txt.{host}-{killed.pid}.tmp", now),
        "living": (f"f.txt.{host}-{os.getppid()}.tmp", now - 7200),
        "elsewhere": ("f.txt.node-17.local-1.tmp", now - 60),
        "elsewhere, long ago": ("f.txt.node-17.local-2.tmp", now - 7200),
        "of another file": (f"g.f.txt.{host}-{killed.pid}.tmp", now),
        "of nobody": ("f.txt.mine.tmp", now - 7200),
    }
    for name, written in left.values():
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (written, written))
    killed.kill()
    killed.wait()
    with atomic_path(tmp_path / "f.txt") as temporary:
        temporary.write_text("whole")
    kept = {what for what, (name, _) in left.items() if (tmp_path / name).exists()}
    assert kept == {"living", "elsewhere", "of another file", "of nobody"}
