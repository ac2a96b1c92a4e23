"""Lightning: `configure_optimizers` gives the optimizer and its schedule; handwritten digits."""

import logging
import tempfile

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import signcore_torch

images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch, index):
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        optimizer = signcore_torch.AASS(self.net.named_parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    digits, loader = Digits(), DataLoader(TensorDataset(X, Y), batch_size=64, shuffle=True)
    print(f"loss before {digits.training_step((X, Y), 0).item():.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        plain = {
            "accelerator": "cpu",
            "default_root_dir": folder,
            "gradient_clip_val": 1.0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = lightning.Trainer(max_epochs=4, **plain)
        trainer.fit(digits, loader)
        trainer.save_checkpoint(f"{folder}/digits.ckpt")  # parameters, state and schedule, as Lightning keeps them
        resumed = lightning.Trainer(max_epochs=8, **plain)
        resumed.fit(digits, loader, ckpt_path=f"{folder}/digits.ckpt", weights_only=True)
    print(f"after {digits.training_step((X, Y), 0).item():.4f}")


if __name__ == "__main__":
    main()
