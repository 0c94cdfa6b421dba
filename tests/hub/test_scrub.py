"""Nothing private is published: generated secrets of every kind and paths of every kind, in sentences, in settings and
in all that a publication writes; ordinary text stays as it is."""

import json
import logging
import string

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_select import TopK, push_selected
from hf_select.hub import push as push_module
from hf_select.hub import scrub
from hf_select.hub.scrub import REMOVED, scrubbed
from hf_select.reports.ledger import Step


quick = settings(max_examples=80, derandomize=True, deadline=None)

LETTERS, HEX, BASE64 = string.ascii_letters + string.digits, "0123456789abcdef", string.ascii_letters + "0123456789-_"


def of(alphabet: str, size: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=size, max_size=size)


def key(prefix: str, size: int, alphabet: str = LETTERS) -> st.SearchStrategy[str]:
    return of(alphabet, size).map(lambda rest: prefix + rest)


KEYS = {
    "hugging face": key("hf_", 34),
    "hugging face, of an organisation": key("api_org_", 34),
    "openai": st.one_of(key("sk-", 48), key("sk-proj-", 90, BASE64)),
    "anthropic": key("sk-ant-api03-", 93, BASE64),
    "groq": key("gsk_", 52),
    "nvidia": key("nvapi-", 64, BASE64),
    "xai": key("xai-", 80),
    "perplexity": key("pplx-", 48),
    "fireworks": key("fw_", 24),
    "together": key("tgp_v1_", 43, BASE64),
    "replicate": key("r8_", 37),
    "cerebras": key("csk-", 48),
    "google": key("AIza", 35, BASE64),
    "google, oauth": key("ya29.", 60, BASE64),
    "github": st.one_of(key("ghp_", 36), key("github_pat_", 82)),
    "gitlab": key("glpat-", 20, BASE64),
    "aws": key("AKIA", 16, string.ascii_uppercase + string.digits),
    "azure": key("AccountKey=", 86).map(lambda text: text + "=="),
    "slack": st.tuples(of(string.digits, 11), of(string.digits, 11), of(LETTERS, 24)).map(
        lambda parts: "xoxb-" + "-".join(parts)
    ),
    "stripe": key("sk_live_", 24),
    "sendgrid": st.tuples(of(BASE64, 22), of(BASE64, 43)).map(lambda parts: "SG." + ".".join(parts)),
    "mailchimp": of(HEX, 32).map(lambda text: text + "-us12"),
    "twilio": key("SK", 32, HEX),
    "telegram": st.tuples(of(string.digits, 9), of(BASE64, 35)).map(":".join),
    "discord, longer than its format": st.tuples(of(LETTERS, 24), of(LETTERS, 6), of(LETTERS, 38)).map(
        lambda parts: "M" + ".".join(parts)
    ),
    "npm": key("npm_", 36),
    "pypi": key("pypi-AgEIcHlwaS5vcmc", 80, BASE64),
    "databricks": key("dapi", 32, HEX),
    "jwt": st.tuples(of(BASE64, 20), of(BASE64, 40), of(BASE64, 43)).map(lambda parts: "eyJ" + ".".join(parts)),
    "private key": of(LETTERS, 60).map(
        lambda text: f"-----BEGIN RSA PRIVATE KEY-----\n{text}\n-----END RSA PRIVATE KEY-----"
    ),
}
SENTENCES = [
    "{}",
    "the server said {} and stopped",
    "Incorrect API key provided: {}.",
    '{{"error": "{}"}}',
    "--option={}, at 3/4 and/or x",
    "(see {})",
    "KEY_{}",
]


def left_of(secret: str, text: str, size: int = 8) -> list[str]:
    """Pieces of a secret that stand in a text; its known beginning alone is none."""
    pieces = {secret[i : i + size] for i in range(len(secret) - size + 1)}
    return [
        piece for piece in pieces if piece in text and piece not in ("-----BEG", "PRIVATE ", "AccountK", "ccountKe")
    ]


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_key_of_every_kind_is_removed_from_any_sentence(kind, data):
    secret = data.draw(KEYS[kind])
    for sentence in SENTENCES:
        clean = scrubbed(sentence.format(secret))
        assert REMOVED in clean and not left_of(secret, clean), (sentence.format(secret), clean)


@quick
@given(
    st.sampled_from(
        [
            "Authorization: Bearer {}",
            "authorization=Basic {}",
            "password={}",
            'DB_PASSWORD="{}"',
            '{{"api_key": "{}"}}',
            "--api-key {}",
            "X-Api-Key: {}",
            "client_secret: {}",
            "https://ada:{}@host.example/x",
            "https://{}@host.example/x",
            "https://host.example/x?size=3&access_token={}&page=2",
            "https://b.s3.amazonaws.com/x?X-Amz-Signature={}",
        ]
    ),
    of(LETTERS, 24).filter(lambda text: any(sign.isdigit() for sign in text)),
)
def test_a_secret_without_a_format_is_known_by_its_place(sentence, secret):
    clean = scrubbed(f"it said {sentence.format(secret)} there")
    assert secret not in clean and REMOVED in clean and clean.startswith("it said ") and clean.endswith(" there")


NAMES = st.text(string.ascii_lowercase, min_size=4, max_size=8).map(lambda text: f"Zq{text}")  # told from other words
SPACED = st.lists(NAMES, min_size=1, max_size=3).map(" ".join)
LAST = st.sampled_from(["pool.jsonl", "model", "train-0.parquet", "pool.jsonl.gz"])
ROOTS = {
    "posix": "/", "home": "~/", "another home": "~ada/", "$HOME": "$HOME/", "below": "./", "above": "../",
    "further above": "../../", "file": "file:///", "google": "gs://Zqbucket/", "amazon": "s3://Zqbucket/",
    "hadoop": "hdfs://Zqnode:8020/", "azure": "abfss://Zqbox@Zqacc.dfs.core.windows.net/", "databricks": "dbfs:/",
    "ssh": "Zqada@Zqhost:/", "posix share": "//Zqhost/",
}  # fmt: skip
WINDOWS_ROOTS = {
    "drive": "C:\\", "drive, escaped": "D:\\\\", "share": "\\\\Zqhost\\", "share, escaped": "\\\\\\\\Zqhost\\\\",
    "long": "\\\\?\\C:\\", "profile": "%USERPROFILE%\\",
}  # fmt: skip
PLACES = [
    "{}",
    "see {} for more",
    "({})",
    "--dataset={}",
    "cannot read {}: no such file",
    "rows of {}, or 3/4 and/or x",
    'it is in "{}".',
]


def private_left(text: str) -> bool:
    return "Zq" in text


@pytest.mark.parametrize("root", ROOTS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=4), last=LAST)
def test_of_a_path_the_last_name_alone_stays(root, names, last):
    path = ROOTS[root] + "/".join([*names, last])
    for sentence in PLACES:
        kept = ("dbfs:" if root == "databricks" else "") + last  # no scheme: "dbfs:" is a word before a path
        assert scrubbed(sentence.format(path)) == sentence.format(kept)


@pytest.mark.parametrize("root", ["posix", "home", "above", "file", "google"])
@settings(max_examples=12, derandomize=True, deadline=None)
@given(names=st.lists(SPACED, min_size=1, max_size=4), last=LAST)
def test_names_of_folders_may_hold_spaces(root, names, last):
    path = ROOTS[root] + "/".join([*names, last])
    for sentence in ("{}", 'it is in "{}".', "in '{}' or 3/4"):
        assert scrubbed(sentence.format(path)) == sentence.format(last)
    if root != "google":  # an address ends at a space
        assert not private_left(scrubbed(f"see {path} and 3/4"))


@pytest.mark.parametrize("root", WINDOWS_ROOTS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(names=st.lists(SPACED, min_size=1, max_size=4), last=LAST)
def test_of_a_windows_path_the_last_name_alone_stays(root, names, last):
    path = WINDOWS_ROOTS[root] + ("\\\\" if "escaped" in root else "\\").join([*names, last])
    for sentence in PLACES:
        assert scrubbed(sentence.format(path)) == sentence.format(last)


@quick
@given(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["jsonl", "csv", "parquet", "json.gz", "yaml"]))
def test_a_relative_path_of_a_file_is_cut_and_one_of_an_existing_folder(names, ending):
    path = "/".join([*names, f"pool.{ending}"])
    for sentence in PLACES:
        assert scrubbed(sentence.format(path)) == sentence.format(f"pool.{ending}")


def test_a_folder_that_exists_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "customer" / "pool").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert scrubbed("customer/pool") == "pool" and scrubbed("customer/other") == "customer/other"


WORDS = st.sampled_from(
    [
        "score_perplexity", "and/or", "3/4", "1/2,", "2026/11/30", "km/h", "TCP/IP", "(a/b)", "a // b", "~5/10", "w/o",
        "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B-Instruct", "openai/gsm8k#main/test", "allenai/tulu-3@main",
        "https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k", "https://arxiv.org/abs/2308.12032,",
        "https://host.example/x?page=2&size=3", "hf://datasets/allenai/c4/en/x.json.gz", "train/validation/test",
        "${output_dir}/scores", "${output_dir}/a/subset.jsonl", "<|im_end|>", "0.5231", "1e-4", "50 %", "rank",
        "token", "tokens/s", "max_tokens=2048", "eos_token: </s>", "max_new_tokens", "5f2b" * 16, "5f2b" * 10,
        "arXiv:2402.13064", "12:30:05", "a@b", "the password is short", "secret of its success",
        "\\frac{a}{b}", "\\n", "x->y", "O(n/k)",
        "skip_zero_advantage_batches", "unset_hf_deepspeed_config()", "`a`/`b`", "`n=`/`k=`", '"running"/"exited"',
        "a: one", "~ about", "RDS+/EMBED/LESS", "sk-learn", "f()/g()/h()", "b: \\frac{1}{2}", "it's", "'a' / 'b'",
    ]
)  # fmt: skip


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6).map(" ".join))
def test_ordinary_text_stays_as_it_is(text):
    assert scrubbed(text) == text


def test_settings_are_removed_by_their_names_in_any_spelling():
    secret = {"api_key": "a", "apiKey": "b", "X-Api-Key": "c", "hf-token": "d", "passwords": ["e", "f"]}
    plain = {"eos_token": "</s>", "rating_token": "1", "max_tokens": 5, "api_key_env": "MY_KEY", "tokenizer": "t"}
    assert scrubbed({**secret, **plain}) == {
        **dict.fromkeys(secret, REMOVED),
        "passwords": [REMOVED, REMOVED],
        **plain,
    }


@pytest.mark.parametrize(
    "settings, clean",
    [
        ({"model": "zqteam/runs/tiny"}, {"model": "tiny"}),
        ({"lm": {"model": "zqteam/my runs/tiny/"}}, {"lm": {"model": "tiny"}}),
        ({"output_dir": "a/b/scores", "scores": ["a/b/scores", "c/d/e/more"]},
         {"output_dir": "scores", "scores": ["scores", "more"]}),
    ],
)  # fmt: skip
def test_a_deep_relative_path_in_a_setting_is_shortened(settings, clean):
    assert scrubbed(settings) == clean


@pytest.mark.parametrize(
    "value",
    [
        {"model": "Qwen/Qwen2.5-0.5B"},
        {"dataset": "them/source#main/test"},
        {"scores": "${output_dir}/scores"},
        {"source": "web/forums/de"},  # a value of the rows
        {"scores": ["score_a/b/c"]},  # a column
        {"description": "runs/demo/model"},
        {"model": "one of 1/2 and/or 3/4"},
        {"model": "accounts/fireworks/models/llama-v3", "base_url": "https://api.fireworks.ai/inference/v1"},
    ],
)
def test_hub_ids_and_other_values_are_not_shortened(value):
    assert scrubbed(value) == value


def test_the_formats_of_detect_secrets_are_all_there():
    """The package is a dependency, not an extra: without it nothing is published, rather than less removed."""
    names = {pattern.pattern for pattern in scrub._formats()}
    assert len(names) > 30
    for part in ("AKIA", "hooks\\.slack", "glpat", "pypi-", "sq0csp"):
        assert any(part in name for name in names), part


def test_reasons_of_many_rows_are_scrubbed_in_one_call(monkeypatch):
    import pyarrow as pa

    looked = []
    monkeypatch.setattr(scrub, "_names", lambda: looked.append(1) or {})
    table = pa.table({"a_reason": [f"rank {i}: score_a {i / 7:.4f}" for i in range(500)]})
    assert push_module._without_secrets(table) == table
    assert len(looked) == 1, "what is known of the machine was looked up for every reason"


@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys=st.fixed_dictionaries(KEYS))
def test_nothing_private_is_in_any_file_or_log_of_a_publication(keys, tmp_path_factory, monkeypatch, caplog):
    """Every kind of secret and of path in steps, recipe, reasons, chain and the source's name."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(push_module, "draw", lambda numbers: [])
    paths = [*(root + "Zqteam/pool.jsonl" for root in ROOTS.values())]
    paths += [root + "Zq team\\pool.jsonl" for root in WINDOWS_ROOTS.values()]
    private = [f"{kind}: {text}" for kind, text in keys.items()] + paths
    ones = {"prompt": ["q"] * len(private), "completion": ["a"] * len(private), "score_a": [1.0] * len(private)}
    dataset = Dataset.from_dict({**ones, "a_reason": [f"because of {text} and 3/4" for text in private]})
    selection = TopK("score_a")(dataset, k=len(private))
    selection.reasons = [f"{reason} (see {text})" for reason, text in zip(selection.reasons, private, strict=True)]
    selection.chain[0]["notes"] = private
    step = {"step": "score a", "scorer": "a", "settings": {"model": "../Zqteam/model", "notes": private}}
    step |= {"versions": {}, "seconds": 1.0, "pool": {"source": "../Zqteam/pool.jsonl"}, "rows": len(private)}
    recipe = {"steps": {text: {"value": text} for text in private}}
    out = tmp_path_factory.mktemp("out")
    push_selected(
        selection, "me/x", dataset=dataset, license="mit", steps=[Step.from_dict(step)], recipe=recipe, dry_run=out
    )
    texts = {"log": caplog.text}
    for path in out.rglob("*.*"):
        texts[path.name] = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts[path.name] = str(table.schema.metadata) + json.dumps(table.to_pylist(), ensure_ascii=False)
    assert {"README.md", "provenance.json", "config.yaml", "report.json", "selection.parquet"} <= set(texts)
    for name, text in texts.items():
        assert not private_left(text), (name, text[max(0, text.index("Zq") - 60) :][:120])
        for kind, secret in keys.items():
            assert not left_of(secret, text, 12), (name, kind)
    assert "pool.jsonl" in texts["README.md"] and "3/4" in texts["train-00000-of-00001.parquet"]
