"""Finding the column of a batch that holds images."""

from torch import Tensor

from raytrain_plus.algorithms.aspect import AspectError, Step


def image_column(step: Step, column: str | None) -> str:
    """Return the name of the column of images, tensors of shape (n, channels, height, width).

    Args:
        step: the step whose batch is searched.
        column: the column's name; None for the only one of that shape, the target excluded.

    Raises:
        AspectError: there is no such column, or there are several.
    """
    shapes = {n: tuple(v.shape) for n, v in step.batch.items() if isinstance(v, Tensor)}
    found = [name for name, s in shapes.items() if len(s) == 4 and name != step.target]
    wanted = found if column is None else [name for name in found if name == column]
    if len(wanted) != 1:
        raise AspectError(
            f"{'no column' if not wanted else 'several columns'} of images, of shape (n, channels, "
            f"height, width), in the batch, which has {shapes}: name it with `column`"
        )
    return wanted[0]
