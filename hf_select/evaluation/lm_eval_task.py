"""Tasks of lm-evaluation-harness (extra `eval`) as measures of a comparison."""

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hf_select.evaluation.measure import Measure
from hf_select.extras import require
from hf_select.models.causal_lm import CausalLM


@functools.cache
def _task_manager(include_path: str | None) -> Any:
    require("tasks of lm-evaluation-harness", "lm_eval")
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    # Its own tasks are some 14,000 files, which take half a minute to read on a slow disk.
    return TaskManager(include_path=include_path, include_defaults=include_path is None)


@dataclass
class LMEvalTask(Measure):
    """One metric of one task, with one value per document.

    Args:
        task: name of a single task; name the tasks of a group one by one.
        metric: by default the first that the task lists.
        filter: how answers are extracted, if the task has several filters (gsm8k: strict-match, flexible-extract); by
            default the first.
        limit: number of documents, from the first on; all by default.
        num_fewshot: examples in the prompt; by default the task's own number.
        include_path: folder with the YAML files of your own tasks, instead of those of lm-evaluation-harness.
        chat: whether to apply the model's chat template, as instruction-tuned models expect.
        batch_size: requests per forward pass.
    Raises: ImportError without the extra; ValueError for an unknown task, metric or filter.
    """

    task: str
    metric: str | None = None
    filter: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    include_path: str | None = None
    chat: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        self._manager = _task_manager(self.include_path)
        if self.task not in self._manager.all_subtasks:
            raise ValueError(
                f'lm-evaluation-harness has no single task "{self.task}" (name the tasks of a group one by one; '
                "`lm-eval ls tasks` lists them)."
            )
        loaded = self._manager.load([self.task])["tasks"][self.task]
        self._version = str(loaded.VERSION)
        higher = loaded.higher_is_better()
        self.metric = self.metric or next(iter(higher))
        if self.metric not in higher:
            raise ValueError(f'task "{self.task}" has no metric "{self.metric}"; it has {", ".join(higher)}.')
        filters = [part["name"] for part in loaded.config.filter_list or []] or ["none"]
        self.filter = self.filter or filters[0]
        if self.filter not in filters:
            raise ValueError(f'task "{self.task}" has no filter "{self.filter}"; it has {", ".join(filters)}.')
        self.better = "higher" if higher[self.metric] else "lower"
        self.unit = self.metric

    def identity(self) -> dict[str, object]:
        """Return the settings of the task and its version."""
        of_task = ("task", "metric", "filter", "limit", "num_fewshot", "chat")
        return {**{name: getattr(self, name) for name in of_task}, "version": self._version}

    def __call__(self, lm: CausalLM) -> list[float]:
        import lm_eval  # type: ignore[import-not-found]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

        loaded, wrapped = lm.load(), cast(Any, HFLM)  # its decorator hides the signature
        wrapped_model = wrapped(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=self.batch_size)
        results = cast(Any, lm_eval).simple_evaluate(
            wrapped_model,
            tasks=[self.task],
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            task_manager=self._manager,
            apply_chat_template=self.chat,
            bootstrap_iters=0,
        )
        by_document: dict[int, float] = {}
        for sample in results["samples"][self.task]:
            if sample.get("filter", self.filter) != self.filter:
                continue
            value = sample[self.metric]
            if not isinstance(value, (int, float, np.number)):
                raise ValueError(
                    f'metric "{self.metric}" of task "{self.task}" has one value for all documents; choose a metric '
                    "of single documents (acc, exact_match, ...)."
                )
            by_document[int(sample["doc_id"])] = float(value)
        return [by_document[document] for document in sorted(by_document)]
