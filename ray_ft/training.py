"""Members of a candidate, trained in lock-step: each takes one epoch, then all are looked at together.

A member depends on its candidate, repeat, fold and seed alone: its batches, dropout and noise come from a generator
keyed by those and by the epoch, so neither its neighbours nor an interruption change it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ray_ft.errors import DivergedError
from ray_ft.features import SplitNetwork
from ray_ft.metrics import compute_losses
from ray_ft.plan import Hyperparameters, MemberKey

__all__ = ["Member", "ViewBank", "build_bank", "create_member", "predict_samples", "scale_lr", "train_epoch"]


@dataclass(frozen=True)
class ViewBank:
    """Features and targets of every view of every sample, and features of noisy copies of them.

    The row of a sample is `(copy * n_views + view) * n_samples + sample`; copy 0 is clean, view 0 is the sample itself.
    """

    features: tuple[Tensor, ...]
    targets: Float[Tensor, "view sample *target"]
    n_noisy: int

    @property
    def n_views(self) -> int:
        return len(self.targets)

    @property
    def n_samples(self) -> int:
        return self.targets.shape[1]


@dataclass(frozen=True)
class Member:
    """The weights in training of one (repeat, fold, seed)."""

    key: MemberKey
    entropy: tuple[int, ...]
    state: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    samples: Int[np.ndarray, " training"]


def build_bank(
    split: SplitNetwork,
    inputs: Float[Tensor, "view sample *input"],
    targets: Float[Tensor, "view sample *target"],
    noise_std: float,
    n_noisy: int,
    seed: int,
) -> ViewBank:
    """Run the backbone once over all views, and over `n_noisy` noisy copies of each where there is noise."""
    flat = inputs.flatten(0, 1)
    n_noisy = n_noisy if noise_std else 0
    generator = torch.Generator().manual_seed(seed)
    noises = (torch.randn(flat.shape, generator=generator).to(flat.device) for _ in range(n_noisy))
    copies = [split.compute_features(flat), *(split.compute_features(flat + noise_std * noise) for noise in noises)]
    features = tuple(
        parts[0] if axis is None else torch.cat(parts, axis)
        for parts, axis in zip(zip(*copies, strict=True), split.batch_axes, strict=True)
    )
    return ViewBank(features, targets, n_noisy)


def create_member(
    key: MemberKey,
    entropy: tuple[int, ...],
    split: SplitNetwork,
    hyper: Hyperparameters,
    samples: Int[np.ndarray, " training"],
) -> Member:
    """Start a member from the pretrained weights."""
    state = {name: tensor.clone() for name, tensor in split.state.items()}
    trained = [state[name].requires_grad_() for name in split.trained_names]
    optimizer = torch.optim.AdamW(trained, lr=hyper.lr, weight_decay=hyper.weight_decay, fused=True)
    return Member(key, (*entropy, key.repeat, key.fold, key.seed), state, optimizer, samples)


def train_epoch(
    member: Member,
    split: SplitNetwork,
    bank: ViewBank,
    hyper: Hyperparameters,
    epoch: int,
    metric: str,
    grad_clip: float,
) -> None:
    """Pass once over all views of the member's samples.

    Args:
        member: Changed in place.
        split: The network.
        bank: Features by view and sample.
        hyper: The candidate's hyperparameters.
        epoch: From 0.
        metric: The loss, key of `metrics.METRICS`.
        grad_clip: Largest norm of the gradient.

    Raises:
        DivergedError: A loss is infinite or not a number.
    """
    rng = np.random.default_rng([*member.entropy, epoch])
    torch.manual_seed(int(rng.integers(2**62)))  # for dropout
    batches = list(draw_batches(member, bank, hyper.batch_size, rng))
    trained = [member.state[name] for name in split.trained_names]
    total = torch.zeros((), device=bank.targets.device)
    for i, (rows, targets) in enumerate(batches):
        member.optimizer.param_groups[0]["lr"] = hyper.lr * scale_lr(
            epoch * len(batches) + i, hyper.epochs * len(batches), hyper.warmup_epochs * len(batches)
        )
        predicted = split.apply_tail(member.state, split.take(bank.features, rows), training=True)
        loss = compute_losses(metric, predicted, targets).mean()
        member.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(trained, grad_clip)
        member.optimizer.step()
        total += loss.detach()
    if not torch.isfinite(total):
        raise DivergedError(
            f"the training loss of {member.key} became {total.item()} in epoch {epoch + 1}; lower the lr"
        )


def draw_batches(
    member: Member, bank: ViewBank, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle the views of the member's samples; deal rows of the bank and targets."""
    device = bank.targets.device
    targets = bank.targets.flatten(0, 1)
    clean = (np.arange(bank.n_views)[:, None] * bank.n_samples + member.samples).ravel()
    clean = rng.permutation(clean)
    copies = rng.integers(1, bank.n_noisy + 1, len(clean)) if bank.n_noisy else np.zeros(len(clean), int)
    rows = clean + copies * (bank.n_views * bank.n_samples)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        yield torch.from_numpy(rows[part]).to(device), targets[torch.from_numpy(clean[part]).to(device)]


def scale_lr(step: int, n_steps: int, n_warmup: int) -> float:
    """Rise linearly to 1 over the warm-up, then fall by a cosine to 0 at `n_steps`."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


@torch.no_grad()
def predict_samples(
    member: Member, split: SplitNetwork, bank: ViewBank, samples: Sequence[int] | Int[np.ndarray, " held_out"]
) -> Float[Tensor, "held_out *target"]:
    """Predict samples as they are, without augmentation or dropout."""
    rows = torch.as_tensor(samples, device=bank.targets.device)
    return split.apply_tail(member.state, split.take(bank.features, rows), training=False)
