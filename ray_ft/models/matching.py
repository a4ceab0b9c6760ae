"""Which of a file's tensors are a network's: found by the names and shapes of the network, and nothing guessed.

A trainer puts its own before the names: where the state dict lies in the file (`state_dict.`), what holds the network
(`model.`), what wraps it (`module.`, `_orig_mod.`). Whatever it is, the network's names follow, each with its shape.
"""

import fnmatch
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ray_ft.errors import WeightsError, first_few, suggest
from ray_ft.models.checkpoints import StoredWeights

# Wrappers of a part of a network stand inside its names: of torch.compile, of FSDP, of DataParallel.
COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
WRAPPERS = (frozenset[str](), COMPILED, COMPILED | {"module"})
Shape = tuple[int, ...] | None  # None where a lazy module takes that of the file
COUNTER = "num_batches_tracked"  # of batch norm; torch before 0.4.1 had none
SKIP = "model.skip"  # the key whose patterns name what is not taken


@dataclass(frozen=True)
class Place:
    """A place in a file where a network's weights may lie.

    Attributes:
        before: What stands there before the network's names.
        wrappers: Which parts of the names there were left out.
        inner: What the network has before the names that are there.
        tensors: By the network's own names.
    """

    before: str
    wrappers: frozenset[str]
    inner: str
    tensors: Mapping[str, Tensor] = field(repr=False)

    def describe(self, stored: StoredWeights) -> Iterator[str]:
        """Say what was done to the names, and what else there is."""
        done = [f'"{self.before}" was stripped from the names'] if self.before else []
        done += [f'"{name}." was left out of them' for name in sorted(self.wrappers)]
        done += [f'"{self.inner}" was put before them'] if self.inner else []
        tops = [] if stored.key else [f"{name}." for name in stored.beside]
        others = [top[:-1] for top in tops if not top.startswith(self.before) and not self.before.startswith(top)]
        rest = f"; not used: {first_few(others)}" if others else ""
        if done:
            yield f"weights of {stored.place}: {', '.join(done)}{rest}"


def match_weights(
    network: nn.Module, stored: StoredWeights, skip: Collection[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Find a network's weights in a file.

    Args:
        network: As it is built.
        stored: The file.
        skip: Patterns of names that are not taken; in the network they keep the values that it has.

    Returns:
        A whole state dict of the network, and notes on what was done.

    Raises:
        WeightsError: Names or shapes differ, or several places of the file have all of them.
    """
    own = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    skipped = [name for name in own if matches(name, skip)]
    optional = {*skipped, *list_optional(own, stored)}
    wanted = {name: find_shape(tensor) for name, tensor in own.items() if name not in optional}
    places = [place for place in list_places(stored, wanted) if not list_misfits(place, wanted, own, skip)]
    place = choose_place(places, stored)
    if place is None:
        raise WeightsError(describe_misfit(find_nearest(stored, wanted), stored, wanted, own, skip))
    for pattern in skip:
        if not any(matches(name, [pattern]) for name in (*own, *place.tensors)):
            raise WeightsError(f"{SKIP}: {pattern} must match a name{suggest(pattern, own)}")
    left = [name for name in place.tensors if name not in own]
    notes = [*stored.notes, *place.describe(stored)]
    notes += [f"{SKIP}: {first_few(left)} of {stored.place} are not used"] if left else []
    notes += [f"{SKIP}: {first_few(skipped)} start as the network draws them"] if skipped else []
    weights = {name: tensor.detach() for name, tensor in own.items() if not is_lazy(tensor)}
    weights |= {name: tensor for name, tensor in place.tensors.items() if name in own and name not in skipped}
    return fill_ties(weights, own, place.tensors), notes


def find_shape(tensor: Tensor) -> Shape:
    return None if is_lazy(tensor) else tuple(tensor.shape)


def matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def list_optional(own: Mapping[str, Tensor], stored: StoredWeights) -> Iterator[str]:
    """List what a file need not have: all names but one of a tied tensor, and counters that older files lack."""
    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(id(tensor), []).append(name)
    for names in tied.values():
        there = [name for name in names if any(full.endswith(name) for full in stored.tensors)] if names[1:] else names
        yield from (name for name in names if name != (there or names)[0])
    if not any(full.endswith(COUNTER) for full in stored.tensors):
        yield from (name for name in own if name.endswith(COUNTER))


def fill_ties(weights: dict[str, Tensor], own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give all names of a tied tensor the value of one that was found."""
    values = {id(own[name]): tensor for name, tensor in weights.items() if name in found}
    return {name: values.get(id(own[name]), tensor) for name, tensor in weights.items()}


def list_places(stored: StoredWeights, wanted: Collection[str]) -> Iterator[Place]:
    """List the places that have all names; of the readings of the names, the first by which there are some."""
    for inner in list_inner(wanted):
        bare = [name.removeprefix(inner) for name in wanted]
        for wrappers in WRAPPERS:
            names = {unwrap(name, wrappers): name for name in stored.tensors}
            if len(names) < len(stored.tensors):  # two names would become one
                continue
            anchor = max(bare, key=len, default="")
            starts = [name.removesuffix(anchor) for name in names if f".{name}".endswith(f".{anchor}")]
            found = [start for start in starts if all(start + name in names for name in bare)]
            if found:
                yield from (take_place(stored, names, start, wrappers, inner) for start in found)
                return


def take_place(
    stored: StoredWeights, names: Mapping[str, str], before: str, wrappers: frozenset[str], inner: str
) -> Place:
    own = {name: full for name, full in names.items() if name.startswith(before)}
    used = frozenset(part for full in own.values() for part in full.split(".") if part in wrappers)
    tensors = {inner + name.removeprefix(before): stored.tensors[full] for name, full in own.items()}
    return Place(before, used, inner, tensors)


def list_inner(wanted: Collection[str]) -> Iterator[str]:
    """List what may stand before all of a network's names, as a module of the user's own wraps it; first nothing."""
    inner = ""
    while True:
        yield inner
        heads = {name.removeprefix(inner).partition(".")[0] for name in wanted}
        if len(heads) != 1 or any("." not in name.removeprefix(inner) for name in wanted):
            return
        inner += f"{heads.pop()}."


def unwrap(name: str, wrappers: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers) if wrappers else name


def choose_place(places: list[Place], stored: StoredWeights) -> Place | None:
    """Take the only place; of several that differ in their values, the one that the key names."""
    exact = [place for place in places if place.before == f"{stored.key}."] or places
    different = [place for i, place in enumerate(exact) if not any(are_equal(place, other) for other in exact[:i])]
    if len(different) > 1:
        choices = [f"{stored.place}::{place.before.rstrip('.')}" for place in different if place.before]
        bare = "" if len(choices) == len(different) else ", beside those at its top"
        raise WeightsError(
            f"{stored.place} must have one set of weights that fits the network, got {len(different)}{bare}; choose by "
            f"model.checkpoint: {' or '.join(choices)}"
        )
    return different[0] if different else None


def are_equal(one: Place, other: Place) -> bool:
    if one.tensors.keys() != other.tensors.keys():
        return False
    pairs = ((tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    return all(first.dtype == second.dtype and first.equal(second) for first, second in pairs)


def find_nearest(stored: StoredWeights, wanted: Collection[str]) -> Place:
    """Find the place with most of the names."""
    best: tuple[int, Place] | None = None
    for inner in list_inner(wanted):
        bare = {name.removeprefix(inner) for name in wanted}
        for wrappers in WRAPPERS:
            names = {unwrap(name, wrappers): name for name in stored.tensors}
            starts = Counter(start for name in names for start, end in list_ends(name) if end in bare)
            start, n_found = max(starts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
            if best is None or n_found > best[0]:
                best = n_found, take_place(stored, names, start, wrappers, inner)
    assert best is not None
    return best[1]


def list_ends(name: str) -> Iterator[tuple[str, str]]:
    """Cut a dotted name in two at each place."""
    parts = name.split(".")
    for i in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:i]), ".".join(parts[i:])


def list_misfits(
    place: Place, wanted: Mapping[str, Shape], own: Collection[str], skip: Collection[str]
) -> dict[str, dict[str, str]]:
    """List by what is wrong the names of which it is so, and in words."""
    shapes = {name: tuple(tensor.shape) for name, tensor in place.tensors.items()}
    lacking = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in own and not matches(name, skip)]
    differing = {name: shapes[name] for name in wanted if shapes.get(name, wanted[name]) != wanted[name] is not None}
    found = {
        "the checkpoint lacks": {name: name for name in lacking},
        "the network lacks": {name: name for name in unexpected},
        "shapes differ (checkpoint for network)": {
            name: f"{name} {shape} for {wanted[name]}" for name, shape in differing.items()
        },
    }
    return {what: names for what, names in found.items() if names}


def describe_misfit(
    place: Place,
    stored: StoredWeights,
    wanted: Mapping[str, Shape],
    own: Collection[str],
    skip: Collection[str],
) -> str:
    """Name what does not fit, and what can be done about it."""
    misfits = list_misfits(place, wanted, own, skip)
    where = f" (under {place.before.rstrip('.')})" if place.before else ""
    lines = [f"  {what}: {first_few(sorted(names.values()))}" for what, names in misfits.items()]
    bad = [name for names in misfits.values() for name in names]
    text = "\n".join([f"names and shapes of checkpoint and network must agree, but of {stored.place}{where}", *lines])
    if not any(name in place.tensors for name in wanted):
        tops = first_few(list(dict.fromkeys(name.split(".")[0] for name in stored.tensors)))
        return f"{text}\nit holds {tops}: is it the checkpoint of the network that model.factory builds?"
    if 2 * sum(name in bad for name in wanted) > len(wanted):  # to skip these is to start from chance
        return f"{text}\nmost of the network does not fit: build it in the checkpoint's sizes, by model.params"
    listed = ", ".join(
        f'"{pattern}"' for pattern in dict.fromkeys(widen(name, bad, (*wanted, *place.tensors)) for name in bad)
    )
    only = "the sizes of the rest agree: " if all("shapes" in what for what in misfits) else ""
    return f"{text}\n{only}to take all but these, as for a new head, set {SKIP}: [{listed}]; the network draws its own"


def widen(name: str, bad: Collection[str], names: Collection[str]) -> str:
    """Turn a name that does not fit into a pattern of all below its first part, where nothing there fits."""
    pattern = f"{name.partition('.')[0]}.*"
    return pattern if {own for own in names if matches(own, [pattern])} <= {*bad} and "." in name else name
