"""Parts of images: random boxes, and chosen rows and columns, different in each sample."""

import torch
from torch import Tensor


def random_boxes(
    heights: Tensor, widths: Tensor, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Mark one box per sample, its centre at a uniformly random pixel, cut at the borders.

    Args:
        heights: heights of the boxes in pixels, integers of shape (n,).
        widths: their widths, likewise.
        size: height and width of the images.
        generator: of the CPU.

    Returns:
        True inside the box, shape (n, height, width).
    """
    rows = _random_spans(heights, size[0], generator)
    columns = _random_spans(widths, size[1], generator)
    return rows[:, :, None] & columns[:, None, :]


def select(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the chosen rows and columns of each image.

    Args:
        images: shape (n, channels, height, width).
        rows: indices of shape (n, chosen rows).
        columns: indices of shape (n, chosen columns).

    Returns:
        Images of shape (n, channels, chosen rows, chosen columns).
    """
    n, channels, _, width = images.shape
    rows, columns = rows.to(images.device), columns.to(images.device)
    found = images.gather(2, rows[:, None, :, None].expand(n, channels, -1, width))
    return found.gather(3, columns[:, None, None, :].expand(n, channels, rows.shape[1], -1))


def _random_spans(lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    centres = torch.randint(size, lengths.shape, generator=generator)
    first = (centres - lengths // 2)[:, None]
    places = torch.arange(size)
    return (places >= first) & (places < first + lengths[:, None])
