"""signcore's schedules as Keras', which ask for the number of batches and are saved with the optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from signcore import checks, schedules

_KNOWN = {
    name: value
    for name, value in vars(schedules).items()
    if isinstance(value, type) and issubclass(value, schedules.Schedule) and dataclasses.is_dataclass(value)
}


@keras.saving.register_keras_serializable(package="signcore")
class FromSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras has no types
    """A schedule of `signcore.schedules` as one of Keras.

    Parameters
    ----------
    schedule : signcore.schedules.Schedule, or dict
        Or what `get_config` made of one.

    Raises
    ------
    TypeError, ValueError
        `schedule` is neither, or names a schedule that signcore does not have.

    Notes
    -----
    Keras counts the batches, also those that accumulate gradients or that ``nonfinite="skip"`` skips, and asks its
    schedules with that count.

    Examples
    --------
    >>> import signcore as sc
    >>> float(FromSchedule(sc.schedules.inverse_sqrt(1.0))(3))
    0.5
    """

    def __init__(self, schedule: Any) -> None:
        schedule = _built(schedule)
        if not isinstance(schedule, schedules.Schedule):
            raise TypeError(f"`schedule` is {schedule!r}; pass one of signcore.schedules")
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        """The rate of a batch: of Keras' counter, or of an int."""
        step = keras.ops.convert_to_tensor(step, "int32")
        return self.schedule(step, "float64" if keras.config.floatx() == "float64" else "float32")

    def get_config(self) -> dict[str, Any]:
        """Name and fields of the schedule.

        Raises
        ------
        TypeError
            The schedule is none of signcore's own.
        """
        return {"schedule": _described(self.schedule)}


def _described(value: Any) -> Any:
    """A schedule as a dict of its name and fields, of which some may be schedules; anything else as it is."""
    if not isinstance(value, schedules.Schedule):
        return value
    name = type(value).__name__
    if _KNOWN.get(name) is not type(value):
        raise TypeError(
            f"the schedule {value!r} is none of signcore.schedules and cannot be saved; write it as a "
            f"keras.optimizers.schedules.LearningRateSchedule with a get_config of its own"
        )
    own: Any = value  # a dataclass, since it is known
    fields = {field.name: _described(getattr(own, field.name)) for field in dataclasses.fields(own)}
    return {"name": name, "fields": fields}


def _built(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    checks.known("schedule", value.get("name"), _KNOWN)
    return _KNOWN[value["name"]](**{name: _built(each) for name, each in value["fields"].items()})
