import dataclasses
import gc
import itertools
import math
import time

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBOModule

from pyro_gram.errors import ConfigError
from pyro_gram.inference.elbo import make_elbo
from pyro_gram.tasks.batches import TargetStream
from pyro_gram.training.beta_schedule import BetaConfig, BetaController
from pyro_gram.training.config import TrainConfig
from pyro_gram.training.divergence import DivergedError, Guard, Update
from pyro_gram.training.optimizer import OptimConfig, TorchOptim, hidden_matrices
from pyro_gram.training.trainer import Trainer
from tests.conftest import build_case, build_small

OPTIM = OptimConfig(lr=1e-2, warmup=1, weight_decay=0.1, clip=0.5)


def make_trainer(solver=None, **train):
    solver = solver or build_small()
    c = solver.config
    stream = TargetStream(solver.task, solver.task.split("train"), c.train.batch, c.seed)
    settings = {**vars(c.train), **train}
    return Trainer(solver.model, solver.guide, stream, TrainConfig(**settings), OPTIM, BetaConfig(), c.seed)


def weights(trainer):
    return [p.detach().clone() for m in (trainer.model, trainer.guide) for p in m.parameters()]


def test_svi_step_equals_elbo_module_step():
    """The same update through SVI and TorchOptim, and through an ELBOModule and bare torch."""
    one, two = build_case(), build_case()
    for case in (two,):
        case.solver.model.load_state_dict(one.solver.model.state_dict())
        case.solver.guide.load_state_dict(one.solver.guide.state_dict())
    model, guide = one.solver.model, one.solver.guide
    svi = SVI(model, guide, TorchOptim({"model": model, "guide": guide}, OPTIM), make_elbo("balanced"))
    pyro.set_rng_seed(4)
    svi.step(one.x, one.y)

    module = make_elbo("balanced")(two.solver.model, two.solver.guide)
    assert isinstance(module, ELBOModule)
    parameters = [p for m in (two.solver.model, two.solver.guide) for p in m.parameters()]
    adam = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    pyro.set_rng_seed(4)
    module(two.x, two.y).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    adam.step()
    trained = [p for m in (model, guide) for p in m.parameters()]
    for a, b in zip(trained, parameters, strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_makes_one_update_a_supervision_step_and_hands_the_state_on():
    trainer = make_trainer(supervision_steps=3)
    seen = []
    step = trainer.svi.step

    def spy(x, y, state, **kwargs):
        seen.append(state)
        return step(x, y, state, **kwargs)

    trainer.svi.step = spy
    next(trainer.run())
    assert trainer.optim.update == 3
    assert seen[0] is None
    assert all(s is not None and not s.h.requires_grad for s in seen[1:])
    assert not torch.equal(seen[1].h, seen[2].h)


def test_training_lowers_the_loss():
    trainer = make_trainer(batches=60)
    losses = [report.loss for report in trainer.run()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_training_is_reproducible_and_untouched_by_what_happens_between_batches():
    a, b = make_trainer(build_small()), make_trainer(build_small())
    b.model.load_state_dict(a.model.state_dict())
    b.guide.load_state_dict(a.guide.state_dict())
    for _ in a.run():
        pass
    for _ in b.run():
        torch.randn(7)  # somebody else's draws
    for p, q in zip(weights(a), weights(b), strict=True):
        assert torch.equal(p, q)


def test_memory_does_not_grow_with_the_number_of_supervision_steps():
    def live(steps):
        trainer = make_trainer(supervision_steps=steps, batches=2)
        for _ in trainer.run():
            pass
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    live(2)
    assert abs(live(32) - live(2)) <= 5


def test_the_carried_state_holds_no_graph():
    trainer = make_trainer()
    next(trainer.run())
    assert trainer.elbo.terms.state.h.grad_fn is None


def test_evaluation_weights_are_the_running_average_with_a_warm_start():
    trainer = make_trainer(ema=0.9, batches=1, supervision_steps=1)
    start = weights(trainer)
    next(trainer.run())
    end, (model, guide) = weights(trainer), trainer.averaged
    averaged = [p for m in (model, guide) for p in m.parameters()]
    assert guide.model is model
    for s, e, a in zip(start, end, averaged, strict=True):
        assert not torch.equal(s, e)
        torch.testing.assert_close(a, e)  # the first update starts the average


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch():
    trainer = make_trainer()
    next(trainer.run())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(DivergedError, match="in batch 1, step 0") as e:
        next(trainer.run())
    assert (e.value.update.batch, e.value.update.step, e.value.update.on_policy) == (1, 0, False)


@pytest.mark.parametrize("ruin", ["gradient", "loss"])
def test_an_update_that_would_ruin_the_run_is_not_made(ruin, monkeypatch):
    trainer = make_trainer()
    run = trainer.run()
    next(run)
    update = trainer.optim.update

    def ruined(*_):
        return dataclasses.replace(told(*_), **({"gradient_norm": math.inf} if ruin == "gradient" else {"loss": 1e7}))

    told = trainer._told
    monkeypatch.setattr(trainer, "_told", ruined)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(DivergedError, match="norm became inf" if ruin == "gradient" else "exploded to 1e[+]07 nats"):
        next(run)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert trainer.optim.update == update
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_loss_that_falls_or_only_doubles_is_none_that_explodes():
    guard = Guard()
    update = Update(0, 0, False, 0.0, 0.0, 0.0, 1.0, 1e-3, 1.0, None)
    for loss in (500.0, 3.0, 1200.0, 0.01, -2.0, 30.0):
        guard.check(dataclasses.replace(update, loss=loss))
    assert guard.usual is not None
    with pytest.raises(DivergedError, match="exploded"):
        guard.check(dataclasses.replace(update, loss=1e3 * guard.usual * 1.1))


def test_minutes_end_a_run():
    trainer = make_trainer(batches=0, minutes=0.01)
    assert len(list(trainer.run())) >= 1
    assert trainer.elapsed >= 0.6


def test_optimizer_refuses_a_parameter_it_would_leave_untrained():
    case = build_case()
    optim = TorchOptim({"model": case.solver.model}, OPTIM)
    svi = SVI(case.solver.model, case.solver.guide, optim, make_elbo("balanced"))
    with pytest.raises(ConfigError, match="belong to no module"):
        svi.step(case.x, case.y)


def test_optimizer_clips_the_global_norm():
    layer = torch.nn.Linear(4, 4)
    optim = TorchOptim({"layer": layer}, OptimConfig(lr=1.0, clip=1e-3, warmup=1))
    (1e6 * layer(torch.ones(4)).sum()).backward()
    seen = []
    (adamw,) = optim.optimizers
    adamw.register_step_pre_hook(lambda *_: seen.extend(p.grad.flatten().clone() for p in layer.parameters()))
    optim(list(layer.parameters()))
    assert torch.cat(seen).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert all(p.grad is None for p in layer.parameters())


def test_learning_rate_warms_up_and_falls():
    config = OptimConfig(lr=1.0, warmup=10, min_lr_ratio=0.1)
    assert config.rate(0, 0.0) == pytest.approx(0.1)
    assert config.rate(9, 0.009) == pytest.approx(1.0, abs=1e-3)
    assert config.rate(100, 1.0) == pytest.approx(0.1)
    assert OptimConfig(lr=1.0, warmup=1).rate(99, 0.99) == 1.0


@pytest.mark.parametrize("length", [{"batches": 6}, {"batches": 0, "minutes": 0.02}])
def test_the_schedule_follows_the_batches_or_where_only_it_ends_the_run_the_clock(length, monkeypatch):
    clock = itertools.count()  # of a machine on which every look at it takes a fiftieth of a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 50)
    trainer = make_trainer(**length)
    seen = []
    for _ in trainer.run():
        seen.append(trainer.optim.done)
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.9
    assert seen[-1] > 0.8


@pytest.mark.parametrize("length", [{"batches": 3}, {"batches": 0, "minutes": 0.01}])
def test_the_last_batch_of_a_run_says_so_whoever_used_up_the_clock(length):
    """Between two batches the caller looks and saves; a clock that runs out there still leaves a last batch."""
    trainer = make_trainer(**length)
    seen = []
    for report in trainer.run():
        seen.append(report.last)
        if length["batches"] != 3:
            time.sleep(0.3)
    assert seen == [False] * (len(seen) - 1) + [True]
    assert list(trainer.run()) == []


def test_beta_waits_for_the_constraint_then_rises_and_never_falls_below_its_start():
    beta = BetaController(BetaConfig(start=1.0, target=0.3, smoothing=0.0))
    for _ in range(5):
        beta.update(3.0)
    assert beta.value == 1.0
    for _ in range(10):
        beta.update(0.1)
    assert beta.value == pytest.approx(1.02**10)
    beta.update(0.5)
    assert beta.value == pytest.approx(1.02**10 * 0.97)


def test_beta_is_kept_high_in_the_quiet_part_and_starts_at_its_start_after_it():
    trainer = make_trainer(batches=10)
    config = BetaConfig(start=1.0, target=1e6, smoothing=0.0, max=9.0, silent_fraction=0.4)
    trainer.beta = BetaController(config)
    seen = [report.beta for report in trainer.run()]
    assert seen == [9.0] * 4 + [pytest.approx(1.02**n) for n in range(6)]


def test_reconstructions_of_the_quiet_part_do_not_count():
    beta = BetaController(BetaConfig(target=0.3, smoothing=0.9, silent_fraction=0.5))
    beta.begin(0.2)
    beta.update(50.0)
    beta.begin(0.6)
    beta.update(0.1)
    assert beta.mean == 0.1
    assert beta.value == pytest.approx(1.02)


def test_what_would_not_quiet_a_guide_is_refused():
    with pytest.raises(ConfigError, match="beta.max = 20 silences nothing below beta.start = 50"):
        BetaConfig(start=50.0, silent_fraction=0.1)
    BetaConfig(start=50.0)


def test_a_target_of_zero_keeps_beta_constant():
    beta = BetaController(BetaConfig(start=0.5, target=0.0))
    beta.update(0.0)
    assert beta.value == 0.5


@pytest.mark.parametrize("elbo", ["balanced", "mean_field", "trace"])
@pytest.mark.parametrize("guide", ["amortized", "replay"])
def test_every_bound_trains_with_every_guide(elbo, guide):
    solver = build_small(guide_name=guide)
    reports = list(make_trainer(solver, elbo=elbo, batches=2).run())
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
def test_bad_train_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_puzzle_embeddings_have_a_rate_and_a_decay_of_their_own():
    case = build_case(task_name="arc", optim={"lr": 1e-3, "embedding_lr": 0.1, "embedding_decay": 0.5, "warmup": 1})
    model, guide = case.solver.model, case.solver.guide
    config = case.solver.config.optim
    optim = TorchOptim({"model": model, "guide": guide}, config)
    main, embeddings = optim.groups
    (embedding,) = embeddings["params"]
    assert embedding is model.encoder.puzzle_embedding
    assert all(p is not embedding for p in main["params"])
    assert embeddings["weight_decay"] == 0.5
    before = embedding.detach().clone()
    SVI(model, guide, optim, Trace_ELBO()).step(case.x, case.y)
    assert (main["lr"], embeddings["lr"]) == pytest.approx((1e-3, 0.1))
    seen = case.x[:, 0].unique()
    step = (embedding - before * (1 - 0.1 * 0.5)).abs()
    assert step[seen].amax().item() == pytest.approx(0.1, rel=1e-2)  # Adam's first step is its rate
    optim.set_state({key: value.clone() for key, value in optim.get_state().items()})
    assert len(optim.get_state()) == 1 + 3 * len(optim.named)


def test_without_a_rate_of_their_own_embeddings_take_the_common_one():
    case = build_case(task_name="arc", optim={"lr": 1e-3, "warmup": 1})
    optim = TorchOptim({"model": case.solver.model}, case.solver.config.optim)
    case.solver.model(case.x, case.y).sum()
    optim(case.solver.model.parameters())
    assert {group["lr"] for group in optim.groups} == {1e-3}


def test_muon_trains_the_hidden_matrices_and_adamw_the_rest():
    case = build_case(optim={"hidden_optimizer": "muon", "lr": 1e-2, "weight_decay": 0.0, "warmup": 1})
    model, guide = case.solver.model, case.solver.guide
    modules = {"model": model, "guide": guide}
    optim = TorchOptim(modules, case.solver.config.optim)
    matrices = hidden_matrices(modules)
    assert {"model.core.f_L.0.mixer.qkv.weight", "model.prior.head.mlp.down.weight"} <= set(matrices)
    assert not [name for name in matrices if "coder" in name or "answer" in name or "embedding" in name]
    held = [p for group in optim.groups for p in group["params"]]
    assert len(held) == len(optim.named)
    before = {name: p.detach().clone() for name, p in optim.named.items()}
    SVI(model, guide, optim, Trace_ELBO()).step(case.x, case.y)
    name = "model.core.f_H.0.channels.gate_up.weight"
    change = optim.named[name].detach() - before[name]
    # An orthogonal matrix of a x b, scaled to the size of AdamW's updates: 0.2 lr sqrt(max(a, b)) in every direction.
    scale = 0.2 * 1e-2 * max(change.shape) ** 0.5
    singular = torch.linalg.svdvals(change) / scale
    assert 0.5 < singular.median() < 1.3
    assert singular.max() < 1.4
    head = optim.named["model.decoder.head.weight"].detach() - before["model.decoder.head.weight"]
    assert head.abs().median().item() == pytest.approx(1e-2, rel=1e-2)  # Adam's first step is its rate


def test_a_damaged_state_of_muon_is_named():
    case = build_case(optim={"hidden_optimizer": "muon"})
    optim = TorchOptim({"model": case.solver.model, "guide": case.solver.guide}, case.solver.config.optim)
    SVI(case.solver.model, case.solver.guide, optim, Trace_ELBO()).step(case.x, case.y)
    state = optim.get_state()
    name = next(key for key in state if key.endswith("/momentum_buffer"))
    adam = next(key for key in state if key.endswith("/exp_avg"))
    for damaged in (
        {**state, name: state[name][:1]},
        {**state, "model.nothing/momentum_buffer": state[name]},
        {**state, f"{name.rpartition('/')[0]}/exp_avg": state[name]},
        {key: value for key, value in state.items() if key != adam},
    ):
        with pytest.raises(KeyError):
            optim.set_state(damaged)


def test_an_unknown_optimizer_of_matrices_is_named():
    with pytest.raises(ConfigError, match="unknown matrices 'sgd'"):
        OptimConfig(hidden_optimizer="sgd")
