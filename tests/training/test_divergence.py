"""A run is stopped before an update that would ruin it."""

from dataclasses import replace

import pytest

from pyro_gram.training.divergence import DivergedError, DivergenceCheck, UpdateRecord

RECORD = UpdateRecord(3, 1, False, 2.0, 1.5, 0.5, 1.0, 1e-3, 1.0, None)


def test_the_usual_loss_is_a_running_mean_of_absolute_losses():
    divergence = DivergenceCheck()
    divergence.check(RECORD)
    assert divergence.usual_loss == 2.0
    divergence.check(replace(RECORD, loss=-12.0))
    assert divergence.usual_loss == pytest.approx(0.98 * 2 + 0.02 * 12)
    loaded_check = DivergenceCheck()
    loaded_check.load_state_dict(divergence.state_dict())
    assert loaded_check.usual_loss == divergence.usual_loss
    with pytest.raises(ValueError, match="nan"):
        loaded_check.load_state_dict({"usual_loss": float("nan")})


@pytest.mark.parametrize(("usual_loss", "limit"), [(0.001, 1000.0), (5.0, 5000.0)])
def test_a_thousand_times_the_usual_and_at_least_a_thousand_nats_is_an_explosion(usual_loss, limit):
    for loss, is_refused in ((limit * 0.999, False), (limit * 1.001, True), (-limit * 1.001, True)):
        divergence = DivergenceCheck()
        divergence.check(replace(RECORD, loss=1e9))  # the first loss is accepted, whatever it is
        divergence.usual_loss = usual_loss
        if is_refused:
            with pytest.raises(DivergedError, match="exploded"):
                divergence.check(replace(RECORD, loss=loss))
            assert divergence.usual_loss == usual_loss
        else:
            divergence.check(replace(RECORD, loss=loss))


@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_place(field, value):
    for on_policy, place in ((False, r"in batch 3, step 1$"), (True, r"step 1 of the on-policy part$")):
        record = replace(RECORD, on_policy=on_policy, **{field: value})
        with pytest.raises(DivergedError, match=place) as e:
            DivergenceCheck().check(record)
        assert e.value.record is record
        assert record.to_dict() == {**RECORD.to_dict(), "on_policy": on_policy, field: str(value)}
