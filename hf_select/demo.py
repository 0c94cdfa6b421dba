"""A synthetic pool with a known share of damaged rows, and a causal LM that trains in a minute on a CPU.

The tiny recipes and the tests use them; nothing is downloaded. A model of this size knows nothing about the world, so
it is trained to rate: on other rows of the same generator, with low ratings for damaged rows. This flatters SelectIT:
the tiny recipes show how the parts fit together, not what a method is worth. The quickstart has data of its own
(quickstart.py).
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_select.extras import require


if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast


DAMAGES = ("other_response", "wrong_answer", "cut_off", "shuffled_words", "repeated_word")

_CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Egypt": "Cairo",
    "Canada": "Ottawa", "Chile": "Santiago", "Greece": "Athens", "India": "New Delhi", "Cuba": "Havana",
    "Poland": "Warsaw",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "early": "late", "full": "empty", "brave": "fearful", "dark": "bright", "soft": "hard",
    "near": "far", "loud": "quiet", "rough": "smooth", "cheap": "costly", "wide": "narrow", "young": "old",
}  # fmt: skip
_KINDS = {
    "fruits": ("apples", "pears", "plums", "figs", "grapes", "melons"),
    "tools": ("hammers", "saws", "pliers", "chisels", "files", "drills"),
    "animals": ("otters", "foxes", "herons", "bats", "seals", "moles"),
    "instruments": ("flutes", "harps", "drums", "violas", "oboes", "lutes"),
}
_WEATHER = ("rain", "snow", "fog", "wind", "sunshine", "hail")
_PLACES = ("the harbour", "the old mill", "the north road", "the market square", "the school garden", "the hill farm")


def clean_row(rng: random.Random) -> dict[str, str]:
    """One small task with its right answer: {task, prompt, completion}."""
    task = rng.choice(("capital", "opposite", "sum", "list", "larger", "weather"))
    if task == "capital":
        country = rng.choice(list(_CAPITALS))
        prompt, answer = f"What is the capital of {country}?", f"The capital of {country} is {_CAPITALS[country]}."
    elif task == "opposite":
        word = rng.choice(list(_OPPOSITES))
        prompt = f"Give the opposite of the word {word} and use it in a sentence."
        answer = f"The opposite of {word} is {_OPPOSITES[word]}. The way home felt {_OPPOSITES[word]} that evening."
    elif task == "sum":
        a, b = rng.randint(2, 60), rng.randint(2, 39)
        prompt = f"A baker sells {a} loaves in the morning and {b} in the afternoon. How many is that?"
        answer = f"In the morning {a} and in the afternoon {b}: together {a + b} loaves."
    elif task == "list":
        kind = rng.choice(list(_KINDS))
        chosen = rng.sample(_KINDS[kind], 3)
        prompt = f"Name three {kind}."
        answer = f"Three {kind} are {chosen[0]}, {chosen[1]} and {chosen[2]}."
    elif task == "larger":
        a, b = rng.sample(range(10, 999), 2)
        prompt, answer = f"Which number is larger, {a} or {b}?", f"Of {a} and {b}, the larger number is {max(a, b)}."
    else:
        weather, place = rng.choice(_WEATHER), rng.choice(_PLACES)
        prompt = f"Write two sentences about {weather} at {place}."
        answer = f"There was {weather} at {place} all day. By evening everybody had gone inside."
    return {"task": task, "prompt": prompt, "completion": answer}


def damage(row: dict[str, str], how: str, rng: random.Random) -> dict[str, str]:
    """The row with its response damaged in one of the ways of DAMAGES."""
    words = row["completion"].split()
    if how in ("other_response", "wrong_answer"):  # the answer to another task, or to another prompt of this one
        other = row
        while (other["task"] == row["task"]) != (how == "wrong_answer") or other["completion"] == row["completion"]:
            other = clean_row(rng)
        text = other["completion"]
    elif how == "cut_off":
        text = " ".join(words[: max(1, len(words) // 3)])
    elif how == "shuffled_words":
        text = " ".join(rng.sample(words, len(words)))
    else:
        text = " ".join([rng.choice(words)] * len(words))
    return {**row, "completion": text}


def make_pool(num_rows: int, damaged_share: float = 0.3, seed: int = 0) -> list[dict[str, Any]]:
    """Rows {row_id, task, prompt, completion, damage}, shuffled. `damage` is "" for undamaged rows; no scorer may see
    it."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        row = {**clean_row(rng), "damage": ""}
        if i < round(num_rows * damaged_share):
            how = DAMAGES[i % len(DAMAGES)]
            row = {**damage(row, how, rng), "damage": how}
        rows.append(row)
    rng.shuffle(rows)
    return [{"row_id": f"demo-{i:05d}", **row} for i, row in enumerate(rows)]


def make_queries(task: str, num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Undamaged rows {prompt, completion} of one task, as queries for the pool."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < num_rows:
        row = clean_row(rng)
        if row["task"] == task:
            rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    return rows


def make_held_out(num_rows: int, pool: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, str]]:
    """Undamaged rows {prompt, completion} whose prompts are not in the pool."""
    rng, seen = random.Random(seed), {row["prompt"] for row in pool}
    rows: list[dict[str, str]] = []
    while len(rows) < num_rows:
        row = clean_row(rng)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    return rows


def make_sources(num_rows: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Small sources with the layouts of RE-WILD's: `messages` (some with two turns), multiple-choice questions and
    sums."""
    rng = random.Random(seed)

    def turns(*rows: dict[str, str]) -> dict[str, Any]:
        texts = [(role, row[key]) for row in rows for role, key in (("user", "prompt"), ("assistant", "completion"))]
        return {"messages": [{"role": role, "content": text} for role, text in texts]}

    countries = list(_CAPITALS)
    questions = []
    for _ in range(num_rows):
        chosen = rng.sample(countries, 4)
        right = rng.randrange(4)
        choices = [_CAPITALS[country] for country in chosen]
        question = f"Which of these is the capital of {chosen[right]}?"
        questions.append({"question": question, "choices": choices, "answer": right, "subject": "geography"})
    return {
        "wildchat": [turns(*(clean_row(rng) for _ in range(rng.choice((1, 1, 2))))) for _ in range(num_rows)],
        "mmlu": questions,
        "algebra": [turns(row) for row in make_queries("sum", num_rows, seed + 1)],
    }


def make_answers(num_prompts: int, damaged_shares: dict[str, float], seed: int = 0) -> list[dict[str, str]]:
    """Answers {prompt, completion, model} of several stand-in generators to the same prompts.

    Args:
        damaged_shares: generator -> the share of its answers that is damaged.
    """
    rng = random.Random(seed)
    rows = []
    for _ in range(num_prompts):
        row = clean_row(rng)
        for model, share in damaged_shares.items():
            own = damage(row, rng.choice(DAMAGES), rng) if rng.random() < share else row
            rows.append({"prompt": row["prompt"], "completion": own["completion"], "model": model})
    return rows


def rating_examples(num_rows: int, seed: int) -> Iterator[str]:
    """Texts that end in a rating, in the form of SelectIT's prompts: 4 or 5 for undamaged rows, 1 or 2 for damaged."""
    from hf_select.scoring.selectit import ANSWER, RATING_PROMPTS

    rng = random.Random(seed)
    for row in make_pool(num_rows, damaged_share=0.5, seed=seed):
        rating = rng.choice("12" if row["damage"] else "45")
        line = rng.choice(RATING_PROMPTS)
        yield f"{line}\nInstruction:{row['prompt']}\nResponse:{row['completion']}\n{ANSWER}{rating}"


def train_tokenizer(texts: Sequence[str], vocab_size: int = 600) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer that splits digits and has a start token and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        model_input_names=["input_ids", "attention_mask"],  # transformers 4.57 adds token_type_ids otherwise
        chat_template=(
            "{{ bos_token }}{% for m in messages %}"
            "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
    )


def tiny_model(tokenizer: "PreTrainedTokenizerBase", seed: int = 0, **config: Any) -> "LlamaForCausalLM":
    """A randomly initialised Llama for this tokenizer; about a million parameters unless `config` changes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **(sizes | config)))


def train_rater(folder: Path, num_examples: int, steps: int, batch_size: int = 64, seed: int = 1) -> dict[str, float]:
    """Train the tiny LM to rate and save it with its tokenizer.

    The loss is the mean over all tokens plus the loss of the rating token, so the model also learns the text.

    Args:
        folder: where model and tokenizer are saved.
        num_examples: rated texts, half of them of damaged rows.
        steps: optimizer steps.
        batch_size: texts of a step.
        seed: of texts, weights and batches.
    Returns: the rating loss of the first and of the last ten steps, in nats, under "first" and "last".
    """
    examples = list(rating_examples(num_examples, seed))
    tokenizer = train_tokenizer(examples)
    return train_lm(folder, tokenizer, tiny_model(tokenizer, seed), examples, steps, batch_size, seed, last_token=True)


def train_lm(
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    model: "LlamaForCausalLM",
    texts: Sequence[str],
    steps: int,
    batch_size: int,
    seed: int,
    last_token: bool = False,
) -> dict[str, float]:
    """Train a tiny LM on texts and save it with its tokenizer.

    Args:
        texts: with their special tokens, unless the tokenizer adds them.
        last_token: add the loss of each text's last token to the loss of all tokens.
    Returns: the mean loss of all tokens, or of the last ones with `last_token`, over the first and over the last ten
        steps, in nats, under "first" and "last".
    """
    import torch
    from tqdm.auto import tqdm

    ids = [torch.tensor(i) for i in tokenizer(list(texts), add_special_tokens=last_token)["input_ids"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    # OneCycleLR divides by zero if the rate rises in one step and never falls.
    warmup_share = max(0.1, min(1.0, 2 / steps)) if steps > 1 else 0.1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=warmup_share)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in tqdm(range(steps), desc="train the tiny LM", unit="step"):
            batch = [ids[i] for i in torch.randint(len(ids), (batch_size,), generator=generator).tolist()]
            batch.sort(key=len)
            inputs = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (B, T)
            last = torch.tensor([len(sequence) for sequence in batch]) - 1
            real = torch.arange(inputs.shape[1])[None] < last[:, None]
            logits = model(input_ids=inputs).logits[:, :-1].transpose(1, 2)  # (B, V, T-1)
            nll = torch.nn.functional.cross_entropy(logits, inputs[:, 1:], reduction="none")  # (B, T-1)
            mean = (nll * real[:, :-1]).sum() / real.sum()
            of_last = nll[torch.arange(len(batch)), last - 1].mean()
            optimizer.zero_grad()
            (mean + of_last if last_token else mean).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append((of_last if last_token else mean).item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"first": sum(losses[:10]) / 10, "last": sum(losses[-10:]) / 10}


def save_encoder(model: Path, folder: Path) -> None:
    """Save the tiny LM with mean pooling as a sentence-transformers model (extra `embed`)."""
    import tempfile

    require("a sentence encoder", "sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # sentence-transformers 6 applies a chat template to every text if the tokenizer has one.
    tokenizer.chat_template = None
    with tempfile.TemporaryDirectory() as plain:
        AutoModel.from_pretrained(model).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        encoder = SentenceTransformer(plain, device="cpu")  # adds mean pooling
    encoder.max_seq_length = 256
    encoder.save(str(folder), create_model_card=False)


_SYLLABLES = (("lo", "mi", "ta", "ker", "su", "po", "ral"), ("ba", "nen", "tu", "fi", "gol", "sha"))


def teacher(body: dict[str, Any]) -> str:
    """The answer of a scripted model that plays every part of GLAN, in nonsense words. It depends on the messages and
    the seed alone.

    Args:
        body: of a request to an OpenAI-compatible server.
    """
    messages = body["messages"]
    request = messages[-1]["content"]
    rng = random.Random(json.dumps([messages, body.get("seed") or 0]))
    word = "".join(rng.choice(_SYLLABLES[i % 2]) for i in range(6))
    if "into broad fields" in request:
        return json.dumps({"names": ["Sciences", "Arts"]})
    if "classification of human knowledge" in request:
        return json.dumps({"names": [f"{word} one", f"{word} two"]})
    if request.startswith("Put this list into JSON"):
        names = re.findall(r"^\d+\. (.*)$", messages[-2]["content"], re.MULTILINE)
        subjects = [{"subject_name": name, "level": "basic", "subtopics": ["a", "b"]} for name in names]
        return json.dumps({"subjects": subjects})
    if request.startswith("Put this syllabus into JSON"):
        lines = re.findall(r"^Session (.*): (.*)$", messages[-2]["content"], re.MULTILINE)
        sessions = [{"name": n, "description": "It is taught.", "key_concepts": c.split(", ")} for n, c in lines]
        return json.dumps({"introduction": "A course.", "sessions": sessions})
    if "Draw up a list" in request:
        return "\n".join(f"{i}. {word} {i}" for i in range(1, 3))
    if "Write the syllabus" in request:
        return "\n".join(f"Session {word} {i}: " + ", ".join(f"{word} {i}.{j}" for j in range(5)) for i in range(3))
    filler = " ".join("".join(rng.choice(syllables) for syllables in _SYLLABLES) for _ in range(20))
    if "Set them one homework question" in request:
        wanted = request.partition("for which they need ")[2].partition(". It should")[0]
        return f"{word}: explain {wanted}, {filler}?"
    return f"An answer to {request[:20]}: {filler}."


def serve_teacher(port: int) -> None:
    """Serve the scripted teacher on this machine behind an OpenAI-compatible address until this process ends. If the
    port is in use, nothing is started: another such teacher gives the same answers."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = teacher(body)
            usage = {
                "prompt_tokens": sum(len(message["content"].split()) for message in body["messages"]),
                "completion_tokens": len(text.split()),
            }
            message = {"role": "assistant", "content": text}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            reply = json.dumps({"model": body["model"], "choices": choices, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
