"""Members of a candidate, trained epoch by epoch: one after the other, or packed, one step for several.

A member depends on its candidate, repeat, fold and seed alone: its batches, its dropout and which noisy copies it
takes come from generators keyed by those and by the epoch, and the noise of the copies from the run's seed, for all
candidates alike. So neither its neighbours, nor its pack, nor an interruption change it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.adamw import adamw

from ray_ft.config import GradientHyperparameters, count_replayed, scale_lr
from ray_ft.errors import DivergedError
from ray_ft.fitting.views import ViewBank, draw_replayed, draw_views
from ray_ft.objectives import Objective
from ray_ft.search.problem import MemberKey
from ray_ft.split.network import SplitNetwork


@dataclass(frozen=True)
class Recipe:
    """What members learn, and how."""

    split: SplitNetwork
    bank: ViewBank  # features and targets by view and sample
    hyper: GradientHyperparameters
    objective: Objective
    grad_clip: float = 1.0  # largest norm of a member's gradient
    dtype: torch.dtype = torch.float32  # of the products; weights and optimizer are float32 in any case
    scales: Mapping[str, float] = field(default_factory=dict)  # factors on the learning rate, by name; 1 without one

    def autocast(self) -> torch.autocast:
        device = self.bank.targets.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype != torch.float32)

    @property
    def n_replayed(self) -> int:
        """Replayed samples of a step, the last of its batch."""
        return count_replayed(self.hyper.batch_size, self.hyper.replay)

    def side_by_side(self) -> AbstractContextManager[None]:
        """Let `torch.vmap` run attention on a GPU, whose fused kernels refuse members that lie side by side."""
        on_gpu = self.bank.targets.device.type == "cuda"
        return sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext()


@dataclass(frozen=True)
class Member:
    """The weights in training of one (repeat, fold, seed); its tensors lie in those of its pack."""

    key: MemberKey
    stream: tuple[int, ...]
    samples: Int[np.ndarray, " training"]
    state: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor]  # of the weights over the steps; empty where none is kept

    @property
    def answering(self) -> dict[str, Tensor]:
        """What predicts."""
        return self.state | self.average


@dataclass(frozen=True)
class Pack:
    """Members side by side: the tensors of their states, stacked along a first axis."""

    members: tuple[Member, ...]
    state: dict[str, Tensor]
    average: dict[str, Tensor]

    @property
    def answering(self) -> dict[str, Tensor]:
        """What predicts."""
        return self.state | self.average

    def part(self, index: slice) -> "Pack":
        """Some of the members, in the same memory."""
        if index.stop - index.start >= len(self.members):
            return self
        state, average = (
            {name: share(tensor, index) for name, tensor in own.items()} for own in (self.state, self.average)
        )
        return Pack(self.members[index], state, average)

    def divide(self, size: int) -> list["Pack"]:
        """Deal the members, in their order, to packs of at most this size."""
        return [self.part(slice(start, start + size)) for start in range(0, len(self.members), size)]


@dataclass(frozen=True)
class Batch:
    """A member's next step."""

    lr: float
    rows: Int[Tensor, " sample"]  # of the bank's features; the replayed ones are last
    targets: Float[Tensor, "sample *target"]
    masks: tuple[Tensor, ...]


def create_pack(
    keys: Sequence[MemberKey],
    stream: tuple[int, ...],
    split: SplitNetwork,
    hyper: GradientHyperparameters,
    samples: Sequence[Int[np.ndarray, " _"]],
    scales: Mapping[str, float] | None = None,
) -> Pack:
    """Start members from the pretrained weights, with factors on the learning rate by name."""
    stacked = {name: tensor.expand(len(keys), *tensor.shape).clone() for name, tensor in split.state.items()}
    for name in split.trained_names:
        stacked[name].requires_grad_()
    averages = {name: stacked[name].detach().clone() for name in split.trained_names if hyper.ema}
    fused = not any(stacked[name].is_complex() for name in split.trained_names)  # for which torch has no fused kernel
    members = []
    for i, (key, own) in enumerate(zip(keys, samples, strict=True)):
        state, average = ({name: share(tensor, i) for name, tensor in own.items()} for own in (stacked, averages))
        groups: list[dict[str, Any]] = [
            {"params": [state[name] for name in names], "lr": hyper.lr * scale}
            for scale, names in group_names(split.trained_names, scales or {}).items()
        ]
        optimizer = torch.optim.AdamW(groups, lr=hyper.lr, weight_decay=hyper.weight_decay, fused=fused)
        members.append(Member(key, (*stream, key.repeat, key.fold, key.seed), own, state, optimizer, average))
    return Pack(tuple(members), stacked, averages)


def group_names(names: Sequence[str], scales: Mapping[str, float]) -> dict[float, list[str]]:
    """Put names together whose learning rates have the same factor."""
    groups: dict[float, list[str]] = {}
    for name in names:
        groups.setdefault(scales.get(name, 1.0), []).append(name)
    return groups


def share(tensor: Tensor, index: int | slice) -> Tensor:
    """A part of a tensor along its first axis, in the same memory but a leaf of its own for gradients.

    Unlike `detach`, `data` counts writes apart: those of another member, in another thread, do not spoil a gradient.
    """
    return tensor.data[index].requires_grad_(tensor.requires_grad)


def train_epoch(pack: Pack, recipe: Recipe, epoch: int) -> None:
    """Pass each member once over all views of its samples, in an epoch from 0; the members change in place.

    Raises:
        DivergedError: A loss is infinite or not a number.
    """
    batches = [draw_batches(member, recipe, epoch) for member in pack.members]
    totals = torch.zeros(len(pack.members), device=recipe.bank.targets.device)
    while any(step := [next(of_member, None) for of_member in batches]):
        totals += step_pack(pack, recipe, step)
    for member, total in zip(pack.members, totals.tolist(), strict=True):
        if not math.isfinite(total):
            raise DivergedError(f"the training loss of {member.key} became {total} in epoch {epoch + 1}; lower the lr")
    check_single_batches(pack, recipe, epoch)


def check_single_batches(pack: Pack, recipe: Recipe, epoch: int) -> None:
    """Tell a batch norm that had one value a channel, and so no variance, from a learning rate that is too high."""
    n_views, buffers = recipe.bank.n_views, pack.state.keys() - set(recipe.split.trained_names)
    if recipe.hyper.batch_size > 1 and all(len(member.samples) * n_views > 1 for member in pack.members):
        return
    broken = sorted(name for name in buffers if not pack.state[name].isfinite().all())
    if broken:
        raise DivergedError(
            f"batch norm needs batches of two or more samples, got one: {broken[0]} is no number in epoch {epoch + 1}; "
            "raise batch_size, or cv.train_size where a training part is one sample"
        )


def draw_batches(member: Member, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """Shuffle the views of the member's samples and deal them, with their learning rates and dropout."""
    split, bank, hyper = recipe.split, recipe.bank, recipe.hyper
    device = bank.targets.device
    rng = np.random.default_rng([*member.stream, epoch])
    seed = int(rng.integers(2**62))
    generator = torch.Generator(device).manual_seed(seed) if split.sites else None
    if split.draws:
        torch.manual_seed(seed)
    targets = bank.targets.flatten(0, 1)
    shuffled = rng.permutation(draw_views(bank, member.samples, hyper.views, rng))
    bounds = list(range(0, len(shuffled), hyper.batch_size))
    has_buffers = len(split.state) > len(split.trained_names) + len(split.moved)
    if has_buffers and len(bounds) > 1 and len(shuffled) - bounds[-1] == 1:
        bounds.pop()  # batch norm has no variance of one sample, which joins the batch before it
    parts, n_batches = np.split(shuffled, bounds[1:]), len(bounds)
    if recipe.n_replayed:
        parts = [np.concatenate([part, draw_replayed(bank, recipe.n_replayed, rng)]) for part in parts]
    clean = np.concatenate(parts)
    copies = rng.integers(1, bank.n_noisy + 1, len(clean)) if bank.n_noisy else np.zeros(len(clean), int)
    places = np.stack([clean + copies * (bank.n_views * bank.n_samples), clean])
    sizes = [len(part) for part in parts]
    rows, clean_rows = torch.from_numpy(places).to(device)  # at once, as each copy to a GPU waits for it
    for i, (own, clean_own) in enumerate(zip(rows.split(sizes), clean_rows.split(sizes), strict=True)):
        lr = hyper.lr * scale_lr(epoch * n_batches + i, hyper.epochs * n_batches, hyper.warmup_epochs * n_batches)
        masks = split.draw_masks(len(own), generator) if generator else ()
        yield Batch(lr, own, targets[clean_own], masks)


def step_pack(pack: Pack, recipe: Recipe, batches: Sequence[Batch | None]) -> Float[Tensor, " member"]:
    """Take one step of each member that has a batch; return the losses before it, 0 where there is none.

    Batches of one size make one step for all; at the end of an epoch, where they may differ, members step alone.
    """
    alike = None not in batches and len({len(batch.rows) for batch in batches if batch}) == 1
    if len(pack.members) > 1 and alike:
        return step_stacked(pack, recipe, [batch for batch in batches if batch])
    losses = [
        recipe.bank.targets.new_zeros(()) if batch is None else step_alone(member, recipe, batch)
        for member, batch in zip(pack.members, batches, strict=True)
    ]
    return torch.stack(losses)


def step_alone(member: Member, recipe: Recipe, batch: Batch) -> Tensor:
    features = recipe.split.take(recipe.bank.features, batch.rows)

    def learn() -> Tensor:
        loss = compute_loss(recipe, member.state, features, batch.masks, batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return loss.detach()

    loss = recipe.split.hold(member.state, learn)
    torch.nn.utils.clip_grad_norm_([member.state[name] for name in recipe.split.trained_names], recipe.grad_clip)
    update([member], [batch.lr], recipe)
    return loss


def step_stacked(pack: Pack, recipe: Recipe, batches: Sequence[Batch]) -> Float[Tensor, " member"]:
    split = recipe.split
    features, axes = split.take_stacked(recipe.bank.features, torch.stack([batch.rows for batch in batches]))
    masks = tuple(torch.stack(of_site) for of_site in zip(*(batch.masks for batch in batches), strict=True))
    targets = torch.stack([batch.targets for batch in batches])
    leaves = [pack.state[name] for name in split.trained_names]
    compute = torch.vmap(partial(compute_loss, recipe), in_dims=(0, axes, 0, 0))
    with recipe.side_by_side():
        losses = compute(pack.state, features, masks, targets)
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    used = [name for name, gradient in zip(split.trained_names, found, strict=True) if gradient is not None]
    gradients = clip_stacked([gradient for gradient in found if gradient is not None], recipe.grad_clip)
    for i, member in enumerate(pack.members):
        for name, gradient in zip(used, gradients, strict=True):
            member.state[name].grad = gradient[i]
    update(pack.members, [batch.lr for batch in batches], recipe)
    return losses.detach()


def clip_stacked(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Do for each member, along the first axis, what `torch.nn.utils.clip_grad_norm_` does for one."""
    norms = torch.stack([own.reshape(len(own), -1).norm(dim=1) for own in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    # The fused optimizer takes a gradient for laid out as its weight is, whatever its strides say.
    return [(gradient * factors.view(-1, *[1] * (gradient.dim() - 1))).contiguous() for gradient in gradients]


@torch.no_grad()
def update(members: Sequence[Member], lrs: Sequence[float], recipe: Recipe) -> None:
    """Take the step of each member's optimizer, in one call for all of one learning rate, as each call has its cost."""
    groups = group_names(recipe.split.trained_names, recipe.scales)
    for lr in dict.fromkeys(lrs):
        alike = [member for member, own in zip(members, lrs, strict=True) if own == lr]
        for place, (scale, names) in enumerate(groups.items()):
            update_group(alike, place, names, lr * scale, recipe)
        for member in alike:
            member.optimizer.zero_grad()  # so that gradients take up memory for one step alone
    pairs = [(average, member.state[name]) for member in members for name, average in member.average.items()]
    if pairs:
        averages, weights = zip(*pairs, strict=True)
        torch._foreach_mul_(averages, recipe.hyper.ema)
        torch._foreach_add_(averages, weights, alpha=1 - recipe.hyper.ema)


def update_group(members: Sequence[Member], place: int, names: Sequence[str], lr: float, recipe: Recipe) -> None:
    """Take the step of parameters that have one learning rate: those of one group of each member's optimizer."""
    defaults = members[0].optimizer.defaults
    (beta1, beta2), weight_decay, eps = (defaults[key] for key in ("betas", "weight_decay", "eps"))
    params, gradients, means, squares, unused, counts = lists = tuple[list[Tensor], ...]([] for _ in range(6))
    for member in members:
        member.optimizer._init_group(member.optimizer.param_groups[place], *lists)  # type: ignore[no-untyped-call]
    if not params:  # which no gradient reaches
        return
    is_complex, fused = any(param.is_complex() for param in params), bool(defaults["fused"])
    adamw(
        params, gradients, means, squares, unused, counts, fused=fused, has_complex=is_complex, amsgrad=False,
        maximize=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps,
    )  # fmt: skip
    if recipe.hyper.decay_to == "pretrained":
        for state in (member.state for member in members):
            moved = [name for name in names if state[name].grad is not None]
            pair = [state[name] for name in moved], [recipe.split.state[name] for name in moved]
            torch._foreach_add_(*pair, alpha=lr * weight_decay)  # AdamW has pulled towards zero by as much


def compute_loss(
    recipe: Recipe,
    state: dict[str, Tensor],
    features: tuple[Tensor, ...],
    masks: tuple[Tensor, ...],
    targets: Tensor,
) -> Tensor:
    with recipe.autocast():
        predicted = recipe.split.apply_tail(state, features, training=True, masks=masks)
    losses, n_replayed = recipe.objective.losses(predicted.float(), targets), recipe.n_replayed
    if not n_replayed:
        return losses.mean()
    share = recipe.hyper.replay or 0.0
    return (1 - share) * losses[:-n_replayed].mean() + share * losses[-n_replayed:].mean()


@torch.no_grad()
def predict_watched(
    pack: Pack, recipe: Recipe, samples: Callable[[MemberKey], Int[np.ndarray, " _"]]
) -> list[Float[Tensor, "_ *response"]]:
    """Predict by each member its own samples, as they are, without augmentation or dropout."""
    split, bank = recipe.split, recipe.bank
    device = bank.targets.device
    rows = [torch.as_tensor(samples(member.key), device=device) for member in pack.members]
    predict = partial(split.apply_tail, training=False)
    with recipe.autocast():
        if len(rows) > 1 and len({len(own) for own in rows}) == 1:
            features, axes = split.take_stacked(bank.features, torch.stack(rows))
            with recipe.side_by_side():
                answers = torch.vmap(predict, in_dims=(0, axes))(pack.answering, features)
            return list(recipe.objective.respond(answers.float()))
        return [
            recipe.objective.respond(predict(member.answering, split.take(bank.features, own)).float())
            for member, own in zip(pack.members, rows, strict=True)
        ]
