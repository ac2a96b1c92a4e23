"""A plain torch loop with everything switched on: groups, scheduler, clipping, autocast, compile, checkpoints."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import signcore_torch

images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def main():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    named = dict(model.named_parameters())
    groups = [
        {"params": [(name, p) for name, p in named.items() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [(name, p) for name, p in named.items() if p.ndim <= 1]},
    ]
    optimizer = signcore_torch.Lion(groups, lr=3e-3, compile=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    scaler = torch.amp.GradScaler("cpu")

    def loss_of(rows):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.cross_entropy(model(X[rows]).float(), Y[rows])

    everything = torch.arange(len(X))
    print(f"loss before {loss_of(everything).item():.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        for k in range(200):
            optimizer.zero_grad()
            scaler.scale(loss_of(torch.randint(len(X), (128,)))).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            if k == 100:
                signcore_torch.save(path, optimizer)  # parameters and state, for any backend
                signcore_torch.load(path, optimizer)
    print(f"after {loss_of(everything).item():.4f}")


if __name__ == "__main__":
    main()
