"""Optional packages: which extra installs each, and the one error that says so.

An optional package is imported inside the function that needs it. A command names the extra if the
import fails (`cli/answers.py`). Python code that may run elsewhere imports inside `needed`.
"""

import contextlib
from collections.abc import Iterator, Mapping

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "demo": ("matplotlib", "mlxtend"),
    "s3": ("s3fs",),
    "hf": ("peft", "tokenizers", "transformers"),
    "tokenizers": ("tokenizers",),
    "datasets": ("datasets", "huggingface_hub"),
    "lightning": ("lightning",),
    "frontier": ("matplotlib", "moocore", "optuna", "scipy"),
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
}
"""Extra of `raytrain-plus` -> the modules that it installs; `pyproject.toml` has their versions."""


class MissingExtraError(ValueError):
    """A package is not installed; the message names the extra that installs it."""


@contextlib.contextmanager
def needed(extra: str | None = None) -> Iterator[None]:
    """Name the extra if a package of an extra cannot be found inside the block.

    Args:
        extra: the one to name for a package that several extras install. Default: the first.

    Raises:
        MissingExtraError: an optional package is not installed. A missing module that belongs to
            no extra stays a ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = how_to_install(error.name or "", extra)
        if said is None:
            raise
        raise MissingExtraError(said) from error


def how_to_install(module: str, extra: str | None = None) -> str | None:
    """Return the sentence that says which extra installs a module; None if no extra does.

    Args:
        module: its name, such as `matplotlib.figure`.
        extra: as for `needed`.
    """
    package = module.partition(".")[0]
    having = [name for name, modules in EXTRAS.items() if package in modules]
    if not having:
        return None
    named = extra if extra in having else having[0]
    return f"{package} is not installed: pip install 'raytrain-plus[{named}]'"
