import dataclasses
import gc
import itertools
import math
import time

import pyro
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBOModule

from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.system.distributed import ProcessGroup
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training import trainer as training
from pyro_gram.training.beta_schedule import BetaConfig, BetaController
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError
from pyro_gram.training.dry_run import dry_run
from pyro_gram.training.loop import train_batches
from pyro_gram.training.optimizer import OptimConfig, TorchOptim, hidden_matrices
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, build_small

OPTIM = OptimConfig(lr=1e-2, warmup=1, weight_decay=0.1, clip=0.5)


def make_trainer(solver=None, **train):
    solver = solver or build_small()
    c = solver.config
    settings = {**vars(c.train), **train}
    stream = TargetStream(solver.task, solver.task.split("train"), c.train.batch, c.seed, group=not settings["act"])
    return Trainer(solver.model, solver.guide, stream, TrainConfig(**settings), OPTIM, BetaConfig(), c.seed)


def weights(trainer):
    return [p.detach().clone() for m in (trainer.model, trainer.guide) for p in m.parameters()]


def copy_weights(source, target):
    target.model.load_state_dict(source.model.state_dict())
    target.guide.load_state_dict(source.guide.state_dict())


# ---- one update ------------------------------------------------------------------------------------------------------


def test_an_update_is_a_step_of_svi():
    """The trainer, SVI with TorchOptim, and an ELBOModule with bare torch make the same update."""
    first, second, third = build_case(), build_case(), build_case()
    for case in (second, third):
        copy_weights(first.solver, case.solver)
    trainer = make_trainer(first.solver)
    pyro.set_rng_seed(4)
    trainer.update(trainer.guide, first.x, first.y, None, step=0)

    model, guide = second.solver.model, second.solver.guide
    svi = SVI(model, guide, TorchOptim({"model": model, "guide": guide}, OPTIM), make_elbo("balanced"))
    pyro.set_rng_seed(4)
    with pyro.poutine.scale(scale=1 / len(second.y)):
        svi.step(second.x, second.y, None, beta=1.0)
    svi_parameters = [p for m in (model, guide) for p in m.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(weights(trainer), svi_parameters, strict=True))

    module = make_elbo("balanced")(third.solver.model, third.solver.guide)
    assert isinstance(module, ELBOModule)
    parameters = [p for m in (third.solver.model, third.solver.guide) for p in m.parameters()]
    adam = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    pyro.set_rng_seed(4)
    with pyro.poutine.scale(scale=1 / len(third.y)):
        module(third.x, third.y).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    adam.step()
    for a, b in zip(svi_parameters, parameters, strict=True):
        torch.testing.assert_close(a, b)


def test_svi_trains_with_an_optimizer_of_pyro():
    case = build_case()
    model, guide = case.solver.model, case.solver.guide
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), make_elbo("balanced"))
    losses = [svi.step(case.x, case.y) for _ in range(10)]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_batch_makes_one_update_per_supervision_step_and_carries_the_state_on(monkeypatch):
    trainer = make_trainer(supervision_steps=3)
    update, states = trainer.update, []

    def spy(guide, x, y, state, step):
        states.append(state)
        return update(guide, x, y, state, step)

    monkeypatch.setattr(trainer, "update", spy)
    next(train_batches(trainer))
    assert trainer.optimizer.num_updates == 3
    assert states[0] is None
    assert all(s is not None and not s.h.requires_grad for s in states[1:])
    assert not torch.equal(states[1].h, states[2].h)
    assert trainer.elbo.terms.state.h.grad_fn is None


def test_evaluation_weights_are_the_running_average_with_a_warm_start():
    trainer = make_trainer(ema=0.9, batches=1, supervision_steps=1)
    initial_weights = weights(trainer)
    next(train_batches(trainer))
    final_weights, (model, guide) = weights(trainer), trainer.averaged_modules
    averages = [p for m in (model, guide) for p in m.parameters()]
    assert guide.model is model
    for s, e, a in zip(initial_weights, final_weights, averages, strict=True):
        assert not torch.equal(s, e)
        torch.testing.assert_close(a, e)  # the first update sets the average to the new weights


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch():
    trainer = make_trainer()
    next(train_batches(trainer))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(DivergedError, match="in batch 1, step 0") as e:
        next(train_batches(trainer))
    assert (e.value.record.batch, e.value.record.step, e.value.record.on_policy) == (1, 0, False)


@pytest.mark.parametrize("field", ["gradient_norm", "loss"])
def test_an_update_that_would_ruin_the_run_is_not_made(field, monkeypatch):
    trainer = make_trainer()
    run = train_batches(trainer)
    next(run)
    num_updates, check = trainer.optimizer.num_updates, trainer.divergence.check
    value, message = (math.inf, "norm became inf") if field == "gradient_norm" else (1e7, "exploded to 1e[+]07 nats")
    monkeypatch.setattr(
        trainer.divergence, "check", lambda record: check(dataclasses.replace(record, **{field: value}))
    )
    old_state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(DivergedError, match=message):
        next(run)
    assert all(torch.equal(v, old_state[k]) for k, v in trainer.model.state_dict().items())
    assert trainer.optimizer.num_updates == num_updates
    assert all(p.grad is None for p in trainer.model.parameters())


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss():
    losses = [report.loss for report in train_batches(make_trainer(batches=25))]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_training_is_reproducible_and_does_not_depend_on_draws_between_batches():
    a, b = make_trainer(), make_trainer()
    copy_weights(a, b)
    list(train_batches(a))
    for _ in train_batches(b):
        torch.randn(7)
    assert all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


def test_batches_and_processes_have_different_draws(monkeypatch):
    draws = set()
    for rank in range(2):
        trainer = make_trainer(batches=6)
        trainer.processes = ProcessGroup(rank, 1)
        monkeypatch.setattr(trainer, "supervise", lambda *_: draws.add(torch.rand(()).item()) or torch.zeros(1, 2))
        list(train_batches(trainer))
    assert len(draws) == 12


def test_memory_does_not_grow_with_the_number_of_supervision_steps():
    def count_tensors(steps):
        trainer = make_trainer(supervision_steps=steps, batches=2)
        list(train_batches(trainer))
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    count_tensors(2)
    assert abs(count_tensors(8) - count_tensors(2)) <= 5


def test_minutes_end_a_run(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(seconds) / 5)
    trainer = make_trainer(batches=0, minutes=0.01)
    assert len(list(train_batches(trainer))) >= 1
    assert trainer.elapsed >= 0.6
    trainer = make_trainer(batches=0, minutes=2.0)
    trainer.elapsed = 60.0
    assert trainer.progress == 0.5


@pytest.mark.parametrize("length", [{"batches": 6}, {"batches": 0, "minutes": 0.02}])
def test_the_schedule_follows_the_batches_or_the_clock_if_that_alone_ends_the_run(length, monkeypatch):
    clock = itertools.count()  # the time advances by 1/50 s at every reading
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 50)
    trainer = make_trainer(**length)
    values = []
    for _ in train_batches(trainer):
        values.append(trainer.optimizer.progress)
    assert values == sorted(values)
    assert 0 <= values[0] < 0.9
    assert values[-1] > 0.8


@pytest.mark.parametrize("length", [{"batches": 3}, {"batches": 0, "minutes": 0.01}])
def test_the_last_batch_of_a_run_says_so_even_if_the_caller_used_up_the_clock(length):
    trainer = make_trainer(**length)
    flags = []
    for report in train_batches(trainer):
        flags.append(report.is_last)
        if length["batches"] != 3:
            time.sleep(0.3)
    assert flags == [False] * (len(flags) - 1) + [True]
    assert list(train_batches(trainer)) == []


def test_beta_is_high_in_the_silent_part_and_starts_at_its_start_after_it():
    trainer = make_trainer(batches=5, supervision_steps=1)
    trainer.beta = BetaController(BetaConfig(start=1.0, target=1e6, smoothing=0.0, max=9.0, silent_fraction=0.4))
    betas = [report.beta for report in train_batches(trainer)]
    assert betas == [9.0] * 2 + [pytest.approx(1.02**n) for n in range(3)]


def test_beta_may_watch_the_reconstruction_of_the_last_step(monkeypatch):
    trainer = make_trainer(batches=1)
    trainer.beta = BetaController(BetaConfig(watch="last"))
    monkeypatch.setattr(trainer, "supervise", lambda *_: torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    list(train_batches(trainer))
    assert trainer.beta.mean == 3.0


@pytest.mark.parametrize(
    ("elbo", "guide"),
    [("balanced", "replay"), ("mean_field", "amortized"), ("trace", "replay"), ("trace", "amortized")],
)
def test_every_bound_trains(elbo, guide):
    reports = list(train_batches(make_trainer(build_small(guide_name=guide), elbo=elbo, batches=2)))
    assert all(math.isfinite(r.loss) for r in reports)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": 0}, "needs an end"),
        ({"batches": -1}, "batches"),
        ({"elbo": "x"}, "unknown elbo"),
        ({"ema": 1.0}, "ema"),
        ({"balance": 2.0}, "balance"),
        ({"on_policy_after": 1.0}, "on_policy_after"),
    ],
)
def test_errors_name_bad_train_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_a_precision_that_the_device_does_not_support_is_refused():
    with pytest.raises(ConfigError, match="tf32"):
        make_trainer(precision="tf32")


def test_a_guide_with_parameters_for_each_datum_trains_in_one_process():
    solver = build_small(guide_name="mean_field", guide={"num_pairs": 40})
    with pytest.raises(ConfigError, match="trains in one process"):
        Trainer(solver.model, solver.guide, lambda _: None, TrainConfig(), OPTIM, BetaConfig(),
                processes=ProcessGroup(0, 2))  # fmt: skip


# ---- the optimizer on models -----------------------------------------------------------------------------------------


def test_a_parameter_that_would_stay_untrained_is_refused():
    case = build_case()
    model, guide = case.solver.model, case.solver.guide
    svi = SVI(model, guide, TorchOptim({"model": model}, OPTIM), make_elbo("balanced"))
    with pytest.raises(ConfigError, match="belong to no module"):
        svi.step(case.x, case.y)

    def guide_with_parameter(x, y=None, state=None, **kwargs):
        pyro.param("stray", torch.zeros(3))
        return guide(x, y, state, **kwargs)

    trainer = make_trainer(case.solver, elbo="trace")
    trainer.guide = guide_with_parameter
    with pytest.raises(ConfigError, match="belong to no module"):
        dry_run(trainer)


def test_puzzle_embeddings_have_a_rate_and_a_decay_of_their_own():
    case = build_case(task_name="arc", optim={"lr": 1e-3, "embedding_lr": 0.1, "embedding_decay": 0.5, "warmup": 1})
    model, guide = case.solver.model, case.solver.guide
    optim = TorchOptim({"model": model, "guide": guide}, case.solver.config.optim)
    main_group, embedding_group = optim.groups
    (embedding,) = embedding_group["params"]
    assert embedding is model.encoder.puzzle_embedding
    assert all(p is not embedding for p in main_group["params"])
    assert embedding_group["weight_decay"] == 0.5
    old_embedding = embedding.detach().clone()
    SVI(model, guide, optim, Trace_ELBO()).step(case.x, case.y)
    assert (main_group["lr"], embedding_group["lr"]) == pytest.approx((1e-3, 0.1))
    rows = case.x[:, 0].unique()
    step = (embedding - old_embedding * (1 - 0.1 * 0.5)).abs()
    assert step[rows].amax().item() == pytest.approx(0.1, rel=1e-2)  # Adam's first step has the size of lr
    plain_optim = TorchOptim({"model": model}, OptimConfig(lr=1e-3, warmup=1))
    plain_optim.step()
    assert {group["lr"] for group in plain_optim.groups} == {1e-3}


def test_muon_trains_the_hidden_matrices_and_adamw_the_rest():
    case = build_case(optim={"hidden_optimizer": "muon", "lr": 1e-2, "weight_decay": 0.0, "warmup": 1})
    model, guide = case.solver.model, case.solver.guide
    modules = {"model": model, "guide": guide}
    optim = TorchOptim(modules, case.solver.config.optim)
    matrices = hidden_matrices(modules)
    assert {"model.core.f_L.0.mixer.qkv.weight", "model.prior.head.mlp.down.weight"} <= set(matrices)
    assert not [name for name in matrices if "coder" in name or "answer" in name or "embedding" in name]
    assert len([p for group in optim.groups for p in group["params"]]) == len(optim.parameters_by_name)
    old_parameters = {name: p.detach().clone() for name, p in optim.parameters_by_name.items()}
    SVI(model, guide, optim, Trace_ELBO()).step(case.x, case.y)
    name = "model.core.f_H.0.channels.gate_up.weight"
    change = optim.parameters_by_name[name].detach() - old_parameters[name]
    # The update of an a x b matrix is nearly orthogonal: its singular values are all about 0.2 lr sqrt(max(a, b)).
    singular_values = torch.linalg.svdvals(change) / (0.2 * 1e-2 * max(change.shape) ** 0.5)
    assert 0.5 < singular_values.median() < 1.3
    assert singular_values.max() < 1.4
    head = optim.parameters_by_name["model.decoder.head.weight"].detach() - old_parameters["model.decoder.head.weight"]
    assert head.abs().median().item() == pytest.approx(1e-2, rel=1e-2)  # Adam's first step has the size of lr

    state = optim.state_dict()
    momentum = next(key for key in state if key.endswith("/momentum_buffer"))
    moment = next(key for key in state if key.endswith("/exp_avg"))
    for damaged_state in (
        {**state, momentum: state[momentum][:1]},
        {**state, "model.nothing/momentum_buffer": state[momentum]},
        {**state, f"{momentum.rpartition('/')[0]}/exp_avg": state[momentum]},
        {key: value for key, value in state.items() if key != moment},
    ):
        with pytest.raises(KeyError):
            optim.load_state_dict(damaged_state)
    with pytest.raises(ConfigError, match="unknown hidden_optimizer 'sgd'"):
        OptimConfig(hidden_optimizer="sgd")
