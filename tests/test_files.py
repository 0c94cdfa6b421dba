"""A file or folder is there whole, as it was before, or not at all."""

import pytest

from hf_select.files import written_whole


def write(path, text):
    path.mkdir()
    (path / "a.txt").write_text(text)


def test_a_file_and_a_folder_take_the_place_of_the_old_one(tmp_path):
    for text in ("one", "two"):
        with written_whole(tmp_path / "f.txt") as temporary:
            temporary.write_text(text)
        with written_whole(tmp_path / "d") as temporary:
            write(temporary, text)
        assert (tmp_path / "f.txt").read_text() == (tmp_path / "d" / "a.txt").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f.txt"]


@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path, before):
    if before:
        (tmp_path / "f.txt").write_text("old")
        write(tmp_path / "d", "old")
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path / "f.txt") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path / "d") as temporary:
        write(temporary, "half")
        raise OSError("disk full")
    assert sorted(p.name for p in tmp_path.iterdir()) == (["d", "f.txt"] if before else [])
    if before:
        assert (tmp_path / "f.txt").read_text() == (tmp_path / "d" / "a.txt").read_text() == "old"
