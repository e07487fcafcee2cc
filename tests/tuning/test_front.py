"""Pareto fronts of trials' records, and the trial that is chosen on them."""

from __future__ import annotations

import json

from braintum.tuning.front import pareto
from braintum.tuning.records import Records, metrics_of


def test_the_pareto_front_is_of_the_epochs_that_were_kept() -> None:
    states = ["complete", "complete", "complete", "pruned", "complete"]
    scores = [(0.5, 0.6), (0.6, 0.5), (0.5, 0.5), (0.9, 0.9), (0.6, 0.5)]  # dice, accuracy
    trials: Records = []
    for number, (state, (dice, accuracy)) in enumerate(zip(states, scores, strict=True)):
        for name, metrics in (
            ("unet", {"selection_dice": dice}),
            ("joint_unet", {"selection_dice": dice, "selection_accuracy": accuracy}),
        ):
            rows: Records = []
            for fold, gain in (("1", 0.1), ("2", -0.1)):
                kept = {metric: value + gain for metric, value in metrics.items()}
                rows += [
                    {"fold": fold, "epoch_in_fold": 1, "kept_epoch": 1, **dict.fromkeys(metrics, 0.0)},
                    {"fold": fold, "epoch_in_fold": 2, "kept_epoch": 2, **kept},
                    {"fold": fold, "epoch_in_fold": 3, "kept_epoch": 2, **dict.fromkeys(metrics, 1.0)},
                ]
            means = json.dumps(metrics_of(rows) if state == "complete" else {})
            trials.append({"architecture": name, "number": number, "state": state, "metrics": means})
    fronts = pareto(["dice", "accuracy"], trials)
    assert list(fronts) == ["joint_unet"]
    assert [point["chosen"] for point in fronts["joint_unet"]] == [True, False, False], "equally near: the first"
    found = [(point["trial"], round(point["dice"], 6), round(point["accuracy"], 6)) for point in fronts["joint_unet"]]
    assert found == [(0, 0.5, 0.6), (1, 0.6, 0.5), (4, 0.6, 0.5)]


def test_costs_are_better_the_smaller_and_the_knee_is_chosen() -> None:
    points = [(0.80, 0.100, 1_000), (0.78, 0.020, 300), (0.40, 0.019, 200), (0.77, 0.020, 300), (0.2, 0.2, 9_000)]
    trials: Records = []
    for number, (dice, latency, parameters) in enumerate(points):
        rows: Records = [
            {"fold": fold, "epoch_in_fold": 1, "kept_epoch": 1, "selection_dice": dice, **costs}
            for fold, costs in (("1", {}), ("2", {"latency": latency, "parameters": parameters}))
        ]
        metrics = json.dumps(metrics_of(rows))
        trials.append({"architecture": "unet", "number": number, "state": "complete", "metrics": metrics})
    front = pareto(["dice", "latency", "parameters"], trials)["unet"]
    assert [point["trial"] for point in front] == [0, 1, 2], "3 is worse than 1, 4 than all"
    assert [point["chosen"] for point in front] == [False, True, False]
    assert front[1] == {"trial": 1, "dice": 0.78, "latency": 0.02, "parameters": 300, "chosen": True}
