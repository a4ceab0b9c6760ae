"""What a config names to make the samples, by the rules for what builds the network: found first, then imported."""

import inspect
from collections.abc import Mapping
from typing import Any

from ray_ft.data.objects import as_array
from ray_ft.data.ragged import take_inputs
from ray_ft.data.samples import Arrays
from ray_ft.errors import ConfigError, DataError, first_few, show_value, suggest
from ray_ft.models.factory import import_code, is_own, seed_all

KEY = "data.factory"
MAKERS = "a function of your own code, which is neither Python's nor that of an installed package"
KEYS = ("inputs", "targets", "groups", "stratify")


def call_data_factory(factory: str, params: Mapping[str, Any], by_sample: bool = False) -> Arrays:
    """Call what makes the samples: inputs and targets, or a mapping of these and of groups and stratify.

    Where it is told so, inputs are a list of samples.

    Raises:
        ConfigError: It cannot be imported, is no function of the user's own, or does not take `params`.
        DataError: It returns something else.
    """
    make = import_code(factory, KEY, MAKERS)
    if not (callable(make) and is_own(make)):
        raise ConfigError(f"{KEY} must be {MAKERS}; got {factory}, which was not called")
    try:
        inspect.signature(make).bind(**params)
    except (TypeError, ValueError) as error:
        given = show_value(dict(params))
        raise ConfigError(f"data.params must be keyword arguments of {factory}, got {given}: {error}") from error
    with seed_all():  # what is drawn is the same whenever a run goes on
        made = make(**params)
    if isinstance(made, tuple | list) and len(made) == 2:
        made = dict(zip(KEYS, made, strict=False))
    if not (isinstance(made, Mapping) and all(made.get(key) is not None for key in KEYS[:2])):
        rule = f"{KEY} must return inputs and targets, or a dict of {', '.join(KEYS)}"
        raise DataError(f"{rule}, got {type(made).__name__} from {factory}")
    if unknown := [str(key) for key in made if key not in KEYS]:
        near = suggest(unknown[0], KEYS)
        raise DataError(f"{KEY} must return {', '.join(KEYS)}, got {first_few(unknown)} from {factory}{near}")
    inputs, layout = take_inputs(made["inputs"], f"inputs from {factory}", by_sample)
    arrays = {key: as_array(made[key], f"{key} from {factory}") for key in KEYS[1:] if made.get(key) is not None}
    return Arrays(inputs, arrays["targets"], arrays.get("groups"), arrays.get("stratify"), layout=layout)
