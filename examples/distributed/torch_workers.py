"""Digits on processes that send each other one bit a coordinate: torchrun --nproc-per-node 2 torch_workers.py"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

import signcore_torch


def main():
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # every rank begins with the same model
    images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    images = (images / 16).float()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    loss_of = torch.nn.CrossEntropyLoss()
    # One bit has no zero: zeros and undecided votes go up. Momentum is each rank's own, before the vote.
    optimizer = signcore_torch.Signum(
        model.parameters(), lr=3e-3, sign_zero="plus", ties="plus", process_group=dist.group.WORLD, check_every=50
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    mine = torch.arange(rank, len(images), size)  # other data on every rank
    random = torch.Generator().manual_seed(rank)
    before = loss_of(model(images), labels).item()
    for _ in range(200):
        rows = mine[torch.randint(len(mine), (64,), generator=random)]
        optimizer.zero_grad()
        loss_of(model(images[rows]), labels[rows]).backward()  # no all-reduce: `step` is where ranks meet
        optimizer.step()
        scheduler.step()
    if rank == 0:
        print(f"{size} processes: loss before {before:.4f}  after {loss_of(model(images), labels).item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
