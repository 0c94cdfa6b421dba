"""A pool of rows with a known share of damage, and a causal LM small enough to train in a minute: the ground of the
quickstart, the tiny recipes and the tests. Nothing is read from anywhere.

A model of this size knows nothing about the world, so the demonstration teaches it to rate: it is trained on other
rows of the same generator, with ratings that tell damaged from whole ones. That flatters SelectIT. It shows the road,
not the method's worth.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


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


def damaged(row: dict[str, str], how: str, rng: random.Random) -> dict[str, str]:
    """A row with its response spoilt in one of the ways of DAMAGES."""
    words = row["completion"].split()
    if how in ("other_response", "wrong_answer"):  # of another task, or of the same one
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
    """Rows {row_id, task, prompt, completion, damage}, shuffled; `damage` is "" for whole rows. Never show it to a
    scorer."""
    rng = random.Random(seed)
    rows = []
    for i in range(num_rows):
        row = {**clean_row(rng), "damage": ""}
        if i < round(num_rows * damaged_share):
            how = DAMAGES[i % len(DAMAGES)]
            row = {**damaged(row, how, rng), "damage": how}
        rows.append(row)
    rng.shuffle(rows)
    return [{"row_id": f"demo-{i:05d}", **row} for i, row in enumerate(rows)]


def make_queries(task: str, num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Whole rows {prompt, completion} of one task of the generator, as examples of what to look for in the pool."""
    rng = random.Random(seed)
    rows: list[dict[str, str]] = []
    while len(rows) < num_rows:
        row = clean_row(rng)
        if row["task"] == task:
            rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    return rows


def make_held_out(num_rows: int, pool: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, str]]:
    """Whole rows {prompt, completion} of the generator whose prompts are not in the pool."""
    rng, seen = random.Random(seed), {row["prompt"] for row in pool}
    rows: list[dict[str, str]] = []
    while len(rows) < num_rows:
        row = clean_row(rng)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    return rows


def make_sources(num_rows: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Stand-ins for RE-WILD's sources in their shapes: `messages` (some with two turns), multiple-choice questions and
    sums."""
    rng = random.Random(seed)

    def turns(*rows: dict[str, str]) -> dict[str, Any]:
        said = [(role, row[key]) for row in rows for role, key in (("user", "prompt"), ("assistant", "completion"))]
        return {"messages": [{"role": role, "content": text} for role, text in said]}

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


def make_answers(num_prompts: int, spoilt: dict[str, float], seed: int = 0) -> list[dict[str, str]]:
    """Answers {prompt, completion, model} of stand-in generators to the same prompts; `spoilt` says which share of its
    answers each damages."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_prompts):
        row = clean_row(rng)
        for model, share in spoilt.items():
            own = damaged(row, rng.choice(DAMAGES), rng) if rng.random() < share else row
            rows.append({"prompt": row["prompt"], "completion": own["completion"], "model": model})
    return rows


def rating_examples(num_rows: int, seed: int) -> Iterator[str]:
    """Texts that end in a rating, as SelectIT will ask for it: 4 or 5 for whole rows, 1 or 2 for damaged ones."""
    from hf_select.scoring.selectit import ANSWER, RATING_PROMPTS

    rng = random.Random(seed)
    for row in make_pool(num_rows, damaged_share=0.5, seed=seed):
        rating = rng.choice("12" if row["damage"] else "45")
        line = rng.choice(RATING_PROMPTS)
        yield f"{line}\nInstruction:{row['prompt']}\nResponse:{row['completion']}\n{ANSWER}{rating}"


def train_tokenizer(texts: Sequence[str], vocab_size: int = 600) -> Any:
    """A byte-level BPE tokenizer with single digits, a start token and a ChatML template."""
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
        chat_template=(
            "{{ bos_token }}{% for m in messages %}"
            "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
    )


def tiny_model(tokenizer: Any, seed: int = 0, **config: Any) -> Any:
    """A random Llama over this tokenizer; about a million parameters unless `config` says otherwise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **(sizes | config),
            )
        )


def train_rater(folder: Path, num_examples: int, steps: int, batch_size: int = 64, seed: int = 1) -> dict[str, float]:
    """Train the tiny LM to rate and save it with its tokenizer; returns first and last loss of the rating, in nats.

    Loss: every token counts a little, so that it learns the language of the rows, and the rating as much as all others
    together.
    """
    import torch
    from tqdm.auto import tqdm

    examples = list(rating_examples(num_examples, seed))
    tokenizer = train_tokenizer(examples)
    model = tiny_model(tokenizer, seed)
    ids = [torch.tensor(i) for i in tokenizer(examples)["input_ids"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    # OneCycleLR divides by zero if the rate rises for one step only, and falls for none.
    rising = max(0.1, min(1.0, 2 / steps)) if steps > 1 else 0.1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=rising)
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
            rating = nll[torch.arange(len(batch)), last - 1].mean()
            loss = rating + (nll * real[:, :-1]).sum() / real.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(rating.item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"first": sum(losses[:10]) / 10, "last": sum(losses[-10:]) / 10}


def save_encoder(model: Path, folder: Path) -> None:
    """The tiny LM with mean pooling as a sentence-transformers model (extra `embed`)."""
    import tempfile

    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        raise ImportError('a sentence encoder needs an extra: pip install "hf-select[embed]"') from None
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # sentence-transformers 6 takes a model with a chat template for one of messages and wraps every text in it.
    tokenizer.chat_template = None
    with tempfile.TemporaryDirectory() as plain:
        AutoModel.from_pretrained(model).save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        transformer = Transformer(plain, max_seq_length=256)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder), create_model_card=False)


_SYLLABLES = (("lo", "mi", "ta", "ker", "su", "po", "ral"), ("ba", "nen", "tu", "fi", "gol", "sha"))


def teacher(body: dict[str, Any]) -> str:
    """Stands for the models of GLAN: plays every part, in words that mean nothing. To the same messages and seed it
    always gives the same answer, and to others another.

    Args:
        body: of a request to an OpenAI-compatible server.
    """
    messages = body["messages"]
    asked = messages[-1]["content"]
    dice = random.Random(json.dumps([messages, body.get("seed") or 0]))
    word = "".join(dice.choice(_SYLLABLES[i % 2]) for i in range(6))
    if "into broad fields" in asked:
        return json.dumps({"names": ["Sciences", "Arts"]})
    if "classification of human knowledge" in asked:
        return json.dumps({"names": [f"{word} one", f"{word} two"]})
    if asked.startswith("Put this list into JSON"):
        names = re.findall(r"^\d+\. (.*)$", messages[-2]["content"], re.MULTILINE)
        subjects = [{"subject_name": name, "level": "basic", "subtopics": ["a", "b"]} for name in names]
        return json.dumps({"subjects": subjects})
    if asked.startswith("Put this syllabus into JSON"):
        found = re.findall(r"^Session (.*): (.*)$", messages[-2]["content"], re.MULTILINE)
        sessions = [{"name": n, "description": "It is taught.", "key_concepts": c.split(", ")} for n, c in found]
        return json.dumps({"introduction": "A course.", "sessions": sessions})
    if "Draw up a list" in asked:
        return "\n".join(f"{i}. {word} {i}" for i in range(1, 3))
    if "Write the syllabus" in asked:
        return "\n".join(f"Session {word} {i}: " + ", ".join(f"{word} {i}.{j}" for j in range(5)) for i in range(3))
    some = " ".join("".join(dice.choice(syllables) for syllables in _SYLLABLES) for _ in range(20))
    if "Set them one homework question" in asked:
        wanted = asked.partition("for which they need ")[2].partition(". It should")[0]
        return f"{word}: explain {wanted}, {some}?"
    return f"An answer to {asked[:20]}: {some}."


def serve_teacher(port: int) -> None:
    """The teacher behind an OpenAI-compatible address on this machine, for as long as this process lives. If the port
    is taken, whoever has it is left to answer: another such teacher gives the same answers."""
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
