"""When a run is stopped before the update that would ruin it."""

from dataclasses import replace

import pytest

from pyro_gram.training.divergence import DivergedError, Guard, Update

PLAIN = Update(3, 1, False, 2.0, 1.5, 0.5, 1.0, 1e-3, 1.0, None)


def test_the_usual_loss_is_a_running_mean_of_sizes():
    guard = Guard()
    guard.check(PLAIN)
    assert guard.usual == 2.0
    guard.check(replace(PLAIN, loss=-12.0))
    assert guard.usual == pytest.approx(0.98 * 2 + 0.02 * 12)


@pytest.mark.parametrize(("usual", "limit"), [(0.001, 1000.0), (5.0, 5000.0)])
def test_a_thousand_times_the_usual_and_at_least_a_thousand_nats_is_an_explosion(usual, limit):
    for loss, refused in ((limit, False), (limit * 1.01, True), (-limit * 1.01, True)):
        guard = Guard()
        guard.check(replace(PLAIN, loss=1e9))  # the first is usual, whatever it is
        guard.usual = usual
        if refused:
            with pytest.raises(DivergedError, match="exploded"):
                guard.check(replace(PLAIN, loss=loss))
            assert guard.usual == usual
        else:
            guard.check(replace(PLAIN, loss=loss))


@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_told_where(field, value):
    for on_policy, where in ((False, r"in batch 3, step 1$"), (True, r"step 1 of the on-policy part$")):
        update = replace(PLAIN, on_policy=on_policy, **{field: value})
        with pytest.raises(DivergedError, match=where) as e:
            Guard().check(update)
        assert e.value.update is update
        assert update.to_dict() == {**PLAIN.to_dict(), "on_policy": on_policy, field: str(value)}
