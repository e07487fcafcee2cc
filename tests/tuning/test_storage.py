"""Optuna's file where the study's directory is not on a local disk."""

from __future__ import annotations

import optuna
import pytest

from braintum.tuning.storage import OptunaFile


@pytest.mark.s3
def test_a_study_is_found_again_on_s3(s3: str) -> None:
    url = f"{s3}/optuna/optuna.db"
    with OptunaFile(url) as file:
        study = optuna.create_study(storage=file.storage, study_name="unet", direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=3)
        assert file.safe()
        with OptunaFile(url) as seen_by_another:
            copy = optuna.load_study(storage=seen_by_another.storage, study_name="unet")
            assert len(copy.trials) == 3, "before the first driver ends"
        study.optimize(lambda trial: 1.0, n_trials=1)
        best = study.best_trial
    with OptunaFile(url) as file:
        assert optuna.load_study(storage=file.storage, study_name="unet").best_trial == best
