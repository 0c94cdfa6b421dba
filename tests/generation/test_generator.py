"""The contract of a generator, with a backend as a third party would write it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

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
        shout: answer in upper case.
    """

    model: str
    shout: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.model

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            text = teacher({"messages": request.messages, "seed": request.sampling.seed})
            yield request, Answer(text.upper() if self.shout else text, "stop")


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


def test_glan_and_responses_take_a_generator_of_a_third_party(tmp_path):
    (tmp_path / "taxonomy.yaml").write_text("- Oceanography\n")
    summary = GLAN(MyGenerator("mine"), taxonomy=str(tmp_path / "taxonomy.yaml")).run(tmp_path / "glan")
    pairs = pq.read_table(tmp_path / "glan" / "pairs.parquet").to_pylist()
    assert len(pairs) == summary["pairs"] > 0 and {pair["answer_model"] for pair in pairs} == {"mine"}
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in ("a", "b")])
    Responses([MyGenerator("mine"), MyGenerator("loud", shout=True)]).run(rows, tmp_path / "responses")
    replies = pq.read_table(tmp_path / "responses" / "responses.parquet").to_pylist()
    assert Counter(reply["model"] for reply in replies) == {"mine": 2, "loud": 2}
    assert all(r["completion"][0]["content"].isupper() for r in replies if r["model"] == "loud")
