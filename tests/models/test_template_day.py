"""A template that writes today's date: the day is that on which the job began, whenever it is resumed."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime

import numpy as np
import pytest
from chat_templates import TEMPLATES
from datasets import Dataset
from datasets.fingerprint import Hasher
from killing import finished_parts
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from hf_select import CausalLM, Length, Perplexity, PoolIndex, RDSPlus, score
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode_all
from hf_select.data.scores import read_scored
from hf_select.features.hidden_states import HiddenStates
from hf_select.models.template_day import DatedTokenizer
from hf_select.training.warmup import WarmUp


TEMPLATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|today|>' + date_string + '\n' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
ROW = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A fig."}]
QUERIES = Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}] * 2)


@pytest.fixture
def clock(monkeypatch):
    """A way to set the clock that templates read."""

    def turn(day: str) -> None:
        class Then(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromisoformat(day)

        monkeypatch.setattr(chat_template_utils, "datetime", Then)

    turn("2026-03-01")
    return turn


@pytest.fixture
def dated_path(model_path, tmp_path) -> str:
    """The model with a template that asks for the date."""
    shutil.copytree(model_path, tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "dated")
    return str(tmp_path / "dated")


FORMATS = ["%Y-%m-%d", "%A, %-d. %B %Y", "%d/%m/%y %H:%M:%S", "%b %d %p %j %U", "of %Y, %%", "no directive"]


@pytest.mark.parametrize("day", ["2026-03-01", "2024-02-29", "1999-12-31"])
def test_a_fixed_day_writes_what_the_clock_writes_on_that_day(day, clock, tokenizer):
    shipped = [text for text in TEMPLATES.values() if "strftime_now" in text]
    assert shipped or "llama3_2" not in TEMPLATES, "the template of Llama 3.2 writes the date"
    for text in [*shipped, *(f"\n x{{{{ strftime_now('{f}') }}}}" for f in FORMATS)]:
        given = copy.copy(tokenizer)
        given.chat_template = text
        fixed = DatedTokenizer(lambda given=given: given, day).tokenizer.chat_template
        clock(f"{day}T00:00:00")
        expected = render_jinja_template(conversations=[ROW], chat_template=text, bos_token="", eos_token="")[0]
        clock("2001-01-01")
        found = render_jinja_template(conversations=[ROW], chat_template=fixed, bos_token="", eos_token="")[0]
        assert found == expected
        assert given.chat_template == text, "the tokenizer that was given has another template now"


def test_a_resumed_job_goes_on_with_the_day_it_began_with(clock, dated_path, rows, tmp_path):
    pool = Dataset.from_list(rows)
    whole = score(pool, Perplexity(dated_path), tmp_path / "o", chunk_rows=7)["score_perplexity"]
    (tmp_path / "o" / "scored" / "part-00002.parquet").unlink()
    clock("2026-03-02")
    assert score(pool, Perplexity(dated_path), tmp_path / "o", chunk_rows=7)["score_perplexity"] == whole
    used = Perplexity(dated_path)
    tomorrow = used(pool[:7])["score_perplexity"]  # it has a day already
    (tmp_path / "o" / "scored" / "part-00000.parquet").unlink()
    assert score(pool, used, tmp_path / "o", chunk_rows=7)["score_perplexity"] == whole
    again = score(pool, Perplexity(dated_path), tmp_path / "p", chunk_rows=7)["score_perplexity"]
    assert again[:7] == tomorrow and again != whole
    made_by = [json.loads((tmp_path / name / "manifest.json").read_text())["made_by"] for name in "op"]
    assert [found["identity"]["model"]["day"] for found in made_by] == ["2026-03-01", "2026-03-02"]
    assert made_by[0]["hash"] != made_by[1]["hash"]


JOB = """
import sys, time
from datetime import datetime
from transformers.utils import chat_template_utils

class Then(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(sys.argv[3])

chat_template_utils.datetime = Then
from datasets import Dataset
from hf_select import Perplexity, demo, score

class Slow(Perplexity):
    def measure(self, rows):
        time.sleep(float(sys.argv[4]))
        return super().measure(rows)

rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in demo.make_pool(60, seed=8)]
score(Dataset.from_list(rows), Slow(sys.argv[2]), sys.argv[1], chunk_rows=5)
"""


@pytest.mark.slow
def test_a_job_that_is_killed_before_midnight_is_finished_as_of_that_day(clock, dated_path, tmp_path):
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))

    def start(day: str, seconds: float) -> subprocess.Popen:
        words = [str(tmp_path / "job.py"), str(tmp_path / "o"), dated_path, day, str(seconds)]
        return subprocess.Popen([sys.executable, *words], env=os.environ, stderr=subprocess.DEVNULL)

    job = start("2026-03-01", 0.3)
    while job.poll() is None and len(finished_parts(tmp_path / "o", "scored/*.parquet")) < 3:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert 3 <= len(finished_parts(tmp_path / "o", "scored/*.parquet")) < 12
    assert start("2026-03-02", 0).wait() == 0
    scored = read_scored(tmp_path / "o")
    whole = Perplexity(dated_path)({name: scored[name][:] for name in ("prompt", "completion")})
    np.testing.assert_allclose(scored["score_perplexity"], whole["score_perplexity"], rtol=1e-5)


def test_only_a_template_that_asks_for_the_date_makes_a_day_part_of_a_scorer(clock, dated_path, model_path):
    made = {
        "dated": lambda: Perplexity(dated_path),
        "dated_length": lambda: Length(tokenizer=dated_path),
        "plain": lambda: Perplexity(model_path),
        "plain_length": lambda: Length(tokenizer=model_path),
        "characters": lambda: Length(),
    }
    before = {name: Hasher.hash(make()) for name, make in made.items()}
    clock("2026-03-02")
    after = {name: Hasher.hash(make()) for name, make in made.items()}
    assert {name for name in made if before[name] != after[name]} == {"dated", "dated_length"}


def test_a_worker_of_map_writes_the_day_of_the_process_that_started_it(clock, dated_path, rows):
    import pickle

    for scorer in (Perplexity(dated_path), Length(tokenizer=dated_path, of="prompt")):
        batch = {name: [row[name] for row in rows[:3]] for name in rows[0]}
        expected = scorer(batch)
        clock("2026-12-24")
        again = pickle.loads(pickle.dumps(scorer))
        assert again(batch) == expected and Hasher.hash(again) == Hasher.hash(scorer)
        clock("2026-03-01")


def test_queries_are_encoded_as_of_the_day_of_the_index(clock, dated_path, rows, tmp_path):
    pool = Dataset.from_list(rows)
    index = PoolIndex.build(pool, HiddenStates(dated_path), tmp_path / "i", stored_dtype="float32", chunk_rows=9)
    expected = score(pool, RDSPlus(dated_path).fit(QUERIES), tmp_path / "a", index=index)["score_rds"]
    (tmp_path / "i" / "vectors" / "part-00001.arrow").unlink()
    clock("2026-11-30")
    PoolIndex.build(pool, HiddenStates(dated_path), tmp_path / "i", stored_dtype="float32", chunk_rows=9)
    found = score(pool, RDSPlus(dated_path).fit(QUERIES), tmp_path / "b", index=index)["score_rds"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    best = RDSPlus(dated_path).fit(QUERIES).best_rows(pool, 3, index=index)
    np.testing.assert_allclose(best.similarities[:, 0], max(expected), atol=1e-6)
    today = score(pool, RDSPlus(dated_path).fit(QUERIES), tmp_path / "c")["score_rds"]
    assert np.abs(np.subtract(today, expected)).max() > 1e-4


def test_a_warm_up_keeps_its_day_and_its_checkpoints_keep_the_template(clock, dated_path, rows, tmp_path):
    def run() -> list[str]:
        settings = {"fraction": 0.2, "epochs": 1, "rows_per_step": 4, "rows_per_batch": 4, "lora_r": 2}
        return WarmUp(dated_path, lora_alpha=4, **settings).run(Dataset.from_list(rows), tmp_path / "w")

    (checkpoint,) = run()
    clock("2026-03-02")
    assert run() == [checkpoint]
    assert json.loads((tmp_path / "w" / "warm_up.json").read_text())["model"]["day"] == "2026-03-01"
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == TEMPLATE


def test_a_loaded_model_writes_the_day_that_its_job_began_on(clock, dated_path, tokenizer):
    given = AutoTokenizer.from_pretrained(dated_path)
    lm = CausalLM(AutoModelForCausalLM.from_pretrained(dated_path), tokenizer=given)
    (row,) = conversations({"messages": [ROW]})

    def text() -> str:
        return given.decode(encode_all([row], lm.load().tokenizer)[0].input_ids)

    assert "01 Mar 2026" in text()
    clock("2026-03-02")
    assert "01 Mar 2026" in text() and lm.begin_on("2025-12-31") and "31 Dec 2025" in text()
    assert given.chat_template == TEMPLATE and lm.day == "2025-12-31"
