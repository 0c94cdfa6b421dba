"""Answers are read as a marker would read them, tasks of lm-evaluation-harness are its own numbers, and launched runs
are those of one process."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import yaml
from datasets import Dataset
from launching import launched
from test_compare import ground, rows_of  # noqa: F401

from hf_select import CausalLM, TopK
from hf_select.evaluation.checkable_answers import CheckableAnswers, letter, number, plain, same_number
from hf_select.evaluation.compare import compare
from hf_select.evaluation.held_out_loss import HeldOutLoss
from hf_select.evaluation.measure import Measure
from hf_select.models.responses import tokenize_with_labels
from hf_select.reports.comparison_result import MeasureInfo
from hf_select.training.equal_tokens import Recipe
from hf_select.training.train_on_tokens import train_on_tokens


needs_math_verify = pytest.mark.skipif(
    find_spec("math_verify") is None, reason='needs the extra: pip install "hf-select[eval]"'
)


@needs_math_verify
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so he has 12 apples.", "12"),
        ("3 times 4 is <<3*4=12>>12\n#### 1,234", "1234"),
        ("It costs $1,234.50 in all", "1234.5"),
        ("#### 18.0", "18"),
        ("first 5, at last -7", "-7"),
        ("about .5 of it", "0.5"),
        ("#### 10\nAnd 99 more #### 11", "11"),
        ("no figure", None),
        ("10-7 apples", "7"),
        ("x = \u22125", "-5"),
        ("between 3,4", "4"),
        ("1,234,567", "1234567"),
        ("-0.0", "0"),
        ("007.50", "7.5"),
        ("9" * 5000, "9" * 5000),
        ("- 5 apples\n- 7 pears", "7"),
        ("at 5:30", "5:30"),
        ("so 3 1/2 of 12", "12"),
        ("that leaves 6/8", "3/4"),
        ("3 1/2", "7/2"),
        ("so the area is $3\\sqrt{2}$.", "3\\sqrt{2}"),
        ("so $3 \\times 4 = 12$ apples", "12"),
        ("He pays $5 and then $7", "7"),
        ("\\[ x = 12 \\]", "12"),
    ],
)
def test_the_last_number(text, found):
    assert number(text) == found


@needs_math_verify
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 42 ... Step 1 done", "42"),
        ("#### 42\nStep 1 done", "42"),
        ("#### $1,234.50\n2 checks", "1234.5"),
        ("#### -5 degrees, not 7", "-5"),
        ("so 5.\n#### Step 3: multiply by 4\nThe answer is 20.", "20"),
        ("The answer is 42. I used 3 steps.", "42"),
        ("The answer is $12.50 per ticket, for 3 tickets.", "12.5"),
        ("The answer is **42**, with 2 digits", "42"),
        ("The answer is 3 + 4 = 7, of 2 numbers.", "7"),
        ("The answer is that he has 3 dogs and 4 cats, so 7. Step 2 is easy.", "7"),
        ("The answer to 3 + 4 is 7, as 2 + 5.", "7"),
        ("The answer is approximately 3.14 (2 digits)", "3.14"),
        ("The answer is 50%, up from 20%.", "50"),
        ("The answer is as follows:\n\nfirst 1, then 42", "42"),
        ("**Answer:** 18 apples (6 boxes of 3)", "18"),
        ("**Final Answer**: 3/4 of 100", "3/4"),
        ("### Final Answer\n42 km in 3 hours", "42"),
        ("Answer: x = 5, y = 6", "5"),
        ("The answer is 2^5 = 32", "32"),
        ("The answer is 3 x 10^8 m/s", "3 \\times 10^{8}"),
        ("The answer is 1.5e-3.", "1.5 \\times 10^{-3}"),
        ("The answer is 3√2.", "3\\sqrt{2}"),
        ("\\boxed{3 \\text{ and } 5}", "3 , 5"),
        ("Answer:\n\n$$ 42 $$\n3 notes", "42"),
        ("<answer>1,000</answer> after 3 steps", "1000"),
        ("答案是 42。因为 6 乘 7", "42"),
        ("<think>The answer is 5? #### 5</think> It is 6.", "6"),
        ("\\boxed{42} in 3 steps", "42"),
        ("The final answer is $\\boxed{7}$. I am 100 % sure.", "7"),
        ("\\boxed{12.50\\text{ dollars}} for 2", "12.5"),
        ("\\boxed{\\$1{,}234}", "1234"),
        ("\\boxed{50\\%}", "50"),
        ("\\boxed{90^\\circ}", "90"),
        ("\\boxed{5\\text{ cm}^2}", "5"),
        ("\\boxed{x = 5}", "5"),
        ("\\boxed{\\frac{3}{4}} of 12", "\\frac{3}{4}"),
        ("\\boxed{\\text{no}} 5 is odd", "5"),
        ("\\boxed{12", "12"),
        ("\\boxed 42 in 3 steps", "42"),
        ("so $\\boxed 42$ in 3 steps", "42"),
        ("\\fbox{42} in 3 steps", "42"),
        ("The answer is ４２, in 3 steps", "42"),
        ("The answer is ٤٢.", "42"),
        ("答案：（４２）。共 3 步", "42"),
        ("答案是 12，345 是原数", "12"),
        ("first \\boxed{1}, at last \\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
    ],
)
def test_a_marked_number_comes_first(text, found):
    assert number(text) == found


@needs_math_verify
def test_numbers_and_formulas_are_compared_by_value():
    same = [
        ("1/2", "0.5", "\\frac{1}{2}", "\\frac12"),
        ("2\\pi", "\\pi \\cdot 2"),
        ("1200", "1.2 \\times 10^3", number("1.2 x 10^3"), number("12e2")),
        ("3 , 5", "3, 5"),
        ("x^2 + 1", "1 + x^2"),
        ("\\{1, 2\\}", "\\{2, 1\\}"),
    ]
    values = [(value, group) for group in same for value in group]
    other = ["5:30", "5:45", "0.333", "1/3", "12.5", "12.50001", "-0.5"]
    values += [(value, value) for value in other]
    wrong = [(a, b) for a, one in values for b, two in values if same_number(a, b) != (one == two)]
    assert wrong == [] and not same_number("(1, 2)", "(2, 1)")


def test_without_math_verify_the_extra_is_named_before_anything_is_generated(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    rows = Dataset.from_list([{"prompt": "2 + 2?", "completion": "4"}])
    with pytest.raises(ImportError, match=r'pip install "hf-select\[eval\]"'):
        CheckableAnswers(rows)
    assert CheckableAnswers(rows, "text")._correct == ["4"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("(C) because of the heat", "C"),
        ("The answer is (D).", "D"),
        ("A is wrong, so the answer is B", "B"),
        ("answer: c", "C"),
        ("A dog barks at night", None),
        ("The answer is a mammal", None),
        ("The answer is I think B", None),
        ("The answer is B.\nI hope this helps!", "B"),
        ("The answer is B.\nA is wrong because it is cold.", "B"),
        ("Answer: **b**", "B"),
        ("The correct answer is option C", "C"),
        ("so \\boxed{D}", "D"),
        ("so \\boxed{\\text{D}}", "D"),
        ("B. Paris\nA. is the capital of no land", "B"),
        ("**B**", "B"),
        ("the answer is (b) as said", "B"),
        ("Heat rises", None),
        ("The correct choice is D", "D"),
        ("The correct option is (C).", "C"),
        ("The correct one is B, not A", "B"),
        ("The best answer is **C. Mitochondria**", "C"),
        ("**Answer: B) Paris**", "B"),
        ("**Answer:** (B)\nA is wrong", "B"),
        ("Final answer - B", "B"),
        ("I'd go with (A)", "A"),
        ("I would choose C.", "C"),
        ("(B) is correct because A is wrong", "B"),
        ("Therefore, D is the correct answer.", "D"),
        ("Option A is wrong, so the answer is C. Option D is silly.", "C"),
        ("A. no\nB. no\nTherefore: C", "C"),
        ("so it must be (D).", "D"),
        ("Option B", "B"),
        ("b)", "B"),
        ("#### C", "C"),
        ("<answer>b</answer>", "B"),
        ("答案是B", "B"),
        ("\\boxed{\\textbf{(D)}}", "D"),
        ("The answer is: $\\boxed{D}$, as A is wrong", "D"),
        ("<think>The answer is A.</think>\n\nB", "B"),
        ("The answer is not A", None),
        ("D is the answer", "D"),
        ("The answer is “B”, not 'A'", "B"),
        ("The answer is obviously C", "C"),
        ("It should be D", "D"),
        ("It is a dog, I think", None),
        ("The answer is 'B', not 'A'.", "B"),
        ("The answer's A's twin.", None),
        ("So the answer is indeed B!", "B"),
        ("I'd say B.", "B"),
        ("答案：（Ｂ）", "B"),
        ("A 和 B 都不对，所以选 C。", "C"),
        ("答案选C。", "C"),
        ("选项 A 不对。答案是 B", "B"),
    ],
)
def test_the_letter_of_a_choice(text, found):
    assert letter(text) == found


def test_plain_text():
    assert plain("The  Answer, (a) is:\n Paris!") == "answer is paris"


@needs_math_verify
def test_answers_are_checked_against_the_rows_own(ground):  # noqa: F811
    """A model that learned three sums by heart gives those and no others."""
    _, _, recipe = ground
    rows = Dataset.from_list([{"prompt": f"Add {a} and 1.", "completion": f"{a} and 1 make {a + 1}"} for a in (3, 8)])
    lm = CausalLM(recipe.model, dtype="float32")
    known, _, _ = tokenize_with_labels(lm, rows, "chat", 64)
    assert CheckableAnswers(rows, max_new_tokens=12)(lm) == [0.0, 0.0]
    trained = train_on_tokens(Recipe(recipe.model, learning_rate=1e-2, rows_per_step=2), lm, known, 9000, 240, 0).lm
    other = Dataset.from_list([*rows, {"prompt": "Add 3 and 1.", "completion": "I say 99"}])
    for final in ("number", "text", "contains"):
        assert CheckableAnswers(other, final, max_new_tokens=12)(trained) == [1.0, 1.0, 0.0], final
    assert HeldOutLoss(rows)(trained)[0] < 0.1
    with pytest.raises(ValueError, match="row 0 of a task has no letter in its response"):
        CheckableAnswers(Dataset.from_list([{"prompt": "a", "completion": "one"}]), "letter")
    with pytest.raises(ValueError, match='final is "figure"'):
        CheckableAnswers(rows, "figure")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to measure on"):
        CheckableAnswers(rows.select([]))


@needs_math_verify
def test_budgets_in_tokens_and_answers_in_a_comparison(ground, tmp_path):  # noqa: F811
    pool, held_out, recipe = ground
    from hf_select.scoring.length import Length

    pool = pool.map(lambda row, i: {"completion": " ".join([row["completion"]] * (1 + i % 2 * 3))}, with_indices=True)
    pool = pool.map(Length(tokenizer=recipe.model), batched=True)
    long = [float(n) for n in pool["num_tokens"]]
    pool = pool.add_column("long", long).add_column("short", [-n for n in long])
    methods = {"long": TopK("long"), "short": TopK("short")}
    measures = {"sums": held_out, "right": CheckableAnswers(held_out, max_new_tokens=8)}
    result = compare(pool, methods, measures, recipe, tmp_path / "c", [8, "200 tokens"], seeds=2, passes=0.5)
    assert set(result.budgets) == {"8 rows", "200 tokens"}
    assert result.measures["right"] == MeasureInfo("higher", "share right", 20)
    by_rows, by_tokens = (result.budgets[name]["right"] for name in ("8 rows", "200 tokens"))
    assert by_tokens["short"].runs.rows > by_tokens["long"].runs.rows
    assert by_tokens["short"].matched is None, "both have taken as many tokens"
    chosen = sum(sorted(pool["num_tokens"])[:8])
    assert by_rows["short"].matched.baseline == f"random ({chosen:,} tokens)"
    text = (tmp_path / "c" / "result.md").read_text()
    assert "200 tokens: right" in text and f"random ({chosen:,} tokens)" in text


class Offset(Measure):
    """A measure as a third party would write it: one value per item, and which way is better."""

    better = "higher"

    def __init__(self, offsets):
        self.offsets = offsets

    def __call__(self, lm):
        parameter = float(next(lm.load().model.parameters()).detach().flatten()[0])
        return [parameter + offset for offset in self.offsets]


def test_a_third_partys_measure_needs_a_direction_and_a_call(ground, tmp_path):  # noqa: F811
    pool, _, recipe = ground
    result = compare(
        pool, {"m": TopK("good")}, {"mine": Offset([1.0, 2.0, 3.0])}, recipe, tmp_path / "c", [8], seeds=2, passes=0.25
    )
    assert result.measures["mine"] == MeasureInfo("higher", "score", 3)
    assert result.overlap == {} and {"random", "m"} <= set(result.budgets["8 rows"]["mine"])
    with pytest.raises(ValueError, match="holds a comparison of another run .*mine"):
        compare(pool, {"m": TopK("good")}, {"mine": Offset([4.0])}, recipe, tmp_path / "c", [8], seeds=2, passes=0.25)


def test_methods_of_like_length_share_their_baseline(ground, tmp_path, monkeypatch):  # noqa: F811
    """Which runs are wanted is asked here, none is made."""
    from hf_select.evaluation import compare as module

    pool, held_out, recipe = ground
    wanted = {}
    monkeypatch.setattr(module.ComparisonRun, "_run_missing", lambda self, cells: wanted.update(cells))
    pool = pool.map(lambda row, i: {"completion": f"{i} ".ljust(3) + "and " * (2 + i % 2 * 20)}, with_indices=True)
    pool = pool.add_column("num_tokens", [1] * len(pool))  # of another tokenizer: counted again
    pool = pool.add_column("a", [float(i % 2) * 100 + i for i in range(len(pool))])
    pool = pool.add_column("b", [float(i % 2) * 100 - i for i in range(len(pool))])
    with pytest.raises(KeyError, match="values"):  # there are no runs to make a table of
        compare(pool, {"a": TopK("a"), "b": TopK("b")}, {"d": held_out}, recipe, tmp_path / "c", [10], seeds=2)
    names = {cell.method for cell in wanted}
    known, _, _ = tokenize_with_labels(CausalLM(recipe.model, dtype="float32"), pool, "chat", recipe.max_length)
    matched = f"random ({sum(sorted(map(len, known['input_ids']))[-10:]):,} tokens)"  # the longest come first
    assert names == {"untrained", "random", "longest", "a", "b", matched}
    assert {rows.matched_by for cell, rows in wanted.items() if cell.method in "ab"} == {matched}


def harness_task(folder, documents, **settings) -> dict[str, str]:
    """A task of lm-evaluation-harness in a folder, and where LMEvalTask finds it."""
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **settings,
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "task.yaml").write_text(yaml.safe_dump(task))
    return {"include_path": str(folder / "tasks")}


@pytest.mark.slow
def test_tasks_of_the_harness_are_its_own_numbers(ground, tmp_path, monkeypatch):  # noqa: F811
    lm_eval = pytest.importorskip("lm_eval", reason='needs the extra: pip install "hf-select[eval]"')
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from hf_select.evaluation.lm_eval_task import LMEvalTask

    _, held_out, recipe = ground
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents = [{"question": r["prompt"], "choices": [r["completion"], "no"], "right": i % 2} for i, r in
                 enumerate(held_out)]  # fmt: skip
    listed = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    where = harness_task(
        tmp_path, documents, task="my_sums", output_type="multiple_choice", doc_to_choice="{{choices}}",
        doc_to_target="{{right}}", metric_list=listed,
    )  # fmt: skip
    lm = CausalLM(recipe.model, dtype="float32")
    measure = LMEvalTask("my_sums", **where)
    assert (measure.metric, measure.better) == ("acc", "higher")
    values = measure(lm)
    manager = TaskManager(**where, include_defaults=False)
    loaded = lm.load()
    whole = lm_eval.simple_evaluate(
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer), tasks=["my_sums"], task_manager=manager
    )
    assert len(values) == 20 and np.mean(values) == whole["results"]["my_sums"]["acc,none"]
    norm = LMEvalTask("my_sums", metric="acc_norm", limit=6, **where)(lm)
    assert len(norm) == 6 and set(norm) <= {0.0, 1.0}
    with pytest.raises(ValueError, match='no single task "arc"'):
        LMEvalTask("arc", **where)
    with pytest.raises(ValueError, match='no metric "f1"; it has acc, acc_norm'):
        LMEvalTask("my_sums", metric="f1", **where)


@pytest.mark.slow
def test_a_task_of_the_harness_is_read_by_one_of_its_filters(ground, tmp_path, monkeypatch):  # noqa: F811
    """What the first filter cannot find is "[invalid]", which is the right answer here; the second takes all."""
    pytest.importorskip("lm_eval", reason='needs the extra: pip install "hf-select[eval]"')
    from hf_select.evaluation.lm_eval_task import LMEvalTask

    _, held_out, recipe = ground
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    first = {"function": "take_first"}
    where = harness_task(
        tmp_path,
        [{"question": row["prompt"]} for row in held_out],
        task="my_words",
        output_type="generate_until",
        generation_kwargs={"max_gen_toks": 3},
        doc_to_target="[invalid]",
        filter_list=[
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "(never said)"}, first]},
            {"name": "whole", "filter": [first]},
        ],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    lm, where = CausalLM(recipe.model, dtype="float32"), {"limit": 3, **where}
    assert LMEvalTask("my_words", **where)(lm) == [1.0] * 3
    whole = LMEvalTask("my_words", filter="whole", **where)
    assert whole(lm) == [0.0] * 3 and whole.identity()["filter"] == "whole"
    with pytest.raises(ValueError, match='no filter "loose"; it has strict, whole'):
        LMEvalTask("my_words", filter="loose", **where)


# With ACCELERATE_USE_CPU; accelerate's own MULTI_CPU is one process, silently, where there is no MPI.
CONFIGURATION = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: false
num_processes: 2
num_machines: 1
machine_rank: 0
main_process_port: 0
mixed_precision: 'no'
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora_r", [None, 4])
def test_a_launched_run_is_that_of_one_process(ground, tmp_path, monkeypatch, lora_r):  # noqa: F811
    """Two processes with half of each step: the same tokens, steps and, up to rounding, the same model. Without
    dropout and with one order of rows there is nothing else that could differ."""
    pool, held_out, recipe = ground
    (tmp_path / "two.yaml").write_text(CONFIGURATION)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    lm = CausalLM(recipe.model, dtype="float32")
    rows, _, _ = tokenize_with_labels(lm, pool.select(range(4)), "chat", 64)
    base = Recipe(recipe.model, learning_rate=3e-3, rows_per_step=4, max_length=64, lora_r=lora_r)
    one = train_on_tokens(base, lm, rows, 600, 8, seed=1)
    both = Recipe(**{**vars(base), "accelerate_config": str(tmp_path / "two.yaml")})
    two = train_on_tokens(both, CausalLM(recipe.model, dtype="float32"), rows, 600, 8, seed=1)
    assert (one.processes, two.processes) == (1, 2)
    assert (one.tokens, one.steps, one.flops) == (two.tokens, two.steps, two.flops)
    measure = HeldOutLoss(held_out)
    before, after = measure(CausalLM(recipe.model, dtype="float32")), measure(one.lm)
    assert np.abs(np.subtract(before, after)).max() > 0.01, "nothing was learned"
    if lora_r is None:  # an adapter begins at random numbers of its own process
        np.testing.assert_allclose(measure(two.lm), after, atol=1e-4)
    with pytest.raises(RuntimeError, match="missing.yaml"):
        missing = Recipe(**{**vars(both), "accelerate_config": str(tmp_path / "missing.yaml")})
        train_on_tokens(missing, CausalLM(recipe.model, dtype="float32"), rows, 600, 8, seed=1)


@needs_math_verify
@pytest.mark.slow
def test_processes_of_a_launch_share_the_runs(ground, tmp_path):  # noqa: F811
    pool, held_out, recipe = ground
    pool.remove_columns("good").to_json(tmp_path / "pool.jsonl")
    held_out.to_json(tmp_path / "held_out.jsonl")
    words = ["-m", "hf_select.cli.main"]
    score = [*words, "score", "--scorer", "length", "--tokenizer", recipe.model, "--output-dir", str(tmp_path / "s")]
    assert launched("alone", [*score, "--dataset", str(tmp_path / "pool.jsonl")], tmp_path).returncode == 0
    ended = launched(
        "ddp",
        [*words, "compare", "--model", recipe.model, "--dataset", str(tmp_path / "pool.jsonl"), "--held-out",
         f"sums={tmp_path}/held_out.jsonl", "--answers", f"right={tmp_path}/held_out.jsonl", "--max-new-tokens", "6",
         "--budgets", "8", "--seeds", "2", "--passes", "1", "--rows-per-step", "4", "--methods",
         f"long={tmp_path}/s", "--output-dir", str(tmp_path / "c")],
        tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("8 rows: sums") == 1, "one process speaks"
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert set(result["measures"]) == {"sums", "right"}
    by = {json.loads(path.read_text())["by"] for path in (tmp_path / "c" / "cells").rglob("*.json")}
    assert len(by) == 2
