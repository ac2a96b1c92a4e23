"""Whether Keras runs on a backend whose arrays the core computes with; looked at when the package is imported."""

from __future__ import annotations

import os

KNOWN = ("torch", "jax")
_WAY_OUT = (
    f"signcore_keras runs on {' and '.join(KNOWN)}: set the environment variable before anything imports keras, "
    f"for example os.environ['KERAS_BACKEND'] = 'torch'"
)


def check() -> None:
    """Raise when Keras is not installed, or runs on none of the backends that are known.

    Raises
    ------
    ImportError
        The message names the environment variable by which Keras chooses.
    """
    chosen = os.environ.get("KERAS_BACKEND")
    try:
        import keras
    except ImportError as error:
        what = f"is {chosen!r}" if chosen else "is not set, and Keras' own default is 'tensorflow'"
        raise ImportError(
            f"keras cannot be imported ({error}); `pip install signcore[keras]` installs it. If it is installed: "
            f"`KERAS_BACKEND` {what}, and {_WAY_OUT}"
        ) from error
    if keras.config.backend() not in KNOWN:
        raise ImportError(f"`KERAS_BACKEND` is {keras.config.backend()!r}, and {_WAY_OUT}")


check()
