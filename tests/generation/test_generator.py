"""The contract of a generator, with a backend as a third party would write it."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hf_select.cli.main import main
from hf_select.demo import teacher
from hf_select.generation.generator import Answer, Generator, Request
from hf_select.generation.glan.run import GLAN
from hf_select.generation.responses import Responses
from hf_select.models.sampling import Sampling


@dataclass
class MyGenerator(Generator):
    """A backend of a third party.

    Args:
        model: name of the model.
        ending: text after each answer.
    """

    model: str
    ending: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.model

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            text = teacher({"messages": request.messages, "seed": request.sampling.seed})
            yield request, Answer(text + self.ending, "stop")


def test_a_generator_of_a_third_party_needs_a_name_and_stream_alone():
    class Smallest(Generator):
        name = "echo"

        def stream(self, requests):
            for request in reversed(list(requests)):  # any order
                yield request, Answer(request.messages[-1]["content"], "stop")

    model = Smallest()
    chats = [[{"role": "user", "content": text}] for text in "abc"]
    assert [answer.text for answer in model.generate(chats, Sampling())] == ["a", "b", "c"]
    assert model.revision is None and model.release() is None
    assert Smallest.settings_class() is Smallest and Smallest.from_settings(model) is model
    with pytest.raises(TypeError, match="abstract"):
        Generator()  # type: ignore[abstract]


@pytest.mark.parametrize("user", [GLAN, Responses])
def test_what_is_not_a_generator_is_rejected_with_its_name(user):
    with pytest.raises(ValueError, match="model is 'Qwen/Qwen2.5-7B'; it must be a Generator"):
        user("Qwen/Qwen2.5-7B")


def test_glan_and_responses_take_a_generator_of_a_third_party(tmp_path):
    (tmp_path / "taxonomy.yaml").write_text("- Oceanography\n")
    summary = GLAN(MyGenerator("mine"), taxonomy=str(tmp_path / "taxonomy.yaml")).run(tmp_path / "glan")
    pairs = pq.read_table(tmp_path / "glan" / "pairs.parquet").to_pylist()
    assert len(pairs) == summary.pairs > 0 and {pair["answer_model"] for pair in pairs} == {"mine"}
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in ("a", "b")])
    Responses([MyGenerator("mine"), MyGenerator("polite", ending=" Regards")]).run(rows, tmp_path / "responses")
    replies = pq.read_table(tmp_path / "responses" / "responses.parquet").to_pylist()
    assert Counter(reply["model"] for reply in replies) == {"mine": 2, "polite": 2}
    assert all(r["completion"][0]["content"].endswith("Regards") for r in replies if r["model"] == "polite")


@pytest.fixture
def my_module(tmp_path, monkeypatch) -> Iterator[str]:
    """This test's generator in a module of the current folder."""
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).read_text(encoding="utf-8")
    cls = source[source.index("@dataclass\nclass MyGenerator") : source.index("def test_a_generator_of")]
    imports = source[source.index("from collections import Counter") : source.index("@dataclass\nclass MyGenerator")]
    extra = (
        "class NoFields(MyGenerator.__mro__[1]):\n    name = 'x'\n    stream = MyGenerator.stream\n\n\n"
        "@dataclass\nclass NoModel(NoFields):\n    pass\n"
    )
    (tmp_path / "my_generators.py").write_text(f"{imports}{cls}{extra}", encoding="utf-8")
    (tmp_path / "taxonomy.yaml").write_text("- Oceanography\n")
    yield "my_generators"
    sys.modules.pop("my_generators", None)


def test_the_command_line_takes_a_generator_of_a_third_party(my_module, capsys):
    words = ["generate", "glan", "--taxonomy", "taxonomy.yaml", "--output-dir", "out", "--model", "mine"]
    assert (
        main([*words, "--backend", f"{my_module}:MyGenerator", "--answer-model", "other", "--ending", " Regards"]) == 0
    )
    pairs = pq.read_table("out/pairs.parquet").to_pylist()
    assert pairs and all(pair["completion"].endswith("Regards") and pair["answer_model"] == "other" for pair in pairs)
    with pytest.raises(SystemExit):
        main(["generate", "glan", "--backend", f"{my_module}:MyGenerator", "--help"])
    assert "--ending" in (shown := capsys.readouterr().out) and "text after each answer" in shown
    Path("chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    words = ["generate", "responses", "--dataset", "chats.jsonl", "--output-dir", "r", "--model", "a", "b"]
    assert main([*words, "--backend", f"{my_module}:MyGenerator"]) == 0
    assert pq.read_table("r/responses.parquet").num_rows == 2


@pytest.mark.parametrize(
    "backend, message",
    [
        ("none_such:MyGenerator", 'cannot import "none_such:MyGenerator": No module named'),
        ("my_generators:None_", 'cannot import "my_generators:None_": module'),
        ("my_generators:Answer", "does not inherit hf_select.generation.generator.Generator"),
        ("my_generators:NoFields", "is not a dataclass"),
        ("my_generators:NoModel", "has no field `model`"),
        ("servr", 'unknown backend "servr". Did you mean server?'),
    ],
)
def test_a_backend_that_cannot_be_used_is_one_clear_line(my_module, capsys, backend, message):
    assert main(["generate", "glan", "--backend", backend, "--output-dir", "out", "--model", "m"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    assert len(errors) == 1 and message in errors[0]
