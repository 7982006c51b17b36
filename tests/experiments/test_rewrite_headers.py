import json

import pytest

from experiments.studies import rewrite_headers
from pyro_gram.checkpoint import load, save_model
from pyro_gram.system.files import open_tensor_file, write_tensor_file
from pyro_gram.training.heads import attach_heads
from tests.conftest import build_small

OLD_CONFIG = {
    "seed": 0,
    "task": {"fewest": 1, "most": 3},
    "train": {"on_policy": 8, "batches": 5},
    "beta": {"most": 20.0, "quiet": 0.1, "rise": 1.02, "fall": 0.97},
    "verdict": {"hidden": 64, "heads": 4},
}
NEW_CONFIG = {
    "seed": 0,
    "task": {"min_queens": 1, "max_queens": 3},
    "train": {"on_policy_depth": 8, "batches": 5},
    "beta": {"max": 20.0, "silent_fraction": 0.1, "raise_factor": 1.02, "lower_factor": 0.97},
    "heads": {"hidden": 64, "attention_heads": 4},
}


def test_settings_are_renamed_at_any_depth_of_a_results_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": [{"config": OLD_CONFIG}], "task": "nqueens", "on_policy": 1}))
    assert rewrite_headers.rewrite(path)
    assert json.loads(path.read_text()) == {"rows": [{"config": NEW_CONFIG}], "task": "nqueens", "on_policy": 1}
    assert not rewrite_headers.rewrite(path)


def test_a_checkpoint_with_old_names_loads_after_it_is_rewritten(tmp_path):
    path = tmp_path / "model.safetensors"
    solver = build_small(heads={"hidden": 16, "attention_heads": 2, "layers": 1})

    attach_heads(solver.model, solver.config.model, solver.task, solver.config.heads, seed=0)
    save_model(path, solver)
    file = open_tensor_file(path, "model")
    config = {**file.header["config"]}
    heads = config.pop("heads")
    config["verdict"] = {
        **{k: v for k, v in heads.items() if k != "attention_heads"},
        "heads": heads["attention_heads"],
    }
    tensors = {name.replace("model.heads.", "model.verdict."): tensor for name, tensor in file.tensors().items()}
    write_tensor_file(path, tensors, {**file.header, "config": config})
    with pytest.raises(ValueError, match="verdict"):
        load(path)
    assert rewrite_headers.rewrite(path)
    assert load(path).has_heads
    assert not rewrite_headers.rewrite(path)
