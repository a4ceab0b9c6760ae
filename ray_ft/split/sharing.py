"""One backbone for the members of several strategies, and the programs of an ensemble as JSON.

Whatever two strategies both leave frozen is computed once, as the steps that their backbones have in common are kept
once. What one of them trains and the other does not (the decoder, for a strategy of the head alone) is computed with
the pretrained weights on the way, for those that read it there.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ray_ft.errors import first_line
from ray_ft.split.network import SplitNetwork
from ray_ft.split.program import Program, Step, read_program
from ray_ft.split.whole import WholeTail

Splits = Mapping[str, SplitNetwork]


def share_backbone(splits: Splits, example: Tensor) -> dict[str, SplitNetwork]:
    """Give the strategies of a network one backbone; none of them computes anything else than before.

    Args:
        splits: By strategy.
        example: Two or more different samples.
    """
    shared = replace_backbones(splits, merge=True)
    if len(splits) > 1 and not all(agree(shared[name], split, example) for name, split in splits.items()):
        return replace_backbones(splits, merge=False)  # one writes in place what another reads
    return shared


def replace_backbones(splits: Splits, merge: bool) -> dict[str, SplitNetwork]:
    backbone, outputs = join_programs([split.backbone for split in splits.values()], merge)
    axes: dict[int, int | None] = {}
    for split, own in zip(splits.values(), outputs, strict=True):
        axes |= dict(zip(own, (split.batch_axes[i] for i in split.reads), strict=True))
    tensors = {name: tensor for split in splits.values() for name, tensor in split.tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name in set(backbone.constants)}
    return {
        name: replace(
            split,
            tensors=split.tensors | tensors,
            backbone=backbone,
            batch_axes=tuple(axes[i] for i in sorted(axes)),
            reads=tuple(own),
        )
        for (name, split), own in zip(splits.items(), outputs, strict=True)
    }


def join_programs(programs: list[Program], merge: bool) -> tuple[Program, list[list[int]]]:
    """Make one program of several of one input; also return which of its outputs are each one's.

    Args:
        programs: Their outputs are lists.
        merge: Keep like steps once; else each program has a copy of the input to itself.
    """
    steps: list[Step] = []
    known: dict[str, int] = {}
    outputs: list[Any] = []
    of_programs = []
    for program in programs:
        numbers = {0: 0}
        if not merge:
            steps.append(("aten.clone.default", [{"value": 0}], {}))
            numbers[0] = len(steps)
        for index, (name, arguments, keywords) in enumerate(program.steps, start=1):
            step = (name, rename(arguments, numbers), {key: rename(value, numbers) for key, value in keywords.items()})
            key = json.dumps(step)
            if not merge or key not in known:
                steps.append(step)
                known[key] = len(steps)
            numbers[index] = known[key]
        own = rename(program.output, numbers)
        for output in own:  # of which two may now be the same
            outputs += [] if output in outputs else [output]
        of_programs.append([outputs.index(output) for output in own])
    return Program(1, tuple(steps), outputs), of_programs


def rename(argument: Any, numbers: Mapping[int, int]) -> Any:
    """Write an argument with other numbers of values."""
    if isinstance(argument, list | tuple):
        return [rename(part, numbers) for part in argument]
    if isinstance(argument, dict) and "value" in argument:
        return {"value": numbers[argument["value"]]}
    return argument


def add_answers(added: SplitNetwork, split: SplitNetwork, names: Mapping[str, str], example: Tensor) -> SplitNetwork:
    """Make a network that answers with the sum of two, of which the second learns as it did alone.

    Args:
        added: A network that rests; its tensors are the member's.
        split: A network that trains; it must not run whole.
        names: Of the tensors of the first, in the state of both.
        example: Two or more different samples.
    """
    first, second = share_backbone({"added": added, "split": split}, example).values()
    resting = {names[name]: tensor for name, tensor in first.state.items()}
    evaluation, training = (
        add_tails(tail_of(first), tail, names, (first.reads, second.reads))
        for tail in (tail_of(second), second.training)
        if isinstance(tail, Program)
    )
    return replace(
        second,
        state=second.state | resting,
        tensors=first.tensors | second.tensors,
        reads=tuple(range(len(second.batch_axes))),
        evaluation=evaluation,
        training=training,
        moved=(*second.moved, *resting),
    )


def add_tails(
    first: Program, second: Program, names: Mapping[str, str], reads: tuple[tuple[int, ...], tuple[int, ...]]
) -> Program:
    """Make one tail of two, that adds what they answer; the tensors of the first have other names in it."""
    steps: list[Step] = []
    answers = []
    for program, renamed, own in ((first, names, reads[0]), (second, {}, reads[1])):
        numbers = {i: i for i in range(program.n_inputs)}
        for index, (name, arguments, keywords) in enumerate(program.steps, start=program.n_inputs):
            if name == "getitem" and arguments[0] == {"value": 0}:
                arguments = [arguments[0], renamed.get(arguments[1], arguments[1])]
            elif name == "getitem" and arguments[0] == {"value": 1}:
                arguments = [arguments[0], own[arguments[1]]]
            steps.append((name, rename(arguments, numbers), {k: rename(v, numbers) for k, v in keywords.items()}))
            numbers[index] = program.n_inputs + len(steps) - 1
        answers.append(rename(program.output, numbers))
    steps.append(("aten.add.Tensor", answers, {}))
    return Program(first.n_inputs, tuple(steps), {"value": first.n_inputs + len(steps) - 1})


@torch.no_grad()
def agree(shared: SplitNetwork, alone: SplitNetwork, example: Tensor) -> bool:
    """Whether a shared backbone gives a strategy the features of its own, on batches of two sizes."""
    return all(
        torch.equal(found, right)
        for part in (example, example[:1])
        for found, right in zip(
            shared.take(shared.run_backbone(part)), alone.take(alone.run_backbone(part)), strict=True
        )
    )


@torch.no_grad()
def describe_obstacle(splits: Splits, example: Tensor) -> str:
    """Say why the network cannot be written as operations that an artefact may hold; empty where it can."""
    for split in splits.values():
        reason = split.reason
        if not reason:
            foreign = replace(
                split,
                backbone=replace(split.backbone, foreign=True),
                evaluation=replace(tail_of(split), foreign=True),
            )
            try:
                foreign.apply_tail(split.state, foreign.take(foreign.run_backbone(example)))
            except ValueError as error:
                reason = f"it cannot be written down: {first_line(error)}"
        if reason:
            return f"each member runs the whole network, as {reason}"
    return ""


def tail_of(split: SplitNetwork) -> Program:
    assert isinstance(split.evaluation, Program)
    return split.evaluation


def describe_splits(splits: Splits) -> dict[str, Any]:
    """Describe networks that share a backbone, but for their tensors, as JSON takes it; whole ones are empty."""
    first = next(iter(splits.values()))
    if first.reason:
        return {}
    tails = {name: {"program": tail_of(split).as_dict(), "features": split.reads} for name, split in splits.items()}
    return {"backbone": first.backbone.as_dict(), "batch_axes": first.batch_axes, "tails": tails}


def list_tensors(splits: Splits) -> dict[str, Tensor]:
    """List the tensors of networks that share a backbone; of whole ones under the names of their state dict."""
    first = next(iter(splits.values()))
    if isinstance(first.evaluation, WholeTail):
        every = first.tensors | first.state
        return {name: every[tied] for name, tied in first.evaluation.list_names().items()}
    return {name: tensor for split in splits.values() for name, tensor in split.tensors.items()}


def read_splits(
    content: Any, tensors: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, SplitNetwork]:
    """Read what `describe_splits` and JSON made of networks; they predict, and do not train.

    Args:
        content: As it was read.
        tensors: What the programs read.
        states: Tensors of a member of each strategy.

    Raises:
        ValueError: It is none, or it reads a tensor or a feature that is not there.
    """
    try:
        backbone = read_program(content["backbone"])
        tails = {
            name: (read_program(tail["program"]), tuple(tail["features"])) for name, tail in content["tails"].items()
        }
        batch_axes = tuple(content["batch_axes"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"a network has a backbone and tails: {error}") from error
    if backbone.n_inputs != 1 or any(tail.n_inputs != 3 for tail, _ in tails.values()):
        raise ValueError("a backbone takes the inputs alone; a tail takes tensors, features and masks")
    n_features = len(backbone.output) if isinstance(backbone.output, list) else 0
    if len(batch_axes) != n_features or not all(axis is None or isinstance(axis, int) for axis in batch_axes):
        raise ValueError(f"each feature has an axis of samples or none, got {batch_axes}")
    for program in (backbone, *(tail for tail, _ in tails.values())):
        if missing := [name for name in program.constants if name not in tensors]:
            raise ValueError(f"its programs read tensors that are not there: {missing[0]}")
    for _, reads in tails.values():
        if not all(isinstance(index, int) and 0 <= index < n_features for index in reads):
            raise ValueError(f"its tails read features that are not there: {reads}")
    return dict(build_splits(backbone, batch_axes, tails, dict(tensors), states))


def build_splits(
    backbone: Program,
    batch_axes: tuple[int | None, ...],
    tails: Mapping[str, tuple[Program, tuple[int, ...]]],
    tensors: dict[str, Tensor],
    states: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[tuple[str, SplitNetwork]]:
    for name, state in states.items():
        tail, reads = tails[name]
        yield name, SplitNetwork(dict(state), (), tensors, backbone, batch_axes, reads, tail, tail)
