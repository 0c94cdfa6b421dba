"""Mean negative log-likelihood of each row's labels, for the kinds of language models that Trainer trains.

    causal                    the output at t predicts the label at t + 1
    masked, encoder-decoder   the output at t predicts the label at t

With the fused head of TRL 1.16, which its trainers use, logits of a causal model are never computed for all positions
and the whole vocabulary (B, T, V); `fused_head` adds it to other models. Earlier releases of TRL have none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel, is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_select.training import _compat


# B rows, T tokens, V vocabulary

_PROBE_TOKENS = 8
_CURE = (
    "give the callback a function (model, batch) -> (B,) of your own, such as lambda model, batch: F.cross_entropy("
    'model(**batch).logits, batch["labels"], reduction="none") for one class a row, or a score column.'
)


def label_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood in nats of each row's labels, (B,) fp32; NaN for a row without a label.

    Raises: ValueError for a model that is not a language model, and for labels other than one per token.
    """
    if "labels" not in batch:
        raise ValueError(
            f'the collator makes {", ".join(batch)} and no "labels"; give the callback a function of your own that '
            "reads such a batch, or a score column."
        )
    base, labels = _language_model(model), batch["labels"]
    if labels.ndim != 2:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, and the loss of a language model needs one per token, "
            f"(rows, tokens); {_CURE}"
        )
    shift = _shift(base)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if shift and _compat.has_fused_head(base):
        log_probs = model(**inputs, labels=labels, fused_lm_head=True).log_probs  # (B, T - 1), 0 without a label
        log_probs = log_probs[:, log_probs.shape[1] - labels.shape[1] + 1 :]  # prompt tuning prepends tokens
        counts = (labels[:, 1:] != -100).sum(1)
        return -log_probs.float().sum(1) / counts.to(log_probs.device)
    if base.config.is_encoder_decoder:
        inputs["labels"] = labels  # the decoder's inputs are derived from them
    logits = model(**inputs).logits  # (B, T, V)
    logits = logits[:, max(0, logits.shape[1] - labels.shape[1]) :]
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"the model gives {logits.shape[1]} predictions for {labels.shape[1]} labels a row, so they cannot be "
            f"compared; {_CURE}"
        )
    labels = labels.to(logits.device)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return -label_log_probs(logits, labels).sum(1) / (labels != -100).sum(1)


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label under the logits of its position, fp32, (B, T); 0 without a label."""
    rows = zip(logits, labels, strict=True)  # fp32 logits of one row at a time
    return torch.stack(
        [-F.cross_entropy(row.float(), label, ignore_index=-100, reduction="none") for row, label in rows]
    )


@contextmanager
def fused_head(model: nn.Module) -> Iterator[None]:
    """Within the block a causal model has TRL's fused head, if that reproduces the model's log-probabilities on a few
    tokens; it would silently skip a head with further layers, such as BERT's."""
    base = unwrapped(model)
    if kind(base) != "causal" or _compat.has_fused_head(base) or not _compat.offers_fused_head():
        yield
        return
    if base.get_output_embeddings() is None or not _fused_head_agrees(model, base):
        yield
        return
    with _compat.add_fused_head(base):
        yield


def _fused_head_agrees(model: nn.Module, base: PreTrainedModel) -> bool:
    device = next(base.parameters()).device
    vocabulary = base.config.get_text_config().vocab_size
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device)[None] % vocabulary  # (1, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(**inputs).logits[:, -_PROBE_TOKENS:-1].float()
        expected = logits.log_softmax(-1).gather(2, ids[:, 1:, None].to(logits.device))[..., 0]
        with _compat.add_fused_head(base):
            try:
                actual = model(**inputs, labels=ids, fused_lm_head=True).log_probs[:, 1 - _PROBE_TOKENS :]
            except (AttributeError, TypeError):  # the model has other submodule names
                return False
    exact = base.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    rounding = 1e-3 if exact else 0.1  # bf16 rounds logits near 20 to steps of 0.125
    return torch.allclose(actual.float(), expected.to(actual.device), atol=rounding, rtol=rounding)


def unwrapped(model: nn.Module) -> Any:
    """The model without the wrappers of DDP, DeepSpeed, FSDP and PEFT."""
    inner: Any = extract_model_from_parallel(model)
    return inner.get_base_model() if is_peft_model(inner) else inner


def _language_model(model: nn.Module) -> PreTrainedModel:
    base = unwrapped(model)
    if kind(base) is None:
        raise ValueError(
            f"{type(base).__name__} is not a causal, masked or encoder-decoder language model, so its labels are not "
            f"tokens to predict; {_CURE}"
        )
    return base


def kind(model: nn.Module) -> Literal["causal", "masked", "encoder-decoder"] | None:
    """The kind of a language model; None for another model."""
    if not isinstance(model, PreTrainedModel):
        return None
    if "MaskedLM" in type(model).__name__:
        return "masked"
    if not model.can_generate():
        return None
    return "encoder-decoder" if model.config.is_encoder_decoder else "causal"


def _shift(model: PreTrainedModel) -> int:
    """Distance from an output to the label that it predicts, in positions."""
    return 1 if kind(model) == "causal" else 0
