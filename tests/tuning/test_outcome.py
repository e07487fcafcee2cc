"""How much each searched parameter mattered."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from braintum.tuning.importance import importances


def searched(trials: int) -> optuna.Study:
    """One parameter decides, one does nothing, one exists for every second trial; the worse half is stopped early."""
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        width = (7 * number % trials) / trials
        params = {"decides": width, "idle": (5 * number % 3) / 3}
        distributions = {"decides": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}
        if number % 2:
            params["sometimes"] = "ab"[number % 4 // 2]
            distributions["sometimes"] = CategoricalDistribution(["a", "b"])
        pruned = width < 0.5
        study.add_trial(create_trial(
            params=params, distributions=distributions, value=width, intermediate_values={3 if pruned else 9: width},
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        ))  # fmt: skip
    return study


def test_importance_is_of_what_the_best_trials_have_in_common() -> None:
    study = searched(40)
    study.add_trial(create_trial(state=TrialState.FAIL))
    found = importances({"unet": study})["unet"]
    assert (found["trials"], found["best"]) == (40, 10)
    assert found["parameters"].keys() == {"decides", "idle", "sometimes"}
    assert sum(of["importance"] for of in found["parameters"].values()) == pytest.approx(1)
    assert found["parameters"]["decides"]["low"] > found["parameters"]["idle"]["high"]
    assert all(of["low"] <= of["high"] for of in found["parameters"].values())
    assert importances({"unet": study}) == {"unet": found}


def test_too_little_for_importance() -> None:
    alone = optuna.create_study(direction="maximize")
    alone.optimize(lambda trial: trial.suggest_float("lr", 0, 1), n_trials=20)
    assert importances({"few": searched(7), "alone": alone, "none": optuna.create_study()}) == {}
