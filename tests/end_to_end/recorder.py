"""An aspect that records the start and the end of each join point, on a worker of a real run."""

from pathlib import Path

from raytrain_plus.algorithms import JOIN_POINTS, Aspect


class Recorder(Aspect):
    file: Path


def _advice(point):
    def recorded(self, step):
        self.file.open("a").write(f"{point} begins {step.number} {step.logical_rank}\n")
        yield
        self.file.open("a").write(f"{point} ends {step.number} {step.logical_rank}\n")

    return recorded


for _point in JOIN_POINTS:
    setattr(Recorder, _point, _advice(_point))
