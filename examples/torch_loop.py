"""A plain torch loop with everything on: groups, scheduler, clipping, autocast, compile, checkpoint and resume."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import signcore_torch

STEPS = 200
images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def start():
    """All that a run consists of, as new."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    named = list(model.named_parameters())
    groups = [
        {"params": [(name, p) for name, p in named if p.ndim > 1], "weight_decay": 0.01},
        {"params": [(name, p) for name, p in named if p.ndim <= 1]},
    ]
    optimizer = signcore_torch.Lion(groups, lr=3e-3, compile=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    return model, optimizer, scheduler, torch.amp.GradScaler("cpu")


def loss_of(model, rows):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return functional.cross_entropy(model(X[rows]).float(), Y[rows])


def train(run, steps):
    model, optimizer, scheduler, scaler = run
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, torch.randint(len(X), (128,)))).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()


def main():
    run, everything = start(), torch.arange(len(X))
    print(f"loss before {loss_of(run[0], everything).item():.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        train(run, STEPS // 2)
        torch.save([part.state_dict() for part in run], path)  # signcore_torch.save: for other frameworks, too
        run = start()
        for part, held in zip(run, torch.load(path, weights_only=True), strict=True):
            part.load_state_dict(held)
        train(run, STEPS - STEPS // 2)
    print(f"after {loss_of(run[0], everything).item():.4f}")


if __name__ == "__main__":
    main()
