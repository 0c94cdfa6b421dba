"""GLAN against a real server, `transformers serve`, and with the same tiny model in this process."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from hf_select import CausalLM, demo
from hf_select.cli.main import main
from hf_select.generation.generator import Request
from hf_select.generation.glan.run import GLAN
from hf_select.generation.glan.stages import GLANRun
from hf_select.generation.local import TransformersGenerator, VLLMGenerator
from hf_select.generation.server import ServerGenerator
from hf_select.jobs import journal
from hf_select.models.generate import RowSampler, sample_batch, uniforms
from hf_select.models.sampling import Sampling


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> str:
    """A random model with so many end tokens that its answers end."""
    folder = tmp_path_factory.mktemp("chat")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tiny = demo.tiny_model(tokenizer, initializer_range=0.1, max_position_embeddings=2048, **sizes)
    tiny.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 330)]
    tiny.generation_config.do_sample = True
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """`transformers serve` with the tiny model; its address."""
    from transformers.utils import import_utils

    is_available = getattr(import_utils, "is_serve_available", None)  # 4.57 has a server without this function
    if is_available is None or not is_available():
        pytest.skip('transformers serve needs its extra: pip install "transformers[serving]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
        yield f"http://localhost:{port}/v1"
    finally:
        process.kill()
        process.wait()
        print(log.read_text()[-4000:])  # shown with a test that fails


def answers_by_hand(run: GLANRun) -> None:
    """A random model writes no JSON: a person writes a subject and its syllabus into the files."""
    (discipline,) = run.tree.disciplines()
    journal.append(run.tree.file("subjects", discipline), [{"subject_name": "Tides", "subtopics": ["moon"]}])
    (subject,) = run.tree.subjects(discipline)
    sessions = [{"name": f"S{i}", "description": "", "key_concepts": ["a", "b", "c"]} for i in range(3)]
    journal.append(run.tree.file("syllabi", discipline), [{"key": subject.key, "sessions": sessions}])


def test_glan_from_a_real_server_accounts_for_every_pair(server, model, tmp_path, capsys):
    (tmp_path / "taxonomy.yaml").write_text("- Oceanography\n")
    folder = tmp_path / "out"
    words = [
        *("--model", model, "--base-url", server, "--taxonomy", str(tmp_path / "taxonomy.yaml")),
        *("--output-dir", str(folder), "--queries-per-discipline", "3", "--questions-per-subject", "24"),
        *("--max-new-tokens", "48", "--answer-max-new-tokens", "48", "--concurrency", "4"),
    ]
    assert main(["generate", "glan", *words, "--until", "subjects"]) == 0
    assert "failed: lists" in (said := capsys.readouterr().out) or "failed: subjects: there is no JSON" in said
    glan = GLAN(
        ServerGenerator(model, base_url=server),
        taxonomy=str(tmp_path / "taxonomy.yaml"),
        queries_per_discipline=3,
        questions_per_subject=24,
    )
    answers_by_hand(GLANRun(glan, folder))
    assert main(["generate", "glan", *words]) == 0
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    removed = [json.loads(line) for line in (folder / "removed.jsonl").read_text().splitlines()]
    ids = [row["row_id"] for row in (*pairs, *removed)]
    assert len(ids) == len(set(ids)) == 24 and len(pairs) > 3, [row["reason"] for row in removed]
    assert all(pair["prompt"] and pair["completion"] and pair["subject"] == "Tides" for pair in pairs)
    assert {row["reason"].partition(":")[0] for row in removed} <= {"question", "answer", "repeats another question"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["tokens"]["answers"]["written"] > 0 and summary["tokens"]["questions"]["requests"] == 24
    before = (folder / "pairs.parquet").read_bytes()
    assert main(["generate", "glan", *words]) == 0 and (folder / "pairs.parquet").read_bytes() == before


def test_a_real_server_says_so_when_it_does_not_know_the_model(server, tmp_path, capsys):
    words = ["--model", "other/model", "--base-url", server, "--output-dir", str(tmp_path / "out")]
    assert main(["generate", "glan", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    assert 'knows no model "other/model"' in line and "--model" in line


# The same in this process.


@pytest.fixture(scope="module")
def local(model) -> TransformersGenerator:
    return TransformersGenerator(CausalLM(model))


def requests(count: int, **sampling) -> list[Request]:
    words = ["tide", "moon and sea", "a long question about the harbour at night", "x"]
    chats = [[{"role": "user", "content": " ".join(words[: 1 + i % 4])}] for i in range(count)]
    return [Request(chat, Sampling(max_new_tokens=20, seed=i, **sampling), tag=i) for i, chat in enumerate(chats)]


def test_a_draw_is_the_same_alone_and_in_any_batch(local):
    together = {request.tag: answer for request, answer in local.stream(requests(16, top_p=0.95))}
    alone = {request.tag: answer for r in requests(16, top_p=0.95) for request, answer in local.stream([r])}
    assert together == alone and len({answer.text for answer in together.values()}) > 8
    assert {answer.finish_reason for answer in together.values()} == {"stop", "length"}
    assert all(answer.completion_tokens == 20 for answer in together.values() if answer.finish_reason == "length")
    greedy = [answer.text for _, answer in local.stream(requests(4, temperature=0.0))]
    assert greedy == [answer.text for _, answer in local.stream(requests(4, temperature=0.0))]


def test_draws_follow_the_distribution_of_the_logits():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -float("inf")])
    p = torch.softmax(logits, -1)

    def sample(seeds, logits, position=0):
        streams = torch.from_numpy(uniforms(seeds, position + 1))
        ids = torch.zeros(len(seeds), position, dtype=torch.long)
        return RowSampler(streams, 0)(ids, logits.repeat(len(seeds), 1)).argmax(-1)

    drawn = sample(list(range(20_000)), logits)
    counts = torch.bincount(drawn, minlength=5)
    assert (counts - 20_000 * p).abs().le(5 * (20_000 * p * (1 - p)).sqrt()).all(), counts
    few = sample([3, 17], logits)
    assert few.tolist() == drawn[[3, 17]].tolist(), "a row's draw depends on the others of its batch"
    twice = torch.stack([sample(range(1000), torch.zeros(1000), position).double() for position in range(2)])
    assert torch.corrcoef(twice)[0, 1].abs() < 0.2, "the noise of the second token repeats the first's"


@pytest.mark.parametrize("sampling, tokens", [({"top_k": 2}, {0, 1}), ({"top_p": 0.7}, {0, 1}), ({"top_p": 0.6}, {0})])
def test_top_k_and_top_p_sample_from_the_most_likely_tokens_only(sampling, tokens):
    class Fixed(torch.nn.Module):
        """A model whose next token does not depend on its prompt: 0.64, 0.24, 0.09, 0.03."""

        device = torch.device("cpu")

        def generate(self, input_ids, generation_config, logits_processor, **_):
            logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(len(input_ids), 1)
            return torch.cat([input_ids, logits_processor(input_ids, logits).argmax(-1, keepdim=True)], 1)

    model, prompts = Fixed(), [[1]] * 500
    model.generation_config = None
    found = sample_batch(model, prompts, range(500), [1] * 500, Sampling(**sampling), [])
    assert {ids[0] for ids in found} == tokens
    shares = torch.softmax(torch.tensor([2.0, 1.0]), -1)[: len(tokens)]
    expected = 500 * shares[0] / shares.sum()
    assert abs(sum(ids == [0] for ids in found) - expected) < 5 * 500**0.5 / 2, "not the renormalised distribution"


def test_the_generation_settings_of_a_checkpoint_are_not_used(local):
    loaded = local.model.load().model
    before = [answer.text for _, answer in local.stream(requests(8))]
    loaded.generation_config.repetition_penalty = 5.0
    try:
        assert [answer.text for _, answer in local.stream(requests(8))] == before
        assert loaded.generation_config.repetition_penalty == 5.0
    finally:
        loaded.generation_config.repetition_penalty = None


def test_the_smallest_top_p_and_a_cold_temperature_take_the_likeliest_token(local):
    def texts(**sampling):
        return [answer.text for _, answer in local.stream(requests(8, **sampling))]

    assert texts(top_p=1e-6) == texts(temperature=0.0) == texts(temperature=1e-4)


def test_a_prompt_that_fills_the_context_is_told(local):
    long = Request([{"role": "user", "content": "tide " * 3000}], Sampling(max_new_tokens=4))
    ((_, answer),) = local.stream([long])
    assert "fills the context of 2048" in answer.error and not answer.retryable


def test_glan_in_this_process(model, tmp_path):
    (tmp_path / "taxonomy.yaml").write_text("- Oceanography\n")
    words = [
        *("--backend", "transformers", "--model", model, "--taxonomy", str(tmp_path / "taxonomy.yaml")),
        *("--output-dir", str(tmp_path / "out"), "--queries-per-discipline", "2", "--max-new-tokens", "24"),
    ]
    assert main(["generate", "glan", *words]) == 0
    assert pq.read_table(tmp_path / "out" / "pairs.parquet").num_rows == 0
    assert (tmp_path / "out" / "topics.html").exists()


def test_vllm_is_asked_as_its_interface_wants_it(monkeypatch):
    """A stand-in for vLLM 0.30 with the names and signatures used: what is sent and read, not vLLM itself."""
    seen: list[dict] = []

    class SamplingParams:
        def __init__(self, temperature, top_p, max_tokens, seed, structured_outputs):
            self.seed, self.max_tokens, self.structured = seed, max_tokens, structured_outputs

    class LLM:
        def __init__(self, model, **options):
            seen.append({"model": model, **options})

        def chat(self, messages, sampling_params, use_tqdm):
            assert len(messages) == len(sampling_params) and not use_tqdm
            pairs = zip(messages, sampling_params, strict=True)
            said = [f"{chat[-1]['content']} {params.seed}" for chat, params in pairs]
            best = [SimpleNamespace(text=text, finish_reason="stop", token_ids=[1, 2]) for text in said]
            return [SimpleNamespace(outputs=[out], prompt_token_ids=[1, 2, 3]) for out in best]

    names = {"vllm": {"LLM": LLM, "SamplingParams": SamplingParams}}
    names["vllm.sampling_params"] = {"StructuredOutputsParams": lambda json: json}
    for name, content in names.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    generator = VLLMGenerator("some/model", max_model_len=512)
    found = list(generator.stream([*requests(3), Request([{"role": "user", "content": "j"}], Sampling(seed=9), {})]))
    assert [answer.text for _, answer in found][:2] == ["tide 0", "tide moon and sea 1"] and found[3][1].text == "j 9"
    assert (found[0][1].prompt_tokens, found[0][1].completion_tokens) == (3, 2)
    list(generator.stream(requests(1)))
    assert len(seen) == 1 and seen[0]["model"] == "some/model" and seen[0]["max_model_len"] == 512


def test_without_vllm_its_extra_is_named():
    if "vllm" in sys.modules or importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(ImportError, match=r"hf-select\[vllm\]"):
        list(VLLMGenerator("some/model").stream(requests(1)))
