import copy
import pickle
import shutil
from contextlib import contextmanager

import pyro
import pytest
import torch
from torch import nn

from experiments.run import PRESETS
from pyro_gram.errors import ConfigError, UserError
from pyro_gram.inference.elbo import BalancedELBO
from pyro_gram.networks.core import LatentState
from pyro_gram.presets import read_preset
from pyro_gram.registry import GUIDES, MODELS, PRIORS
from pyro_gram.spec import TaskSpec
from pyro_gram.training import dry_run as setup
from pyro_gram.training import loop, precision
from pyro_gram.training.dry_run import dry_run, prepare_core
from pyro_gram.training.loop import train_batches
from pyro_gram.training.precision import (
    check_precision,
    configure_core,
    explain_compiler_errors,
    find_core,
    matmul_precision,
)
from tests.conftest import build_small
from tests.training.test_trainer import make_trainer, weights

CPU = torch.device("cpu")


def trainer_of(**train):
    """Return a trainer that has the same weights at every call."""
    torch.manual_seed(0)
    return make_trainer(build_small(model=train.pop("model", {})), **train)


@pytest.fixture
def graphs(monkeypatch):
    """The list of graphs that were compiled. A fake compiler appends each graph and returns it unchanged."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(precision, "BACKEND", keep)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_training_in_bfloat16_stays_close_and_returns_float32_tensors():
    length = {"batches": 1, "supervision_steps": 1}
    runs = {name: trainer_of(precision=name, **length) for name in ("fp32", "bf16")}
    losses = {name: [report.loss for report in train_batches(trainer)] for name, trainer in runs.items()}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]
    terms = runs["bf16"].elbo.terms
    assert {terms.reconstruction.dtype, terms.kl.dtype, terms.state.h.dtype, terms.state.l.dtype} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in runs["bf16"].model.parameters())


@pytest.mark.parametrize("capabilities", [{"amx_bf16": True}, {"avx512_bf16": True}, {"avx512_bf16": False}, {}])
def test_automatic_precision_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    model = build_small().model
    configure_core(model, "auto", False, CPU)
    assert ("forward" in vars(model.core)) == any(capabilities.values())


def test_a_failure_of_the_compiler_is_explained_in_one_line():
    from torch._inductor.exc import InductorError

    message = r"could not be compiled \(.*file too short\): set train.compile to false"
    with pytest.raises(UserError, match=message), explain_compiler_errors():
        raise InductorError(ImportError("a.so: file too short"), None)


def test_the_averaged_model_has_the_plain_core():
    trainer = trainer_of(precision="bf16")
    prepare_core(trainer)
    assert "forward" in vars(trainer.model.core)
    assert "forward" not in vars(trainer.averaged_modules[0].core)


def test_a_core_in_bfloat16_is_copied_with_its_weights_and_becomes_float32_again():
    core = build_small().model.core
    state, e_x = LatentState(torch.randn(2, 4, 16), torch.randn(2, 4, 16)), torch.randn(2, 4, 16)
    model = nn.ModuleDict({"core": core})
    model.core = core
    exact_h = core(state, e_x)[0]
    configure_core(model, "bf16", False, CPU)
    assert not torch.equal(core(state, e_x)[0], exact_h)
    for other in (copy.deepcopy(core), pickle.loads(pickle.dumps(core))):
        assert torch.equal(other(state, e_x)[0], core(state, e_x)[0])
        for p in other.parameters():
            p.data.zero_()
        assert not torch.equal(other(state, e_x)[0], core(state, e_x)[0])
    configure_core(model, "fp32", False, CPU)
    assert torch.equal(core(state, e_x)[0], exact_h)


@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler
def test_the_core_is_compiled_before_the_clock_starts(graphs, monkeypatch):
    @contextmanager
    def on_tensor_cores(*_):
        previous_precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")  # after a new setting torch compiles again
        yield
        torch.set_float32_matmul_precision(previous_precision)

    for module in (loop, setup):
        monkeypatch.setattr(module, "matmul_precision", on_tensor_cores)
    size = {"transitions": 2, "truncated": True}
    trainer = trainer_of(compile=True, precision="bf16", model=size, batches=2, supervision_steps=3, on_policy_depth=4)
    dry_run(trainer)
    assert graphs == []
    prepare_core(trainer)
    num_graphs = len(graphs)
    assert num_graphs
    assert [report.number for report in train_batches(trainer)] == [0, 1]
    assert len(graphs) == num_graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++")
def test_a_compiled_core_trains_as_the_plain_one():
    plain_trainer, compiled_trainer = trainer_of(compile=False), trainer_of(compile=True)
    a, b = ([report.loss for report in train_batches(trainer)] for trainer in (plain_trainer, compiled_trainer))
    assert a == pytest.approx(b, rel=1e-3)
    for p, q in zip(weights(plain_trainer), weights(compiled_trainer), strict=True):
        torch.testing.assert_close(p, q, atol=1e-2, rtol=1e-2)


def test_a_precision_or_compilation_that_is_not_available_is_refused(monkeypatch):
    model = build_small().model
    with pytest.raises(ConfigError, match="tf32 needs the tensor cores of CUDA, and this is cpu"):
        check_precision("tf32", False, model, CPU)
    with pytest.raises(ConfigError, match="Linear has no module 'core' or 'f'"):
        check_precision("bf16", False, nn.Linear(2, 2), CPU)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C[+][+] compiler"):
        check_precision("fp32", True, model, CPU)
    check_precision("fp32", False, nn.Linear(2, 2), CPU)


def test_cores_are_found_by_name():
    assert find_core(build_small(model_name="flat").model) is not None
    assert find_core(nn.Linear(2, 2)) is None
    configure_core(nn.Linear(2, 2), "fp32", False, CPU)


def test_float32_products_are_left_as_they_were(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    previous_precision = torch.get_float32_matmul_precision()
    with matmul_precision("tf32", torch.device("cuda")):
        assert calls == ["high"]
    assert calls == ["high", previous_precision]
    with matmul_precision("bf16", CPU), matmul_precision("fp32", torch.device("cuda")):
        assert calls == ["high", previous_precision]


def test_the_paper_preset_runs_without_data_on_the_meta_device():
    """Run one supervision step of the paper preset, forward and backward. This checks all shapes."""
    config = read_preset(PRESETS, "coloring", "paper")
    spec = TaskSpec(36, None, 5, 36, 4)
    width = config.model.width
    with torch.device("meta"):
        prior = PRIORS.get("gaussian")(config.prior, width)
        model = MODELS.get("gram")(config.model, spec, prior)
        guide = GUIDES.get("amortized")(config.guide, spec, model, width)
        x, y = (torch.zeros(config.train.batch, 36, dtype=torch.long) for _ in range(2))
        with pyro.validation_enabled(False):
            elbo = BalancedELBO()
            (traces,) = elbo._get_traces(model, guide, (x, y), {})
            _, loss = elbo._differentiable_loss_particle(*traces)
        loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None and p.grad.shape == p.shape for p in [*model.parameters(), *guide.parameters()])


def test_a_compiled_core_may_have_all_its_variants(monkeypatch):
    model = build_small().model
    monkeypatch.setattr(type(model.core), "compile", lambda *_, **__: None)
    with torch._dynamo.config.patch(recompile_limit=2):
        configure_core(model, "fp32", True, CPU)
        assert torch._dynamo.config.recompile_limit == precision.MAX_VARIANTS
