"""What differs between releases of transformers, on the installed one."""

import pytest
from transformers import DynamicCache

from hf_select.models._compat import cause_of, is_croppable, model_cache
from hf_select.models.load_errors import named
from hf_select.training._compat import checkpointing, warmup_share


def test_layers_of_an_ordinary_cache_can_be_cut():
    import torch

    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    assert is_croppable(cache.layers[0]) and not is_croppable(object())


def test_the_cache_of_models_is_that_of_the_hub_unless_transformers_has_its_own(monkeypatch):
    from transformers.utils import hub

    monkeypatch.delattr(hub, "TRANSFORMERS_CACHE", raising=False)
    assert model_cache() is None
    monkeypatch.setattr(hub, "TRANSFORMERS_CACHE", "/scratch/models", raising=False)
    assert model_cache() == "/scratch/models"


def test_a_file_that_cannot_be_read_is_not_a_missing_protobuf():
    with (
        pytest.raises(ValueError, match=r'"org/model" cannot be loaded \(Exception: expected `,`\)'),
        named("org/model"),
    ):
        try:
            raise Exception("expected `,`")
        except Exception:
            raise ImportError("requires the protobuf library")  # noqa: B904
    for error in (ImportError("requires the protobuf library"), OSError("no file")):
        assert cause_of(error) is error


def test_the_share_of_warm_up_steps_is_a_share(tmp_path):
    from trl import SFTConfig

    settings = {"use_cpu": True, "bf16": False, "report_to": "none", **checkpointing(SFTConfig, False)}
    args = SFTConfig(str(tmp_path), **settings, **warmup_share(SFTConfig, 0.1))
    assert args.get_warmup_steps(50) == 5
