"""Hugging Face `Trainer`: a small Llama, not trained yet, learns Python from the bytes of the standard library."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    set_seed,
)

import signcore_torch

STEPS, LENGTH = 200, 64
sources = sorted(Path(os.__file__).parent.glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
windows = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH).long()
examples = [{"input_ids": window, "labels": window} for window in windows]


def main():
    set_seed(0)
    held_out, training = examples[::400], [each for k, each in enumerate(examples) if k % 400]
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
    groups = [  # names, so that checkpoints of signcore have them
        {"params": [(n, p) for n, p in model.named_parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in model.named_parameters() if p.ndim <= 1]},
    ]
    optimizer = signcore_torch.Lion(groups, lr=3e-3, foreach=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=20, num_training_steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            max_grad_norm=1.0,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model, arguments, train_dataset=training, eval_dataset=held_out, optimizers=(optimizer, scheduler)
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"loss before {before:.4f}  after {after:.4f}")


if __name__ == "__main__":
    main()
