"""How much each searched parameter mattered: PED-ANOVA, through Optuna."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from braintum.tuning.records import own_trials

LEAST_TRIALS = 8
RESAMPLES = 30


def importances(studies: dict[str, Study]) -> dict[str, dict[str, Any]]:
    """By study: `trials`, `best` (their number) and `parameters`, {path: {`importance`, `low`, `high`}}.

    Importances add up to 1: how much a parameter's values among the best trials differ from those among all (PED-ANOVA,
    which knows conditional parameters). Trials that were stopped early count, below all that got further; failed ones
    do not. `low`, `high`: the middle 80 % over trials drawn again with replacement. A study of one parameter, or of
    fewer than LEAST_TRIALS trials, is left out.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = {}
    for name, study in studies.items():
        ranked = _ranked(study)
        paths = sorted({path for trial in ranked for path in trial.params})
        if len(ranked) < LEAST_TRIALS or len(paths) < 2:
            continue
        share = min(0.5, max(0.25, 5 / len(ranked)))  # the best quarter, five trials at least
        random = np.random.default_rng(0)
        drawn = [random.integers(len(ranked), size=len(ranked)) for _ in range(RESAMPLES)]
        again = [_importances([ranked[i] for i in sorted(rows)], share) for rows in drawn]
        parameters = {}
        for path, importance in _importances(ranked, share).items():
            low, high = np.quantile([values.get(path, 0.0) for values in again], [0.1, 0.9])
            parameters[path] = {"importance": importance, "low": float(low), "high": float(high)}
        found[name] = {"trials": len(ranked), "best": math.ceil(share * len(ranked)), "parameters": parameters}
    return found


def _ranked(study: Study) -> list[FrozenTrial]:
    """The trials that ended with a selection score, the best first: finished, then by how far they got, then by it."""
    ended = own_trials(study, TrialState.COMPLETE, TrialState.PRUNED)

    def standing(trial: FrozenTrial) -> tuple[bool, int, float]:
        assert trial.value is not None
        complete = trial.state is TrialState.COMPLETE
        return complete, 0 if complete else max(trial.intermediate_values), trial.value

    return sorted((trial for trial in ended if trial.value is not None), key=standing, reverse=True)


def _importances(ranked: list[FrozenTrial], share: float) -> dict[str, float]:
    study = optuna.create_study()
    study.add_trials(
        [create_trial(value=i, params=t.params, distributions=t.distributions) for i, t in enumerate(ranked)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that few trials have, as in a draw
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share))
