"""Models, priors and guides state their traits, or have the defaults. The examples in the contract's docstrings run."""

import doctest

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_gram.errors import ConfigError
from pyro_gram.inference import contract
from pyro_gram.inference.contract import (
    GuideTraits,
    ModelSizes,
    ModelTraits,
    PriorTraits,
    guide_traits,
    model_sizes,
    model_traits,
    prior_of,
    prior_traits,
)


def test_the_smallest_model_prior_and_guide_run():
    result = doctest.testmod(contract)
    assert result.attempted >= 12
    assert result.failed == 0


@pytest.mark.parametrize(
    ("read", "kind"), [(model_traits, ModelTraits), (prior_traits, PriorTraits), (guide_traits, GuideTraits)]
)
def test_a_part_without_traits_has_the_defaults_and_wrong_traits_are_named(read, kind):
    class Part(nn.Module):
        pass

    assert read(Part()) == read(Part) == read(lambda u: u) == kind()
    Part.traits = traits = kind()
    assert read(Part()) is read(Part) is traits
    assert read(poutine.block(Part())) is traits or kind is PriorTraits
    Part.traits = {"is_one_step": True}
    with pytest.raises(ConfigError, match=f"Part.traits must be a {kind.__name__}"):
        read(Part())


def test_a_misspelt_trait_is_an_error():
    with pytest.raises(TypeError, match="one_step"):
        ModelTraits(one_step=True)


def test_the_prior_of_a_model_is_found_behind_handlers():
    model = nn.Module()
    model.prior = prior = nn.Identity()
    assert prior_of(poutine.scale(model, 2.0)) is prior
    assert prior_of(torch.nn.Identity()) is None


def test_a_config_may_leave_out_all_sizes_but_the_width():
    class Config:
        width = 8
        transitions = 3

    assert model_sizes(Config()) == ModelSizes(width=8, transitions=3)
    with pytest.raises(ConfigError, match="must have a field 'width', and object has none"):
        model_sizes(object())
