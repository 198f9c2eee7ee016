"""Device-seconds: CPU time on a CPU; on other devices, the time that the device was held."""

import pytest
import torch

from raytrain_plus.training.busy_time import BusyTime

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Clocks:
    def __init__(self):
        self.cpu, self.wall = 10.0, 100.0

    def pass_by(self, *, wall, cpu):
        self.cpu += cpu
        self.wall += wall

    def busy(self, device):
        return BusyTime(device, lambda: self.cpu, lambda: self.wall)


@pytest.mark.parametrize(("device", "seconds"), [(CPU, 0.5), (GPU, 2.0)])
def test_a_device_costs_the_time_that_it_is_held_and_a_cpu_its_cpu_time(device, seconds):
    clocks = Clocks()
    busy = clocks.busy(device)
    clocks.pass_by(wall=2.0, cpu=0.5)
    assert busy.read_and_reset() == pytest.approx(seconds)
    assert busy.read_and_reset() == 0.0


@pytest.mark.parametrize(("device", "seconds"), [(CPU, 0.5), (GPU, 1.5)])
def test_waiting_for_others_costs_nothing(device, seconds):
    clocks = Clocks()
    busy = clocks.busy(device)
    clocks.pass_by(wall=2.0, cpu=0.5)
    busy.waited(0.5)
    assert busy.read_and_reset() == pytest.approx(seconds)


def test_the_time_between_generations_costs_nothing_on_a_device():
    clocks = Clocks()
    busy = clocks.busy(GPU)
    clocks.pass_by(wall=1.0, cpu=0.1)
    busy.pause()
    clocks.pass_by(wall=50.0, cpu=0.1)
    busy.resume()
    clocks.pass_by(wall=2.0, cpu=0.1)
    assert busy.read_and_reset() == pytest.approx(3.0)


def test_cpu_time_between_generations_counts():
    clocks = Clocks()
    busy = clocks.busy(CPU)
    busy.pause()
    clocks.pass_by(wall=50.0, cpu=0.25)
    busy.resume()
    assert busy.read_and_reset() == pytest.approx(0.25)
