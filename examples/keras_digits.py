"""Keras: compile and fit with a schedule and clipping, and a model file from which training goes on."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")  # or "jax"; before keras is imported

import keras
from sklearn.datasets import load_digits

import signcore as sc
import signcore_keras

images, labels = load_digits(return_X_y=True)
X, BATCH, EPOCHS = (images / 16).astype("float32"), 128, 8


def build():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    schedule = sc.schedules.cosine(3e-3, total_steps=EPOCHS * -(-len(X) // BATCH))
    model.compile(
        optimizer=signcore_keras.Lion(schedule, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def main():
    model = build()
    print(f"{keras.config.backend()}: loss before {model.evaluate(X, labels, verbose=0):.4f}", end="  ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.fit(X, labels, batch_size=BATCH, epochs=EPOCHS // 2, verbose=0)
        model.save(path)  # the optimizer with its hyperparameters and every word of its state as well
        model = keras.models.load_model(path)
        model.fit(X, labels, batch_size=BATCH, epochs=EPOCHS - EPOCHS // 2, verbose=0)
    print(f"after {model.evaluate(X, labels, verbose=0):.4f}")


if __name__ == "__main__":
    main()
