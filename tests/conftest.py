"""Offline, CPU, models made in seconds. Everything is built from the demo's generator; nothing is downloaded."""

import os


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: before torch is loaded
    os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from hf_select import demo  # noqa: E402


GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture(scope="session", autouse=True)
def own_datasets_cache(tmp_path_factory):
    """The `datasets` cache of this run alone: a hit from an earlier run would hide a failure."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HF_DATASETS_CACHE"] = str(datasets.config.HF_DATASETS_CACHE)


@pytest.fixture(scope="session")
def tokenizer():
    texts = list(demo.rating_examples(200, seed=3))
    return demo.train_tokenizer(texts, vocab_size=500)


@pytest.fixture(autouse=True)
def _shared_tokenizer_stays_whole(request):
    """A test that changes the tokenizer that all tests share would make another one fail, and only in some orders."""
    if "tokenizer" not in request.fixturenames:
        yield
        return
    shared = request.getfixturevalue("tokenizer")
    before = shared.chat_template, shared.pad_token, shared.padding_side, len(shared)
    yield
    assert (shared.chat_template, shared.pad_token, shared.padding_side, len(shared)) == before, "work on a copy"


@pytest.fixture(scope="session")
def model_path(tokenizer, tmp_path_factory) -> str:
    """A random Llama of two layers on disk; weights large enough that its predictions differ from row to row."""
    folder = tmp_path_factory.mktemp("model")
    model = demo.tiny_model(
        tokenizer,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,  # type: ignore[arg-type]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Whole and damaged rows with prompt and completion, of very different lengths."""
    pool = [{"prompt": row["prompt"], "completion": row["completion"]} for row in demo.make_pool(40, seed=5)]
    pool[3]["completion"] = ""
    pool[7]["completion"] = " ".join([pool[7]["completion"]] * 6)
    pool[11]["prompt"] = "Café 世界 🙂 <|end|>"
    return pool


@pytest.fixture(scope="session")
def sixteen(rows):
    """Rows that are whole and short."""
    from datasets import Dataset

    return Dataset.from_list(
        [row for row in rows if 0 < len(row["completion"]) < 90 and "<|" not in row["prompt"]][:16]
    )


@pytest.fixture(scope="session")
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip("shared/golden is not beside the project: parity with the reference codes is not checked here")
    return GOLDEN


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of our own, and the client of this process turned to it."""
    import time

    import datasets
    from hub_server import TOKEN, Hub, renew_sessions
    from huggingface_hub import constants, file_download

    server = Hub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    turned = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
    }
    for name, value in turned.items():
        monkeypatch.setattr(constants, name, value)
    if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # huggingface_hub 0.36 has a copy
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    renew_sessions()
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.01)))  # waits between attempts
    yield server
    renew_sessions()
    server.shutdown()
    server.server_close()
