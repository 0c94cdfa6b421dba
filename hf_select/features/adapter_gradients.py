"""Gradients of rows under the checkpoints of a LoRA adapter: the featurizer of LESS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.chat_template import LESS_TEMPLATE
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded
from hf_select.features.adam import Adam, read_adam
from hf_select.features.featurizer import Feature, Featurizer, unit
from hf_select.features.gradient_reducers import Cosines, FullGradients, GradientReducer, ProjectedGradients
from hf_select.features.gradients import adapter_layers, row_gradients
from hf_select.features.projection import Dense, Factored, Projection
from hf_select.models.adapters import put_adapter
from hf_select.models.causal_lm import CausalLM
from hf_select.models.load_errors import named
from hf_select.models.loading import free_memory
from hf_select.models.responses import encode_responses
from hf_select.models.sources import content_of
from hf_select.validation import check_choices


# P parameters of the adapter, q queries, d dimensions


@dataclass
class AdapterGradients(Featurizer):
    """Each row's gradient under one or several checkpoints of an adapter.

    With a projection this is a featurizer: a row's vector is its projected gradients under all checkpoints, each of
    length 1, one after the other. Without one, full gradients are compared with those of queries by `cosines`.

    Args:
        model: Hub id, path or CausalLM of the base model.
        checkpoints: folders of the adapter, one an epoch, or that of the run which holds them.
        form: of a row's gradient: adam (the step that Adam would take) or sgd (the gradient itself). Queries have the
            gradient itself.
        adam_mode: paper, or repo for the authors' code; see Adam.
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row; a longer one is cut on the right.
        projection: none, dense or factored; see features/projection.py.
        dimensions: numbers that a projected gradient keeps for each checkpoint.
        seed: of the projection.
    """

    model: str | CausalLM
    checkpoints: list[str]
    form: Literal["adam", "sgd"] = "adam"
    adam_mode: Literal["paper", "repo"] = "paper"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048
    projection: Literal["none", "dense", "factored"] = "none"
    dimensions: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        # A copy, because the adapters are put into the model.
        self.lm = self.model.fresh() if isinstance(self.model, CausalLM) else CausalLM(self.model)
        self.lm.check_text_format(self.text_format)
        given = [self.checkpoints] if isinstance(self.checkpoints, str) else self.checkpoints
        self.checkpoints = [path for folder in given for path in _checkpoints_in(folder)]
        if not self.checkpoints:
            raise ValueError("checkpoints is empty; give at least one folder of a trained adapter.")
        self._adams: list[Adam | None] = [None] * len(self.checkpoints)
        self._adapted: Any = None
        self._projection: Projection | None = None

    def identity(self) -> dict[str, object]:
        """Everything that the vectors depend on."""
        return {
            **self.described(),
            "model": self.lm.identity(),
            "checkpoints": self.contents,
            "vectors_version": self.scoring_version,
        }

    def described(self) -> dict[str, object]:
        """The settings, for people to read."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "model": self.lm.described()}

    @cached_property
    def contents(self) -> list[str]:
        """Content hash of each checkpoint: of its adapter and, if it is read, of the optimizer's state."""
        optimizer = ("optimizer.pt", "adam_moments.safetensors") if self.form == "adam" else ()
        return [f"content {content_of(path, ('adapter_*', *optimizer))}" for path in self.checkpoints]

    def readers(self) -> list[CausalLM]:
        """The model, whose chat template may write the date."""
        return [self.lm]

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the model so far."""
        return vars(self.lm.usage).copy()

    def details(self) -> dict[str, Any]:
        """What runs: the commit of the weights, their dtype and the number of dimensions."""
        return {
            **self.lm.details(LESS_TEMPLATE if self.text_format == "tulu" else None),
            "dimensions": self.dimensions * len(self.checkpoints),
        }

    def load(self, rank: int | None = None) -> None:
        """Load the base model, every checkpoint's adapter and, for form=adam, their optimizer states."""
        if self._adapted is not None:
            return
        loaded = self.lm.load(rank)
        adapted: Any = None
        for number, path in enumerate(self.checkpoints):
            if not (Path(path).expanduser() / "adapter_config.json").exists():
                raise ValueError(f'"{path}" is not an adapter checkpoint: it has no adapter_config.json.')
            adapted = put_adapter(loaded.model if adapted is None else adapted, path, _adapter(number))
        adapted.eval()
        layers = [adapter_layers(loaded.model, _adapter(number)) for number in range(len(self.checkpoints))]
        if self.form == "adam":
            for number, (path, some) in enumerate(zip(self.checkpoints, layers, strict=True)):
                with named(path):
                    self._adams[number] = read_adam(path, some, self.adam_mode)
        if self.projection != "none":
            # All checkpoints share one projection; their layers are named after different adapters.
            shapes = {name.rpartition(".")[0]: tuple(layer.weight.shape) for name, layer in layers[0].items()}
            kind = Dense if self.projection == "dense" else Factored
            self._projection = kind(cast(Any, shapes), self.dimensions, self.seed)
        self._adapted = adapted

    def __call__(self, rows: list[Conversation], queries: bool = False) -> list[Feature | BadRow]:
        """Projected gradients, (checkpoints * d,) per row. Those of rows have length 1 per checkpoint; those of
        queries keep their lengths, which weight them in a mean."""
        self.load()
        self._refuse_beyond_memory(len(rows), self.dimensions, "rows", "lower dimensions")
        scaled = np.asarray if queries else unit
        projected = self.features(rows, lambda encoded, checkpoint: self._projected(encoded, checkpoint, queries))
        return map_rows(lambda f: Feature(scaled(np.stack(f.vector)).ravel(), f.note), projected)

    def encode(self, rows: list[Conversation]) -> list[tuple[Encoded, str] | BadRow]:
        """(token ids with response spans, note of a cut) per row, or the reason why a row has no gradient."""
        return encode_responses(self.lm, rows, self.text_format, self.max_length)

    def features(
        self, rows: list[Conversation], of: Callable[[list[Encoded], int], list[Any]]
    ) -> list[Feature | BadRow]:
        """The results of `of(rows, checkpoint)` under every checkpoint, a Feature per row, or the reason why a row
        has none."""
        self.load()

        def measure(encoded: list[tuple[Encoded, str]]) -> list[Feature | BadRow]:
            by_checkpoint = [of([row for row, _ in encoded], number) for number in range(len(self.checkpoints))]
            notes = [note for _, note in encoded]
            return map_rows(_feature, notes, *by_checkpoint)

        return on_readable(self.encode(rows), measure)

    def full_gradients(self, rows: list[Encoded], checkpoint: int) -> list[Any]:
        """Gradients (P,) of queries, without Adam, in the order of the adapter's layers."""
        with self._active(checkpoint) as layers:
            size = sum(layer.weight.numel() for layer in layers.values())
            self._refuse_beyond_memory(len(rows), size, "queries", "project them (projection=factored), or give fewer")
            return self._measure(rows, checkpoint, lambda n: FullGradients(n, list(layers)))

    def cosines(self, rows: list[Encoded], checkpoint: int, queries: Tensor) -> list[Any]:
        """Cosine similarity of each row's gradient (or Adam step) to queries (q, P): one array (q,) per row."""
        with self._active(checkpoint) as layers:
            sizes = [layer.weight.numel() for layer in layers.values()]
            split = zip(layers.items(), queries.split(sizes, dim=1), strict=True)
            parts = {name: part.to(layer.weight.device) for (name, layer), part in split}
            norms = queries.norm(dim=1)
            return self._measure(rows, checkpoint, lambda n: Cosines(n, parts, norms, self._adams[checkpoint]))

    def _projected(self, rows: list[Encoded], checkpoint: int, queries: bool) -> list[Any]:
        if self._projection is None:
            raise ValueError(
                "projection is none; full gradients are too large to store as vectors. Set it to factored or dense."
            )
        with self._active(checkpoint):
            adam, projection = None if queries else self._adams[checkpoint], self._projection
            return self._measure(rows, checkpoint, lambda n: ProjectedGradients(n, projection, adam))

    def _measure(self, rows: list[Encoded], checkpoint: int, reduce: Callable[[int], GradientReducer]) -> list[Any]:
        ids, spans = [row.input_ids for row in rows], [row.responses for row in rows]
        return row_gradients(self.lm, ids, spans, reduce, _adapter(checkpoint)) if rows else []

    def _refuse_beyond_memory(self, rows: int, numbers: int, what: str, cure: str) -> None:
        needed, free = 4 * rows * numbers * len(self.checkpoints), free_memory(self.lm.load().device)
        if needed > free:
            raise ValueError(
                f"the gradients of {rows:,} {what} take {needed / 2**30:,.1f} GiB ({numbers:,} numbers of 4 bytes and "
                f"{len(self.checkpoints)} checkpoints each) and {free / 2**30:,.1f} GiB are free; {cure}."
            )

    @contextmanager
    def _active(self, checkpoint: int) -> Iterator[dict[str, torch.nn.Linear]]:
        self.load()
        self._adapted.set_adapter(_adapter(checkpoint))
        yield adapter_layers(self.lm.load().model, _adapter(checkpoint))


def _feature(note: str, *parts: Any) -> Feature:
    """The results of a row under every checkpoint."""
    if not all(torch.as_tensor(part).isfinite().all() for part in parts):
        raise BadRow("the gradient is not finite")
    return Feature(parts, note)  # type: ignore[arg-type]


def _checkpoints_in(path: str) -> list[str]:
    """The checkpoints of a run in their order, or the folder itself."""
    folder = Path(path).expanduser()
    inside = [p.parent for p in folder.glob("checkpoint-*/adapter_config.json") if p.parent.name[11:].isdigit()]
    return [str(p) for p in sorted(inside, key=lambda p: int(p.name[11:]))] or [str(folder)]


def _adapter(checkpoint: int) -> str:
    return f"checkpoint_{checkpoint}"
