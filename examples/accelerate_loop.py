"""Hugging Face Accelerate: a small Llama, not trained yet, learns Python from the bytes of the standard library."""

import os
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import signcore_torch

STEPS, LENGTH = 200, 64
sources = sorted(Path(os.__file__).parent.glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
windows = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH).long()


def main():
    set_seed(0)
    held_out, training = windows[::400], windows[torch.arange(len(windows)) % 400 > 0]
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = signcore_torch.Signum(model.named_parameters(), lr=4e-3, foreach=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS, cycle_momentum=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, step_scheduler_with_optimizer=False)
    loader = DataLoader(training, batch_size=8, shuffle=True, drop_last=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    @torch.no_grad()
    def loss_of(batch):
        return model(input_ids=batch, labels=batch).loss.item()

    print(f"loss before {loss_of(held_out):.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        for k, batch in zip(range(2 * STEPS), loader, strict=False):
            with accelerator.accumulate(model):
                accelerator.backward(model(input_ids=batch, labels=batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
            if k == STEPS:  # in the middle: parameters, state and schedule, as Accelerate keeps them
                accelerator.save_state(folder)
                accelerator.load_state(folder)
    print(f"after {loss_of(held_out):.4f}")


if __name__ == "__main__":
    main()
