"""How a study begins: what it is, where its trials are kept, and what its Optuna studies begin with."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.study import Study

from braintum import storage
from braintum.settings import ConfigError
from braintum.training.run import recorded, refuse_another
from braintum.tuning.location import Location, Store, location_of
from braintum.tuning.records import RECORD, SPEC, WARM_START, own_trials
from braintum.tuning.space import SearchSpace
from braintum.tuning.warm_start import WarmStart, url_of, warm_start


def record(space: SearchSpace, data_url: str, data_digest: str, location: Location, **more: Any) -> dict[str, Any]:
    """What study.json says: a study is resumed only with the same. Of a plain one the last three are None."""
    settings = {"space": space.settings(), "digest": space.digest}
    data, kept = {"url": data_url, "digest": data_digest}, {"storage": location.shown}
    return {**settings, "data": data, **kept, "nested": None, "outer": None, "warm_start": None, **more}


def begin(
    space: SearchSpace, data_url: str, data_digest: str, out: str, location: Location, given: str | None
) -> tuple[dict[str, Any], WarmStart | None]:
    """What a study is and, where it has not begun, what it takes from another one; `given`: `--warm-start`.

    A study that is resumed is as it was begun. Raises as `refuse_another_study` does, and where nothing can be taken.
    """
    found = recorded(out, RECORD)
    if given is None and found is not None:
        given = found.get("warm_start")
    about = record(space, data_url, data_digest, location, warm_start=given and url_of(given))
    refuse_another_study(location, out, about)
    if given is None or (found is not None and _have_begun(space, location)):
        return about, None
    return about, warm_start(given, space, about)


def location_at(kept_at: str | None, out: str) -> Location:
    """Where the trials of a study are, or will be. Raises ConfigError for what cannot name a storage."""
    return location_of(out) if kept_at is None else Location.of(kept_at, out)


def refuse_another_study(location: Location, out: str, about: dict[str, Any]) -> None:
    """Raises ConfigError, with what differs, where `out` or the storage holds anything but what `record` tells of.

    Also where the storage cannot be reached. All this can be known before a cluster is joined, but for which folds a
    nested study leaves out.
    """
    found = recorded(out, RECORD)
    if found is not None:
        whether = [{**of, "nested": of.get("nested") is not None} for of in (found, about)]
        refuse_another(storage.join(out, RECORD), *whether)
    for name, was in location.found().items():
        if was and was.get("outer") is None:  # one that was stopped before it had begun says nothing
            refuse_another(f"{location.shown}: study {name}", was, about)
        if found is None:
            raise ConfigError(
                f"{location.shown}: holds study {name}, whose directory is not there; choose another --out, or "
                "remove it with `optuna delete-study`"
            )


def open_studies(
    space: SearchSpace, location: Location, store: Store, about: dict[str, Any], warm: WarmStart | None
) -> dict[str, Study]:
    """The Optuna studies by name; a new one's first trials are what it is taught, and the base's own settings."""
    studies = {}
    for name in space.shares():
        studies[name] = study = optuna.create_study(
            storage=store.storage, study_name=location.name(name), direction="maximize", load_if_exists=True
        )
        if not _is_begun(study):
            known = [trial.user_attrs.get(WARM_START) for trial in study.trials]
            lessons = warm.trials[name] if warm else []
            study.add_trials([trial for trial in lessons if trial.user_attrs[WARM_START] not in known])
            for architecture in (list(space.architectures) if space.joint else [name])[len(own_trials(study)) :]:
                study.enqueue_trial(space.defaults(architecture))
            study.set_user_attr(RECORD, about)
    return studies


def _is_begun(study: Study) -> bool:
    """Whether a study has all that it begins with."""
    return RECORD in study.user_attrs or any(SPEC in trial.user_attrs for trial in study.trials)


def _have_begun(space: SearchSpace, location: Location) -> bool:
    try:
        with location.studies() as studies:
            return all(name in studies and _is_begun(studies[name]) for name in space.shares())
    except FileNotFoundError:
        return False
