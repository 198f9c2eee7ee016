"""Write data/train and data/evaluation, one image per row.

python prepare_data.py              a small sample: 2,000 drawn shapes
python prepare_data.py PHOTOS       a folder that has a folder of images for each label
"""

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np

from raytrain_plus import StreamWriter
from task import SIZE

DATA = Path(__file__).parent / "data"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}


def sample(rows=2000, seed=0):
    """Return drawn shapes: the names of the labels, and (image, label, is held out) of each row."""
    draw = np.random.default_rng(seed)
    names = ["circle", "cross", "square"]
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    found = []
    for row in range(rows):
        label = int(draw.integers(3))
        down, right = draw.uniform(11, 21, 2)
        size = draw.uniform(5, 9)
        u, v = np.abs(y - down), np.abs(x - right)
        shape = (
            np.hypot(u, v) < size,
            (np.minimum(u, v) < size / 4) & (np.maximum(u, v) < size),
            np.maximum(u, v) < size * 0.85,
        )[label]
        ground = draw.integers(0, 100, (3, 1, 1))
        color = draw.integers(156, 256, (3, 1, 1))
        image = np.where(shape, color, ground) + draw.normal(0, 16, (3, SIZE, SIZE))
        found.append((image.clip(0, 255).astype(np.uint8), label, row % 5 == 0))
    return names, found


def photos(folder):
    """Return the images of a folder in the same form; a tenth of them, by name, is held out."""
    from PIL import Image  # pip install pillow

    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [(p, i) for i, name in enumerate(names) for p in sorted((folder / name).rglob("*"))]
    paths = [(path, label) for path, label in paths if path.suffix.lower() in SUFFIXES]

    def rows():
        for index in np.random.default_rng(0).permutation(len(paths)):
            path, label = paths[index]
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB").resize((SIZE, SIZE)))
            held_out = hashlib.sha256(str(path.relative_to(folder)).encode()).digest()[0] < 26
            yield image.transpose(2, 0, 1), label, held_out

    return names, rows()


def write(names, rows, data=DATA):
    shutil.rmtree(data, ignore_errors=True)
    labels = {"label": names}
    with (
        StreamWriter(data / "train", labels=labels) as train,
        StreamWriter(data / "evaluation", labels=labels) as evaluation,
    ):
        for image, label, held_out in rows:
            (evaluation if held_out else train).write({"image": image, "label": label})


def main(folder=None):
    names, rows = sample() if folder is None else photos(Path(folder))
    write(names, rows)
    print(f"wrote {DATA}: {len(names)} classes ({', '.join(names)})")
    print(f"run.yaml must say: task_settings: {{classes: {len(names)}}}")


if __name__ == "__main__":
    main(*sys.argv[1:])
