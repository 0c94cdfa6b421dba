"""The data of the quickstart: a pool of six sources with copies and damage, and a target given by a few examples.

The target is arithmetic problems about a farm, with worked answers. No row of the pool is one of them: the nearest
source, about 6 % of the rows, has problems about shops. All text is generated here, and nothing is downloaded.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_select.demo import tiny_model, train_lm, train_tokenizer


DAMAGES = ("another answer", "cut off", "shuffled words", "one word repeated")
COPIES = ("exact copy", "near copy")

Row = dict[str, Any]

_NAMES = (
    "Mara", "Tom", "Aisha", "Jonas", "Priya", "Leo", "Ines", "Samuel", "Yuki", "Clara", "Omar", "Nina", "Peter", "Zoe",
    "Ravi", "Greta", "Luis", "Hanna",
)  # fmt: skip
_GOODS = (
    "pears", "candles", "notebooks", "mugs", "ribbons", "lamps", "scarves", "buttons", "plates", "bulbs", "brushes",
    "envelopes", "jars of honey", "postcards", "kites", "spoons",
)  # fmt: skip
_ANIMALS = ("hens", "goats", "sheep", "cows", "ducks", "geese", "horses", "pigs", "rabbits", "donkeys", "turkeys")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_FOODS = (
    "basil", "bread", "mushrooms", "strawberries", "cheese", "coffee beans", "rice", "ginger", "salad", "potatoes",
)  # fmt: skip
_HOBBIES = ("the guitar", "chess", "watercolours", "knitting", "swimming", "photography", "cooking", "pottery")
_HOURS = ("early in the morning", "after lunch", "in the evening", "at the weekend", "before work", "on rainy days")
_COUNTRIES = {
    "France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo", "Egypt": "Cairo",
    "Canada": "Ottawa", "Chile": "Santiago", "Greece": "Athens", "Cuba": "Havana", "Poland": "Warsaw",
    "Spain": "Madrid", "Ghana": "Accra", "Nepal": "Kathmandu",
}  # fmt: skip
_FACTS = (
    "its old harbour",
    "a large market",
    "three universities",
    "many bridges",
    "mild winters",
    "a river festival",
)
_PLACES = ("the old mill", "the harbour", "the north road", "the market square", "the hill", "the school garden")
_WEATHER = ("rain", "snow", "fog", "wind", "hail", "a warm breeze")
_FINDS = ("a brass key", "a torn map", "an empty boat", "a blue lantern", "a sealed letter", "a silver whistle")
_ENDINGS = (
    "Nobody spoke of it again.", "By evening the whole village knew.", "The next day it was gone.",
    "Years later the mystery was solved.", "It changed everything that followed.",
)  # fmt: skip
_LISTS = ("values", "prices", "scores", "lengths", "ages", "weights", "ratings", "counts")
_CODE = {
    "adds up": "sum({xs})", "finds the largest of": "max({xs})", "finds the smallest of": "min({xs})",
    "counts": "len({xs})", "sorts": "sorted({xs})", "reverses": "list(reversed({xs}))",
    "doubles": "[2 * x for x in {xs}]", "takes the mean of": "sum({xs}) / len({xs})",
    "keeps those above {n} of": "[x for x in {xs} if x > {n}]", "takes the first {n} of": "{xs}[:{n}]",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "early": "late", "full": "empty", "brave": "fearful", "dark": "bright", "soft": "hard",
    "near": "far", "loud": "quiet", "rough": "smooth", "cheap": "costly", "wide": "narrow", "young": "old",
}  # fmt: skip
_NOUNS = ("road", "house", "voice", "river", "coat", "morning", "room", "stone", "song", "valley")


def _shop_problem(rng: random.Random) -> tuple[str, str]:
    name, goods, day, a, b, more = _problem(rng, _GOODS)
    total, price = a * b, f"{b} coins each"
    all_, left = more + total, f"{more + total} - {more} = {total}."
    return rng.choice((
        (rng.choice((f"{name} buys {a} boxes of {goods} at {price}. How many coins is that?",
                     f"What do {a} boxes of {goods} cost at {price}?",
                     f"At {price}, how much does {name} pay for {a} boxes of {goods}?")),
         f"{a} * {b} = {total}. {name} pays {total} coins."),
        (rng.choice((f"The {goods} cost {more} coins and {name} pays with {all_} coins. How much change is due?",
                     f"Of {all_} {goods} in the shop, {more} are sold on {day}. How many are still there?")),
         f"{left} That leaves {total}."),
        (rng.choice((f"A shop sells {more} {goods} on {day} and {total} a day later. How many is that in all?",
                     f"On {day} {name} sells {more} {goods}, then {total} more. What is the sum?")),
         f"{more} + {total} = {all_}. In all {all_} {goods} are sold."),
        (rng.choice((f"{name} packs {total} {goods} evenly into {a} bags. How many are in each bag?",
                     f"How many {goods} go into each of {a} bags, if {name} has {total} of them?")),
         f"{total} / {a} = {b}. In each bag there are {b} {goods}."),
        (rng.choice((f"With {all_} coins {name} buys {a} {goods} at {price}. How many coins are left?",
                     f"{name} has {all_} coins. After buying {a} {goods} at {price}, how many coins remain?")),
         f"{a} * {b} = {total} and {all_} - {total} = {more}. {name} has {more} coins left."),
    ))  # fmt: skip


def _farm_problem(rng: random.Random) -> tuple[str, str]:
    name, animals, day, a, b, more = _problem(rng, _ANIMALS)
    total, all_ = a * b, more + a * b
    return rng.choice((
        (rng.choice((f"There are {a} pens with {b} {animals} in each. How many {animals} is that?",
                     f"If {name} keeps {b} {animals} in each of {a} pens, how many does she have?")),
         f"{a} * {b} = {total}. There are {total} {animals}."),
        (rng.choice((f"Of {all_} {animals}, {more} are out in the field. How many are still in the barn?",
                     f"{name} has {all_} {animals} and sells {more} on {day}. How many does she keep?")),
         f"{all_} - {more} = {total}. That leaves {total} {animals}."),
        (rng.choice((f"{name} gathers {more} eggs on {day} and {total} a day later. How many eggs is that in all?",
                     f"The {animals} ate {more} kg on {day} and {total} kg later. What is the sum?")),
         f"{more} + {total} = {all_}. In all it is {all_}."),
        (rng.choice((f"{name} shares {total} bales of hay evenly among {a} {animals}. How many does each get?",
                     f"How many bales go to each of {a} {animals}, if there are {total} of them?")),
         f"{total} / {a} = {b}. Each of the {animals} gets {b} bales."),
        (rng.choice((f"From {all_} kg of feed {name} gives {a} {animals} {b} kg each. How many kg are left?",
                     f"The barn has {all_} kg of feed. After {a} {animals} eat {b} kg each, how many kg remain?")),
         f"{a} * {b} = {total} and {all_} - {total} = {more}. There are {more} kg left."),
    ))  # fmt: skip


def _problem(rng: random.Random, things: Sequence[str]) -> tuple[str, str, str, int, int, int]:
    """A name, a thing, a day, two factors and another number."""
    numbers = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 40)
    return rng.choice(_NAMES), rng.choice(things), rng.choice(_DAYS), *numbers


def _advice(rng: random.Random) -> tuple[str, str]:
    food, hobby, hour, name = rng.choice(_FOODS), rng.choice(_HOBBIES), rng.choice(_HOURS), rng.choice(_NAMES)
    days, minutes = rng.randint(2, 14), 5 * rng.randint(2, 12)
    return rng.choice((
        (f"How do I keep {food} fresh for {days} days?",
         f"Wrap the {food} in a dry cloth and store it in a cool place. Look at it {hour}, and it lasts {days} days."),
        (f"I want to learn {hobby} and have {minutes} minutes {hour}. Where do I start?",
         f"Start small: {minutes} minutes {hour} are enough for {hobby}. Ask {name} to join you, and keep notes."),
        (f"My friend {name} cannot sleep {hour}. What may help?",
         f"A short walk may help {name}. Leave out coffee, and read for {minutes} minutes with a warm lamp."),
        (f"What can I cook with {food} {hour}?",
         f"Try a soup of {food} with onions. It takes {minutes} minutes, and {name} will ask for more."),
    ))  # fmt: skip


def _geography(rng: random.Random) -> tuple[str, str]:
    country, other = rng.sample(list(_COUNTRIES), 2)
    city, fact, days = _COUNTRIES[country], rng.choice(_FACTS), rng.randint(2, 20)
    return rng.choice((
        (f"What is the capital of {country}, and what is it known for?",
         f"The capital of {country} is {city}. It is known for {fact}."),
        (f"Is {city} the capital of {country} or of {other}?",
         f"{city} is the capital of {country}. The capital of {other} is {_COUNTRIES[other]}."),
        (f"I stay in {city} for {days} days. What should I see?",
         f"In {days} days you can see {fact} and the centre of {city}. The rest of {country} is worth a visit too."),
    ))  # fmt: skip


def _story(rng: random.Random) -> tuple[str, str]:
    (name, friend), (place, other) = rng.sample(_NAMES, 2), rng.sample(_PLACES, 2)
    weather, find, end, day = rng.choice(_WEATHER), rng.choice(_FINDS), rng.choice(_ENDINGS), rng.choice(_DAYS)
    middle = f"{friend} had seen something like it once before, on a {day} at {other}, and told nobody."
    return rng.choice((
        (f"Write a short story about {name}, {weather} and {place}.",
         f"There was {weather} at {place} all day. {name} walked on and found {find}. {middle} {end}"),
        (f"Tell me a story in which {name} finds {find} at {place}.",
         f"{name} had gone to {place} in spite of {weather}. There, half hidden, lay {find}. {middle} {end}"),
        (f"Begin a story with the words: At {place} lay {find}.",
         f"At {place} lay {find}. {name} came by through {weather} and picked it up. {middle} {end}"),
    ))  # fmt: skip


def _code(rng: random.Random) -> tuple[str, str]:
    (what, body), xs, n = rng.choice(list(_CODE.items())), rng.choice(_LISTS), rng.randint(2, 30)
    what, body = what.format(n=n), body.format(xs=xs, n=n)
    return rng.choice((
        (f"Write a Python function that {what} {xs}.",
         f"def solve({xs}):\n    return {body}"),
        (f"How do I write Python that {what} a list of {xs}?",
         f"Use one line:\nresult = {body}\nprint(result)"),
        (f"Complete the code, which {what} the {xs}: def of_{xs}({xs}):",
         f"def of_{xs}({xs}):\n    result = {body}\n    return result"),
    ))  # fmt: skip


def _words(rng: random.Random) -> tuple[str, str]:
    word, noun, other = rng.choice(list(_OPPOSITES)), rng.choice(_NOUNS), rng.choice(_NOUNS)
    opposite = _OPPOSITES[word]
    return rng.choice((
        (f"Give the opposite of {word} and use it with the word {noun}.",
         f"The opposite of {word} is {opposite}. The {noun} was {opposite} that day, and so was the {other}."),
        (f"How many letters has the word {noun}?",
         f"The word {noun} has {len(noun)} letters: {'-'.join(noun)}."),
        (f"Say it in another way: the {noun} is not {word}, and the {other} is not either.",
         f"The {noun} is {opposite}, and the {other} is {opposite} too."),
    ))  # fmt: skip


# source -> what writes its rows, and its share of the pool
SOURCES: dict[str, tuple[Callable[[random.Random], tuple[str, str]], float]] = {
    "advice": (_advice, 0.26),
    "stories": (_story, 0.22),
    "code": (_code, 0.16),
    "geography": (_geography, 0.16),
    "words": (_words, 0.14),
    "shop problems": (_shop_problem, 0.06),
}


def clean_rows(num_rows: int, rng: random.Random) -> list[Row]:
    """Rows {source, prompt, completion} of all sources in their shares, shuffled, without copies."""
    rows = []
    for source, (write, share) in SOURCES.items():
        texts = _different(write, round(share * num_rows), rng)
        rows += [{"source": source, "prompt": prompt, "completion": completion} for prompt, completion in texts]
    rng.shuffle(rows)
    return rows


def make_pool(
    num_rows: int = 1000, damaged: float = 0.08, copied: float = 0.15, seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """A pool and its answer key.

    Args:
        num_rows: rows, copies included.
        damaged: share of the rows whose response is damaged.
        copied: share of the rows that repeat another, half of them exactly.
    Returns: rows {row_id, source, prompt, completion}, and for each {row_id, damage, copy}, "" where there is none. No
        scorer reads the key.
    """
    rng = random.Random(seed)
    copies = round(copied * num_rows)
    rows = [{**row, "damage": "", "copy": ""} for row in clean_rows(num_rows - copies, rng)]
    for i, row in enumerate(rng.sample(rows, round(damaged * len(rows)))):
        damage = DAMAGES[i % len(DAMAGES)]
        row |= {"completion": _damaged(row["completion"], damage, rows, rng), "damage": damage}
    for i, row in enumerate(rng.sample(rows, copies)):
        copy = COPIES[i % len(COPIES)]
        prompt = (
            row["prompt"]
            if copy == "exact copy"
            else rng.choice(("Hello! {}", "Please help me. {}")).format(row["prompt"])
        )
        rows.append({**row, "prompt": prompt, "copy": copy})
    rng.shuffle(rows)
    key = [
        {"row_id": f"row-{i:04d}", "damage": row.pop("damage"), "copy": row.pop("copy")} for i, row in enumerate(rows)
    ]
    return [{"row_id": about["row_id"], **row} for about, row in zip(key, rows, strict=True)], key


def make_target(num_examples: int, num_held_out: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Examples of the target and other rows of it, both {prompt, completion}; no prompt is in both."""
    texts = _different(_farm_problem, num_examples + num_held_out, random.Random(seed))
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in texts]
    return rows[:num_examples], rows[num_examples:]


def train_model(folder: Path, steps: int, seed: int) -> dict[str, float]:
    """Train a tiny LM on other rows of the pool's sources, without damage and without the target; see `train_lm`."""
    rows = clean_rows(850, random.Random(seed))
    tokenizer = train_tokenizer([f"{row['prompt']}\n{row['completion']}" for row in rows], vocab_size=900)
    sizes = {"hidden_size": 96, "intermediate_size": 264, "num_hidden_layers": 3, "tie_word_embeddings": True}
    texts: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
            tokenize=False,
        )
        for row in rows
    ]
    return train_lm(folder, tokenizer, tiny_model(tokenizer, seed, **sizes), texts, steps, 32, seed)


def _different(
    write: Callable[[random.Random], tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    texts: dict[str, str] = {}
    while len(texts) < count:
        prompt, completion = write(rng)
        texts.setdefault(prompt, completion)
    return list(texts.items())


def _damaged(completion: str, damage: str, rows: list[Row], rng: random.Random) -> str:
    words = completion.split()
    if damage == "another answer":
        return rng.choice([row["completion"] for row in rows if row["completion"] != completion])
    if damage == "cut off":
        return " ".join(words[: max(1, len(words) // 3)])
    if damage == "shuffled words":
        return " ".join(rng.sample(words, len(words)))
    return " ".join([rng.choice(words)] * len(words))
