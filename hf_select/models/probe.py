"""Checks a loaded causal LM on a few tokens: it is causal, its logits are correct, and which optimisations it
supports."""

import logging

import torch
from torch import Tensor

from hf_select.models._compat import is_croppable
from hf_select.models.load_errors import not_causal
from hf_select.models.loaded_model import LoadedModel


logger = logging.getLogger(__name__)


@torch.inference_mode()
def probe(loaded: LoadedModel, name: str) -> None:
    """Check the assumptions of all scores on eight tokens: attention is causal, and `LoadedModel.logits` equals the
    model's logits. Also determine which optimisations this architecture supports. A wrong result has a relative error
    near 1, rounding a much smaller one. So the tolerance is large enough for half precision and tf32."""
    ids = torch.arange(8, device=loaded.device)[None] % loaded.vocab_size  # (1, 8)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % loaded.vocab_size
    training = loaded.model.training
    loaded.model.eval()
    hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state  # (1, 8, D)
    changed = loaded.backbone(input_ids=other, use_cache=False).last_hidden_state
    if not hidden.isfinite().all():
        raise ValueError(f'the hidden states of "{name}" are not finite: damaged weights, or diverged training.')
    # Both passes run the same operations on the same shapes, but 8bit scales each batch by its largest values.
    limit = 5e-2 if getattr(loaded.model, "is_loaded_in_8bit", False) else 1e-4
    if not _near(changed[:, :-1], hidden[:, :-1], limit):
        raise not_causal(name, "its tokens attend to later ones")
    own = loaded.model(input_ids=ids, use_cache=False).logits[0, -1]
    if not _near(loaded.logits(hidden[:, -1])[0], own):
        raise ValueError(
            f"{type(loaded.model).__name__} modifies its logits after the output head, which is not supported; "
            "please report the architecture."
        )
    if loaded.last_mlp is not None and not _last_layer_picks(loaded, ids, hidden):
        loaded.last_mlp = None
    loaded.shares_cache = _cache_continues(loaded, ids, hidden)
    loaded.shares_padded_cache = loaded.shares_cache and _padded_cache_continues(loaded, ids, hidden)
    if not loaded.shares_cache:
        logger.info("%s: rows cannot share a KV cache; every prompt is computed in full.", type(loaded.model).__name__)
    loaded.model.train(training)


def _near(actual: Tensor, expected: Tensor, limit: float = 5e-2) -> bool:
    actual, expected = actual.float().to(expected.device), expected.float()
    return bool((actual - expected).norm() <= limit * expected.norm())


def _last_layer_picks(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    positions = torch.tensor([5, 2], device=loaded.device)
    try:
        with loaded.last_layer_at(positions):
            picked = loaded.backbone(input_ids=ids.repeat(2, 1), use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, IndexError):  # its feed-forward block does not accept (B, T, D)
        return False
    return _near(picked[torch.arange(2), positions.to(picked.device)], hidden[0, positions.to(hidden.device)])


def _cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Sliding-window and recurrent layers do not cache one key and value per token.
    cache = loaded.new_cache()
    if any(getattr(layer, "is_sliding", True) or not is_croppable(layer) for layer in cache.layers):
        return False
    for cut in (4, 6):
        loaded.backbone(input_ids=ids[:, :cut], **loaded.inputs(cache))
        if cache.get_seq_length() != cut:  # the architecture does not fill this cache
            return False
        rest = loaded.backbone(input_ids=ids[:, cut:], **loaded.inputs(cache)).last_hidden_state
        if not _near(rest, hidden[:, cut:]):
            return False
        cache.crop(-cache.get_seq_length())
    return True


def _padded_cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Some architectures use the index of a key in the cache as its position (ALiBi in MPT, windows in GPT-Neo).
    if hasattr(loaded.config, "window_size"):  # eight tokens are too few to detect a window
        return False
    cache = loaded.new_cache()
    # The last three of these eight tokens serve as padding.
    loaded.backbone(input_ids=ids, **loaded.inputs(cache))
    mask = torch.ones(1, 11, dtype=torch.long, device=loaded.device)
    mask[0, 5:8] = 0
    positions = torch.arange(5, 8, device=loaded.device)[None]
    follow = loaded.backbone(input_ids=ids[:, 5:], attention_mask=mask, **loaded.inputs(cache, positions))
    return _near(follow.last_hidden_state, hidden[:, 5:])
