"""An adapter is on the model whole, or it is refused: nothing is measured by the base model in its name."""

import shutil
from pathlib import Path

import pytest
import torch
from adapters import train_adapter
from datasets import Dataset
from safetensors.torch import load_file, save_file

from hf_select import LESS, CausalLM


@pytest.fixture(scope="module")
def checkpoints(model_path, rows) -> list[str]:
    return train_adapter(model_path, Path(model_path).parent / "adapters", rows)


RENAMED = "model.layers", "transformer.h"
CHANGES = {
    "other tensor names": (
        lambda a: {name.replace(*RENAMED): tensor for name, tensor in a.items()},
        r"missing from its file: 12 .*without a layer: 12 of 12",
    ),
    "a tensor less": (lambda a: dict(list(a.items())[1:]), r"missing from its file: 1 "),
    "a tensor more": (
        lambda a: {**a, "base_model.model.score.lora_A.weight": torch.zeros(4, 2)},
        r"without a layer: 1 of 13 \(base_model.model.score",
    ),
    "no tensors": (lambda a: {}, r"missing from its file: 12 "),
    "another rank": (
        lambda a: {name: tensor.repeat(2, 2) for name, tensor in a.items()},
        "size mismatch for base_model",
    ),
}


@pytest.fixture
def changed(checkpoints, tmp_path):
    """A way to copy a checkpoint with other weights in its file."""

    def make(change) -> str:
        folder = tmp_path / "checkpoint-9"
        shutil.copytree(checkpoints[0], folder)
        save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        return str(folder)

    return make


@pytest.mark.parametrize("name", CHANGES)
def test_an_adapter_whose_tensors_are_not_the_models_is_refused(name, changed, checkpoints, model_path):
    change, why = CHANGES[name]
    folder = changed(change)
    with pytest.raises(ValueError, match=f'adapter "{folder}" does not fit the model: .*{why}'):
        CausalLM(model_path, adapter=folder).load()
    queries = Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}])
    with pytest.raises(ValueError, match=f'adapter "{folder}" does not fit the model: .*{why}'):
        LESS(model_path, [checkpoints[1], folder], form="sgd").fit(queries)


@pytest.mark.parametrize("content", ["pickled", "empty", "nothing"])
def test_weights_that_are_not_in_safetensors_are_refused_unread(content, checkpoints, model_path, tmp_path):
    folder = tmp_path / "checkpoint-9"
    shutil.copytree(checkpoints[0], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    if content == "pickled":
        torch.save(weights, folder / "adapter_model.bin")
    elif content == "empty":
        (folder / "adapter_model.bin").touch()
    why = "no adapter_model.safetensors" if content == "nothing" else "only a pickled adapter_model.bin"
    for load in (CausalLM(model_path, adapter=str(folder)).load, LESS(model_path, [str(folder)], form="sgd").load):
        with pytest.raises(ValueError, match=f"{why}.*save_pretrained"):
            load()


def test_a_damaged_file_is_refused_in_one_line(checkpoints, model_path, tmp_path):
    folder = tmp_path / "checkpoint-9"
    shutil.copytree(checkpoints[0], folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="does not fit the model: .*header"):
        CausalLM(model_path, adapter=str(folder)).load()


def test_layers_that_were_trained_whole_and_shared_ones_belong_to_an_adapter(model_path, tmp_path):
    from peft import LoraConfig, VBLoRAConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    whole = LoraConfig(init_lora_weights=False, modules_to_save=["lm_head"])
    shared = VBLoRAConfig(num_vectors=16, vector_length=8, topk=2, r=2)
    for name, config in {"whole": whole, "shared": shared}.items():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3)
            expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1, [7, 3]]
        model.save_pretrained(tmp_path / name)
        found = CausalLM(model_path, adapter=str(tmp_path / name)).next_token_logits([[5, 6, 7]], [7, 3])[0]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)
