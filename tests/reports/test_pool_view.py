"""A report and a publication parse each row once, and keep in memory only the rows that they show or publish."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from hf_select import TopK, push_selected, report
from hf_select.data import conversation
from hf_select.data.bad_rows import BadRow
from hf_select.data.text import characters_of
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report import compare_report


N = 2500  # more than two batches


@pytest.fixture
def parsed(monkeypatch) -> Counter:
    """How often the row with each text was parsed, in any layout."""
    counts: Counter[str] = Counter()

    def counted(read):
        def read_and_count(row):
            counts[str(row.get("output") or row.get("completion"))] += 1
            return read(row)

        return read_and_count

    for name, read in conversation._LAYOUTS.items():
        monkeypatch.setitem(conversation._LAYOUTS, name, counted(read))
    return counts


def pool(layout: str) -> Dataset:
    names = {"alpaca": ("instruction", "output"), "prompt-completion": ("prompt", "completion")}[layout]
    texts = {name: [f"{name} {i}" for i in range(N)] for name in names}
    scores = np.random.default_rng(0).permutation(N).astype(float)
    return Dataset.from_dict({**texts, "score_a": scores, "score_b": -scores})


@pytest.mark.parametrize("layout", ["alpaca", "prompt-completion"])
def test_each_row_is_parsed_once(tmp_path, parsed, layout):
    dataset = pool(layout)
    selection, other = TopK("score_a")(dataset, k=500), TopK("score_b")(dataset, k=500)

    def check(act) -> None:
        parsed.clear()
        act()
        assert len(parsed) == N and set(parsed.values()) == {1}

    check(lambda: report(dataset, selection, tmp_path / "report"))
    check(lambda: compare_report(dataset, {"a": selection, "b": other}, tmp_path / "compared"))
    check(lambda: push_selected(selection, "me/x", dataset=dataset, license="mit", dry_run=tmp_path / "published"))


def test_only_the_named_rows_are_kept():
    dataset = Dataset.from_dict({"prompt": ["a", "b", None], "completion": ["cc", "dd", "ee"]})
    view = PoolView(dataset)
    view.parse(keep=[1, 2])
    kept = view.conversation(1)
    assert not isinstance(kept, BadRow) and characters_of(kept) == 3 and isinstance(view.conversation(2), BadRow)
    with pytest.raises(KeyError):
        view.conversation(0)
    assert view.lengths["characters"].tolist()[:2] == [3, 3] and np.isnan(view.lengths["characters"][2])
    with pytest.raises(RuntimeError, match="parsed before"):
        view.parse()
