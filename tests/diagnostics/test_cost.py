"""The layers that a sample passes through, counted, against what each program should take."""

import pytest

from pyro_gram.diagnostics.metrics import count_layers
from tests.conftest import SMALL_TASKS, build_case

TOKENS = SMALL_TASKS["coloring"]["vertices"]


def counted(depth=1, layers=2, **changes):
    case = build_case(model=changes.pop("model", {}) | {"layers": layers}, **changes)
    return count_layers(case.solver.model, case.x[:1], depth)


def test_a_recursion_passes_through_its_stacks_at_every_step_of_every_transition():
    assert counted(depth=16, model={"transitions": 3, "low_steps": 4}) == 16 * 3 * (4 + 1) * 2
    assert counted(depth=16, model={"transitions": 1, "low_steps": 2}) == 16 * 1 * (2 + 1) * 2
    assert counted(depth=4, model_name="trm", model={"transitions": 3, "low_steps": 6}) == 4 * 3 * 7 * 2
    assert counted(depth=4, model_name="hrm", model={"transitions": 2, "low_steps": 2}) == 4 * 2 * 3 * 2
    assert counted(model_name="looped", model={"transitions": 8, "low_steps": 1}) == 8 * 2


def test_a_model_of_one_pass_takes_its_layers_and_one_that_draws_takes_them_again():
    assert counted(layers=8, model_name="direct") == 8
    assert counted(layers=3, model_name="autoregressive") == TOKENS * 3
    assert counted(layers=3, model_name="mdlm", model={"sampling_steps": 64}) == 64 * 3
    assert counted(layers=3, model_name="mdlm") == TOKENS * 3
    assert counted(layers=3, model_name="d3pm", model={"times": 10}) == 10 * 3
    assert counted(layers=3, model_name="vae") == 2 * 3


def test_a_count_leaves_nothing_behind():
    case = build_case()
    first = count_layers(case.solver.model, case.x[:1], 2)
    assert count_layers(case.solver.model, case.x[:1], 4) == 2 * first
    assert not any(module._forward_hooks for module in case.solver.model.modules())


@pytest.mark.parametrize("prior", ["none", "noise_only", "flow", "discrete"])
def test_priors_cost_no_layers(prior):
    guide = {"guide_name": "prior"} if prior == "none" else {}
    assert counted(depth=2, prior_name=prior, **guide) == counted(depth=2)


def test_a_program_without_input_is_counted_too():
    case = build_case(task_name="sudoku_uncond")
    assert count_layers(case.solver.model, None, 3) == 3 * 2 * 3 * 1
