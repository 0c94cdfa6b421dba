"""Two-stage scoring: only the candidates are scored, with the scores that they have when all rows are."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from killing import finished_parts

from hf_select import (
    TFIDF,
    CausalLM,
    Length,
    Perplexity,
    PoolIndex,
    Random,
    RDSPlus,
    Selection,
    TopK,
    load_scores,
    read_finished,
    score,
)
from hf_select.cli.main import main
from hf_select.data.loading import read_dataset
from hf_select.scoring.score import whole_cost
from hf_select.selection.record import read_selection


@dataclass
class Watched(Length):
    """Notes when it is loaded and the prompts of each batch."""

    def __post_init__(self):
        super().__post_init__()
        self.loads, self.batches, self.fails_at = 0, [], None

    def load(self, rank=None):
        self.loads += not self.loads

    def measure(self, rows):
        self.batches.append([row.messages[0]["content"] for row in rows])
        if self.fails_at in self.batches[-1]:
            raise KeyboardInterrupt
        return super().measure(rows)


@pytest.fixture(scope="module")
def pool(rows) -> Dataset:
    return Dataset.from_list(rows)


@pytest.fixture
def numbered() -> Dataset:
    rows = [{"row_id": f"r{i}", "prompt": f"p{i}", "completion": "c" * (1 + i * 7 % 13)} for i in range(40)]
    return Dataset.from_list(rows)


def longest(pool: Dataset, k: int, tmp_path: Path) -> Selection:
    cheap = score(pool, Length(of="prompt"), tmp_path / "cheap")
    return TopK("score_length")(cheap, k=k)


def chosen(pool: Dataset, rows: list[int]) -> Selection:
    """A selection of some rows by hand."""
    marked = pool.add_column("score_x", [float(i in rows) for i in range(len(pool))])
    return TopK("score_x", at_least=1)(marked, k=len(rows))


def scored_by(model_path: str, pool: Dataset, name: str):
    if name == "perplexity":
        return Perplexity(CausalLM(model_path))
    return RDSPlus(CausalLM(model_path)).fit({"a": pool.select([1, 2]), "b": pool.select([5])})


@pytest.mark.parametrize("name", ["perplexity", "rds"])
@pytest.mark.parametrize("stream", [False, True])
def test_candidates_have_the_scores_of_scoring_everything(name, stream, pool, model_path, tmp_path):
    candidates = longest(pool, 9, tmp_path)
    whole = score(pool, scored_by(model_path, pool, name), tmp_path / "whole", chunk_rows=8)
    rows = pool.to_iterable_dataset() if stream else pool
    some = score(rows, scored_by(model_path, pool, name), tmp_path / "o", chunk_rows=8, candidates=candidates)
    assert some["row_id"] == list(range(len(pool))) and some["prompt"] == pool["prompt"]
    columns = [column for column in whole.column_names if column not in (*pool.column_names, "row_id")]
    for column in columns:
        for i, (value, expected) in enumerate(zip(some[column], whole[column], strict=True)):
            if i not in candidates.indices:
                why = "not among the candidates: TopK by score_length took 9 of 40 rows"
                assert value == (why if column.endswith("_reason") else None)
            elif isinstance(expected, float):
                assert value == pytest.approx(expected, rel=1e-5)
            else:
                assert value == expected
    alone = score(pool.select(np.sort(candidates.indices)), scored_by(model_path, pool, name), tmp_path / "alone")
    summary, of_alone = (json.loads((tmp_path / each / "summary.json").read_text()) for each in ("o", "alone"))
    assert summary["cost"]["tokens"] == of_alone["cost"]["tokens"], "the model read other rows than the candidates"
    assert summary["rows"] == 40 and summary["scored"] == of_alone["scored"] == len(alone)
    assert summary["candidates"] == {"rows": 9, "chosen_by": "TopK by score_length took 9 of 40 rows"}
    assert summary["cost"]["rows_per_second"] == pytest.approx(9 / summary["cost"]["seconds"])


def test_all_rows_as_candidates_are_the_plain_run(pool, model_path, tmp_path):
    everything = Random()(pool, k=len(pool))
    plain = score(pool, Perplexity(model_path), tmp_path / "plain", chunk_rows=16)
    some = score(pool, Perplexity(model_path), tmp_path / "o", chunk_rows=16, candidates=everything)
    assert some[:] == plain[:]


def test_an_index_serves_the_candidates(pool, model_path, tmp_path):
    scorer = scored_by(model_path, pool, "rds")
    index = PoolIndex.build(pool, scorer.featurizer, tmp_path / "index", chunk_rows=7)
    whole = score(pool, scorer, tmp_path / "whole", index=index)
    some = score(pool, scorer, tmp_path / "o", index=index, chunk_rows=8, candidates=longest(pool, 9, tmp_path))
    picked = [i for i, value in enumerate(some["score_rds"]) if value is not None]
    assert len(picked) == 9
    for task in "ab":
        expected = whole.select(picked)[f"score_rds_{task}"][:]
        assert some.select(picked)[f"score_rds_{task}"][:] == pytest.approx(expected, rel=1e-5)
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert not summary["cost"].get("tokens")


def test_a_chunk_runs_its_candidates_together_or_not_at_all(numbered, tmp_path):
    scorer = Watched()
    score(numbered, scorer, tmp_path / "o", chunk_rows=10, candidates=chosen(numbered, [39, 13, 31, 11]))
    assert scorer.batches == [["p11", "p13"], ["p31", "p39"]] and scorer.loads == 1
    # Two chunks are left, none of which has a candidate.
    for part in ("part-00000", "part-00002"):
        (tmp_path / "o" / "done" / f"{part}.json").unlink()
    idle = Watched()
    score(numbered, idle, tmp_path / "o", chunk_rows=10, candidates=chosen(numbered, [39, 13, 31, 11]))
    assert idle.loads == 0 and idle.batches == []


def test_a_stopped_run_resumes_and_the_order_of_the_candidates_does_not_matter(numbered, tmp_path):
    rows = [39, 13, 31, 11]
    stopped = Watched()
    stopped.fails_at = "p31"
    with pytest.raises(KeyboardInterrupt):
        score(numbered, stopped, tmp_path / "o", chunk_rows=10, candidates=chosen(numbered, rows))
    again = Watched()
    candidates = chosen(numbered, rows)
    turned = Selection(candidates.indices[::-1], 40, candidates.reasons, hashes=candidates.hashes)
    turned.row_ids = list(reversed(candidates.row_ids or []))
    turned.hashes = {name: values[::-1] for name, values in candidates.hashes.items()}
    turned.chain = candidates.chain
    some = score(numbered, again, tmp_path / "o", chunk_rows=10, candidates=turned)
    assert again.batches == [["p31", "p39"]]
    lengths = Length()(numbered[:])["score_length"]
    assert some["score_length"] == [lengths[i] if i in rows else None for i in range(40)]


def test_another_candidate_set_is_refused(numbered, tmp_path):
    score(numbered, Length(), tmp_path / "o", candidates=chosen(numbered, [1, 2]))
    for other in (chosen(numbered, [1, 3]), None):
        with pytest.raises(ValueError, match="holds scores of another run .candidates TopK by score_x took 2 of 40"):
            score(numbered, Length(), tmp_path / "o", candidates=other)
    score(numbered, Length(), tmp_path / "p")
    with pytest.raises(ValueError, match="candidates None there, TopK"):
        score(numbered, Length(), tmp_path / "p", candidates=chosen(numbered, [1, 2]))


def test_candidates_are_found_by_row_id_in_other_orders_and_larger_pools(numbered, tmp_path):
    candidates = chosen(numbered.select(range(20)), [3, 17])
    turned = numbered.select(range(39, -1, -1))
    some = score(turned, Length(), tmp_path / "o", candidates=candidates)
    assert [row["row_id"] for row in some if row["score_length"] is not None] == ["r17", "r3"]


def test_wrong_candidates_are_refused_before_anything_is_written(numbered, pool, tmp_path):
    candidates, by_number = chosen(numbered, [1, 30]), Random()(pool, k=5)
    changed = numbered.map(lambda row: {"prompt": row["prompt"] + ("!" if row["row_id"] == "r30" else "")})
    hashless = Selection(np.array([1]), 40, [""])
    repeated = Selection(np.array([1, 2]), 40, ["", ""], row_ids=["r1", "r1"])
    empty = Selection(np.array([], dtype=np.int64), 40, [])
    for rows, given, message in (
        (numbered.select(range(20)), candidates, r"1 of 2 candidates are not among the rows \(first: row_id 'r30'\)"),
        (changed, candidates, "column \"prompt\" differs in 1 of 2 candidates, first in row_id 'r30'"),
        (pool, candidates, "2 of 2 candidates are not among the rows"),
        (pool.select(range(30)), by_number, "made on 40 rows, this dataset has 30"),
        (pool.select(range(39, -1, -1)), by_number, "differs in"),
        (pool.to_iterable_dataset(), by_number, "no row_id, by which rows of a stream are found"),
        (numbered, hashless, "no hashes of its rows"),
        (numbered, repeated, "row_id must be unique among the candidates; 2 candidates have 1 values"),
        (numbered, empty, "empty selection"),
    ):
        with pytest.raises(ValueError, match=message):
            score(rows, Length(), tmp_path / "o", candidates=given)
        assert not (tmp_path / "o").exists()


def test_a_selection_from_rows_without_ids_is_found_by_number(pool, tmp_path):
    candidates = Random(seed=1)(pool, k=5)
    assert candidates.row_ids is None
    some = score(pool, Length(), tmp_path / "o", candidates=candidates)
    assert {i for i, value in enumerate(some["score_length"]) if value is not None} <= set(candidates.indices.tolist())


def test_a_stream_that_lacks_candidates_or_has_changed_is_refused(numbered, tmp_path):
    candidates = chosen(numbered, [1, 30])
    with pytest.raises(ValueError, match=r"1 of 2 candidates are not among the rows \(first: row_id 'r30'\)"):
        score(numbered.select(range(20)).to_iterable_dataset(), Length(), tmp_path / "o", candidates=candidates)
    assert not (tmp_path / "o" / "summary.json").exists(), "scores that are not whole must not be read"

    def changed():
        yield from ({**row, "completion": "other"} for row in numbered)

    with pytest.raises(ValueError, match="completion.*differs in 1 of 1 candidates, first in row_id 'r1'"):
        score(IterableDataset.from_generator(changed), Length(), tmp_path / "p", chunk_rows=5, candidates=candidates)


def test_selectors_take_no_row_without_a_score_and_columns_join_by_row_id(pool, tmp_path):
    candidates = longest(pool, 9, tmp_path)
    score(pool, TFIDF().fit(pool.select([1]), pool=pool), tmp_path / "dear", candidates=candidates)
    both = load_scores(tmp_path / "cheap", tmp_path / "dear")
    assert both["score_length"] == load_scores(tmp_path / "cheap")["score_length"]
    selection = TopK("score_tfidf")(both, k=4)
    assert set(selection.indices) <= set(candidates.indices)
    with pytest.raises(ValueError, match="10 rows were requested, but only 9.*31 x not among the candidates"):
        TopK("score_tfidf")(both, k=10)


WORKER = """
import sys, time
from datasets import load_dataset
from hf_select import Length, Selection, score

class Slow(Length):
    def measure(self, rows):
        with open("log", "a") as log:
            log.writelines(row.messages[0]["content"] + "\\n" for row in rows)
        time.sleep(0.2)
        return super().measure(rows)

rows = load_dataset("json", data_files="pool.jsonl", split="train")
score(rows, Slow(), "o", chunk_rows=10, candidates=Selection.load("candidates"))
"""


def test_several_processes_and_a_kill_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"row_id": i, "prompt": f"p{i}", "completion": "c" * (i % 17 + 1)} for i in range(200)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    candidates = chosen(Dataset.from_list(rows), [i for i in range(200) if i % 9 == 0 and i // 10 % 3])
    candidates.save("candidates")
    Path("worker.py").write_text(textwrap.dedent(WORKER))
    Path("log").touch()

    def start(rank: int) -> subprocess.Popen:
        launch = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
        return subprocess.Popen([sys.executable, "worker.py"], env={**os.environ, **launch})

    first = start(0)
    patience = time.time() + 60
    while Path("log").read_text().count("\n") < 4 and time.time() < patience:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = finished_parts(Path("o"), "scored/part-*.parquet")
    assert before
    assert [process.wait(120) for process in (start(0), start(1))] == [0, 0]
    some, plain = load_scores("o"), Length()({name: [row[name] for row in rows] for name in rows[0]})
    assert some["row_id"] == list(range(200))
    wanted = set(candidates.indices.tolist())
    assert some["score_length"] == [value if i in wanted else None for i, value in enumerate(plain["score_length"])]
    assert {int(line[1:]) for line in Path("log").read_text().split()} == wanted
    after = finished_parts(Path("o"), "scored/part-*.parquet")
    assert {name: after[name] for name in before} == before, "a finished part was made again"


# the command line


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def fails(capsys, *argv: object) -> str:
    before = sorted(Path.cwd().rglob("*"))
    assert run(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    assert sorted(Path.cwd().rglob("*")) == before, "something half-written was left"
    return line


@pytest.fixture
def messages(tmp_path, monkeypatch) -> list[dict]:
    """Rows in pool.jsonl, with tool calls whose arguments differ in type, and their scores in cheap/."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(12):
        call = {"name": "f", "arguments": {"x": [1, None]} if i % 2 else {"y": "1", "z": 0.50}}
        asked = [{"role": "user", "content": f"question {i} " + "word " * (i * 5 % 12)}]
        answer = {"role": "assistant", "content": "é" * (i + 1)}
        if i % 3 == 0:
            answer["tool_calls"] = [{"type": "function", "function": call}]
        rows.append({"messages": [*asked, answer], "source": "ab"[i % 2]})
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        run("score", "--scorer", "length", "--of", "prompt", "--dataset", "pool.jsonl", "--output-dir", "cheap") == 0
    )
    return rows


def select(output: str, *more: object) -> int:
    argv = ("--selector", "top_k", "--column", "score_length", "--k", 4, "--output", output)
    return run("select", "--scores", "cheap", *argv, *more)


DEAR = ("score", "--scorer", "perplexity", "--dataset", "pool.jsonl", "--output-dir", "dear")


@pytest.mark.parametrize("kind", ["s.parquet", "s.jsonl", "s.csv", "saved", "record", "moved.parquet", "moved.jsonl"])
def test_every_kind_of_subset_names_the_candidates(kind, messages, capsys):
    output = kind.replace("moved", "s").replace("record", "s.parquet")
    assert select(output) == 0
    given = kind
    if kind == "record":
        given = "s.parquet.selection.parquet"
    elif kind.startswith("moved"):
        Path(output).rename(kind)
    assert run("score", "--scorer", "length", *DEAR[3:], "--of", "response", "--candidates", given) == 0
    said = capsys.readouterr().out
    assert "candidates" in said and "--k 1 " in said and "Only" not in said
    some = read_dataset("dear")
    expected = sorted(range(12), key=lambda i: -len(messages[i]["messages"][0]["content"]))[:4]
    assert [i for i in range(12) if some["score_length"][i] is not None] == sorted(expected)
    summary = json.loads(Path("dear/summary.json").read_text())["candidates"]
    if kind.startswith("moved"):
        assert summary == {"rows": 4, "chosen_by": "4 rows were given"}
    else:
        assert summary["chosen_by"] == "TopK by score_length took 4 of 12 rows" and summary["scores"] == ["cheap"]
        assert summary["cost"] == whole_cost("cheap")
        own = json.loads(Path("dear/summary.json").read_text())["cost"]["seconds"]
        assert whole_cost("dear")["seconds"] == pytest.approx(own + summary["cost"]["seconds"])


def test_costs_of_three_stages_are_counted_once(messages, model_path, capsys):
    assert select("s.jsonl") == 0
    assert run(*DEAR, "--model", model_path, "--candidates", "s.jsonl") == 0
    chosen = ("--selector", "weighted_ranks", "--weights", "score_length=1", "score_perplexity=1", "--k", "2")
    assert run("select", "--scores", "cheap", "dear", *chosen, "--output", "t.jsonl") == 0
    assert run(*DEAR[:-1], "dearest", "--model", model_path, "--candidates", "t.jsonl") == 0
    summary = json.loads(Path("dearest/summary.json").read_text())["candidates"]
    own = sum(json.loads(Path(f"{each}/summary.json").read_text())["cost"]["seconds"] for each in ("cheap", "dear"))
    assert summary["scores"] == ["cheap", "dear"] and summary["cost"]["seconds"] == pytest.approx(own)
    argv = ("--selector", "top_k", "--column", "score_perplexity", "--k", "1", "--output", "u.jsonl")
    assert run("select", "--scores", "dearest", *argv) == 0
    steps = read_finished("u.jsonl").steps
    assert [(step.scorer, step.rows) for step in steps] == [("length", 12), ("perplexity", 4), ("perplexity", 2)]


def test_a_stream_takes_candidates_from_the_command_line(messages, model_path):
    assert select("s.jsonl") == 0
    assert run(*DEAR, "--model", model_path, "--candidates", "s.jsonl", "--stream") == 0
    assert run(*DEAR[:-1], "plain", "--model", model_path, "--candidates", "s.jsonl") == 0
    streamed, plain = (read_dataset(each)["score_perplexity"][:] for each in ("dear", "plain"))
    assert [value is None for value in streamed] == [value is None for value in plain]
    assert list(filter(None, streamed)) == pytest.approx(list(filter(None, plain)), rel=1e-5)
    assert len(list(filter(None, plain))) == 3, "of the four candidates one has tool calls, which the template lacks"


def test_wrong_candidates_are_one_line(messages, model_path, capsys):
    assert select("s.jsonl") == 0
    lines = Path("s.jsonl").read_text().splitlines(keepends=True)
    Path("s.jsonl").write_text("".join(lines[1:]))
    argv = (*DEAR, "--model", model_path, "--candidates")
    assert "is not what" in (said := fails(capsys, *argv, "s.jsonl")) and "Delete that file" in said
    Path("s.jsonl.selection.parquet").unlink()
    assert read_selection("s.jsonl").row_ids == [json.loads(line)["row_id"] for line in lines[1:]]
    assert "no column row_id" not in (said := fails(capsys, *argv, "pool.jsonl")) and "nor a column row_id" in said
    assert "no file or folder" in fails(capsys, *argv, "./nowhere.jsonl")
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages[::-1]))
    elsewhere = (*DEAR[:4], "other.jsonl", *DEAR[5:], "--model", model_path, "--candidates", "s.jsonl")
    assert 'column "messages" differs in 3 of 3' in fails(capsys, *elsewhere)
    assert "candidates are not among the rows" in fails(capsys, *argv, "s.jsonl", "--limit", "1")
