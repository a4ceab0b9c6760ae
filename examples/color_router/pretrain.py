"""Pretrain a DiffractionNet on BPM simulations: the small one that ships with the package, or one of full size.

python -m examples.color_router.pretrain --train build/train.npz --test build/test.npz --out build/demo.safetensors
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_ft.domains import View
from ray_ft.domains.diffraction import DOMAIN
from ray_ft.models.diffraction_net import DiffractionNet

SIZES = {
    "demo": {
        "n_blocks": (1, 1, 1, 1),
        "widths": (8, 16, 32, 64, 96),
        "d_model": 64,
        "n_decoder_blocks": 2,
        "wav_kernel": 7,
    },
    "full": {},  # what DiffractionNet is by itself: 6.4 M parameters in place of 0.37 M
}
LEARNING_RATES = {"demo": 3e-3, "full": 1e-3}
SHARED = {  # 32 images of each of many simulations: there is nothing to overfit to, so nothing is dropped
    "n_wavelengths": 61,
    "dropout_cnn": 0.0,
    "dropout_decoder": 0.0,
    "dropout_head": 0.0,
}
N_STEPS_SHOWN = 50  # a line of progress each


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    train, test = load_samples(args.train), load_samples(args.test)
    network = DiffractionNet(**SHARED, **SIZES[args.size])  # type: ignore[arg-type]  # tables of literals
    with torch.no_grad():  # start from the mean spectrum, so that all of the training goes into structure
        network.spec_bias.copy_(torch.logit(torch.from_numpy(train[1].mean(0))).reshape(1, 4, -1))
    network.to(args.device)
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    n_steps = args.epochs * (len(train[0]) // args.batch_size)
    lr = args.lr or LEARNING_RATES[args.size]
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=n_steps, pct_start=0.1)
    rng, started = np.random.default_rng(args.seed), time.monotonic()
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(network, averaged, optimizer, schedule, train, args.batch_size, rng, args.bf16)
        scores = evaluate(averaged.module, *test)
        print(
            json.dumps(
                {"epoch": epoch, "train_nmse": round(loss, 4), **scores, "s": round(time.monotonic() - started)}
            ),
            flush=True,
        )
        save_file({k: v.cpu().contiguous() for k, v in averaged.module.state_dict().items()}, args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="simulations by make_dataset to learn from")
    parser.add_argument("--test", type=Path, required=True, help="simulations of another seed to score on")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file, rewritten after each epoch")
    parser.add_argument("--size", choices=SIZES, default="demo", help="which network; full has 6.4 M parameters")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="the largest of the schedule; by itself 3e-3, and 1e-3 for full")
    parser.add_argument("--bf16", action="store_true", help="multiply in bf16: twice as fast where the CPU has it")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu, or cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read packed structures (n, 128, 16) uint8 and spectra (n, 2, 2, 61) float32."""
    with np.load(path, allow_pickle=False) as archive:
        return archive["structure"], archive["spectra"].astype(np.float32)


def train_epoch(
    network: nn.Module,
    averaged: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    samples: tuple[np.ndarray, np.ndarray],
    batch_size: int,
    rng: np.random.Generator,
    bf16: bool,
) -> float:
    """Pass once over the samples, each batch under a random one of the 32 operations; return the mean loss."""
    views, scale, losses = DOMAIN.list_views(DOMAIN.operations), float(samples[1].var()), []
    device = next(network.parameters()).device
    network.train()
    batches = np.array_split(rng.permutation(len(samples[0])), len(samples[0]) // batch_size)
    for step, batch in enumerate(batches):
        x, y = build_batch(samples[0][batch], samples[1][batch], views[rng.integers(len(views))], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = network(x)
        loss = nn.functional.mse_loss(predicted.float(), y) / scale
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if schedule.last_epoch < schedule.total_steps - 1:  # array_split may deal a batch more than planned
            schedule.step()
        averaged.update_parameters(network)
        losses.append(loss.detach())
        if step % N_STEPS_SHOWN == 0:
            left = torch.stack(losses[-N_STEPS_SHOWN:]).mean().item()
            print(f"step {step} of {len(batches)}, share of the variance left {left:.3f}", file=sys.stderr, flush=True)
    return torch.stack(losses).mean().item()


def build_batch(packed: np.ndarray, spectra: np.ndarray, view: View, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(DOMAIN.convert_inputs(packed, "the simulations")).to(device)
    return view.move_inputs(x).contiguous(), view.move_targets(torch.from_numpy(spectra).to(device)).contiguous()


@torch.no_grad()
def evaluate(network: nn.Module, packed: np.ndarray, spectra: np.ndarray) -> dict[str, float]:
    """Score on held-out samples: mse, and R2 per quadrant and wavelength about the mean, averaged."""
    network.eval()
    device = next(network.parameters()).device
    (identity,) = DOMAIN.list_views(())
    starts = range(0, len(packed), 250)
    predicted = torch.cat(
        [network(build_batch(packed[i : i + 250], spectra[i : i + 250], identity, device)[0]) for i in starts]
    )
    error = ((predicted.cpu().numpy() - spectra) ** 2).mean(0)
    r2 = 1 - error / spectra.var(0)
    return {"mse": float(error.mean()), "r2": round(float(r2.mean()), 4), "r2_worst": round(float(r2.min()), 4)}


if __name__ == "__main__":
    main()
