"""The settings of GLAN, and its stages."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from hf_select.generation.generator import check_generator
from hf_select.models.sampling import Sampling
from hf_select.paper import Paper
from hf_select.validation import check_choices


Until = Literal["taxonomy", "subjects", "syllabi", "questions", "pairs"]
STAGES = ("lists", "subjects", "outlines", "syllabi", "questions", "answers")


@dataclass
class GLANSettings:
    """How many subjects, syllabi, questions and answers are generated, by which models and with which sampling.

    Args:
        model: generator of subjects, syllabi and questions.
        answer_model: generator of the answers; by default the same.
        taxonomy: default (the built-in list of disciplines), generate (by the model), or a YAML file of fields,
            sub-fields and disciplines.
        language: of all texts.
        level: of the subjects, in words ("secondary school"); by default all levels.
        queries_per_discipline: requests for the subjects of a discipline: 10 in the paper; 1 by default, for a small
            first run. A later run with a higher number requests only the additional ones.
        subjects_per_query: subjects that each of them asks for; the paper reports 100 to 200 per discipline.
        min_sessions: fewest class sessions of a syllabus. "10 to 30", section 3.1.
        max_sessions: most class sessions of a syllabus.
        questions_per_subject: questions, each on its own sample of sessions and concepts; 1 by default, for a small
            first run.
        two_session_share: share of questions that combine two sessions; not published.
        temperature: sampling temperature of subjects, syllabi and questions.
        top_p: nucleus probability of subjects, syllabi and questions.
        max_new_tokens: most tokens of a list of subjects, a syllabus or a question.
        answer_temperature: sampling temperature of answers.
        answer_top_p: nucleus probability of answers.
        answer_max_new_tokens: most tokens of an answer; longer ones are left out.
        near_duplicates: Jaccard similarity of 5-word shingles from which on two questions are duplicates; 1: only
            exact duplicates.
        decontaminate_n: a question or pair that shares this many consecutive words with an evaluation set is left out.
        refusals: file with further beginnings of refusals, one per line; the built-in ones are English.
        prices: US dollars per million tokens read and per million written, for the estimate and the summary.
        answer_prices: the same for the model of the answers, if they differ.
        seed: of all samples and requests.
    Raises: ValueError if a setting is invalid.
    Reference: Li et al. 2024, arXiv:2402.13064.
    """

    model: Any
    answer_model: Any = None
    taxonomy: str = "default"
    language: str = "English"
    level: str | None = None
    queries_per_discipline: int = 1  # "10 queries", section 3.1; those and 10 questions are 521,240 requests
    subjects_per_query: int = 15
    min_sessions: int = 10
    max_sessions: int = 30
    questions_per_subject: int = 1
    two_session_share: float = 0.5
    temperature: float = 1.0  # "temperature 1.0 and top_p 0.95", section 3.1
    top_p: float = 0.95
    max_new_tokens: int = 4096
    answer_temperature: float = 0.7  # "temperature 0.7 and top_p 0.95", section 3.1
    answer_top_p: float = 0.95
    answer_max_new_tokens: int = 2048
    near_duplicates: float = 0.8
    decontaminate_n: int = 13
    refusals: str | None = None
    prices: list[float] | None = None
    answer_prices: list[float] | None = None
    seed: int = 0

    paper: ClassVar[Paper | None] = Paper(
        "2402.13064",
        "Synthetic Data (Almost) from Scratch: Generalized Instruction Tuning for Language Models",
        "Li, Haoran",
        2024,
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("model", "answer_model"):
            if isinstance(getattr(self, name), list):
                raise ValueError(f"{name} is a list; GLAN takes one {name}.")
        check_generator(self.model, "model")
        if self.answer_model is not None:
            check_generator(self.answer_model, "answer_model")
        counts = ("queries_per_discipline", "subjects_per_query", "min_sessions", "questions_per_subject")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_sessions < self.min_sessions:
            raise ValueError(f"max_sessions is {self.max_sessions}, below min_sessions ({self.min_sessions}).")
        if not 0 <= self.two_session_share <= 1:
            raise ValueError(f"two_session_share is {self.two_session_share}; it must be in [0, 1].")
        for name in ("prices", "answer_prices"):
            prices = getattr(self, name)
            if prices is not None and (len(prices) != 2 or min(prices) < 0):
                raise ValueError(f"{name} is {prices}; give two numbers, for tokens read and for tokens written.")
        self.sampling()  # raises if invalid
        self.answer_sampling()

    def sampling(self) -> Sampling:
        """The sampling of everything but answers."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)

    def answer_sampling(self) -> Sampling:
        """The sampling of answers."""
        return Sampling(
            temperature=self.answer_temperature,
            top_p=self.answer_top_p,
            max_new_tokens=self.answer_max_new_tokens,
        )

    def prices_of(self, stage: str) -> list[float] | None:
        """US dollars per million tokens read and per million written in a stage."""
        return (self.answer_prices or self.prices) if stage == "answers" else self.prices

    def recorded_settings(self) -> dict[str, Any]:
        """All settings except the models, for the summary."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "answer_model")}

    def content_settings(self) -> dict[str, Any]:
        """The settings that the content of a folder depends on. Counts are not among them: they may change."""
        free = (
            "queries_per_discipline", "questions_per_subject", "max_new_tokens", "answer_max_new_tokens", "taxonomy",
            "near_duplicates", "decontaminate_n", "refusals", "prices", "answer_prices", "model", "answer_model",
        )  # fmt: skip
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        return {**settings, "model": self.model.name, "answer_model": (self.answer_model or self.model).name}
