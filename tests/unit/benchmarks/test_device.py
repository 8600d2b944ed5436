"""The clock waits for the device, and memory is that of the device."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks.device import CPU, RESET, Clock, Device
from weft.core.errors import InputError


class LateGpu(Device):
    """Takes orders at once, and is done with them when somebody waits, on a clock of its own."""

    time = 0.0
    ordered = 0.0

    def order(self, seconds):
        LateGpu.ordered += seconds

    def wait(self):
        LateGpu.time += LateGpu.ordered
        LateGpu.ordered = 0.0


def test_a_step_lasts_until_the_device_is_done_and_begins_when_it_is_free(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: LateGpu.time)
    gpu = LateGpu()
    clock = Clock(gpu)
    gpu.order(5.0)  # before the step: not the step's
    with clock.step():
        gpu.order(2.0)
        gpu.order(1.0)
    with clock.step():
        pass
    assert clock.seconds == [3.0, 0.0]


def test_a_cuda_device_is_waited_for_and_its_memory_counted(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    device = Device("cuda")
    device.now()
    assert done == [torch.device("cuda")]
    with device.memory() as memory:
        assert done[1:] == ["emptied", "reset"]
    assert (memory.baseline_bytes, memory.peak_bytes) == (100, 350)


class Gpu:
    """Works off its orders one after another, while whoever gives them is already further."""

    def __init__(self):
        self.clock = 0.0

    def event(self, enable_timing):
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = self.gpu.clock

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_call_on_a_gpu_takes_what_lies_between_its_events(monkeypatch):
    """Milliseconds of the GPU: five before the call, two of it, and none of the asking."""
    gpu = Gpu()

    def work(milliseconds):
        gpu.clock += milliseconds

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: work(100))
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: work(5))
    assert Device("cuda").seconds(lambda: work(2)) == pytest.approx(0.002)


def test_a_call_on_the_processor_takes_what_the_clock_says(monkeypatch):
    ticks = iter([10.0, 13.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert CPU.seconds(lambda: None) == 3.5


@pytest.mark.parametrize("linux", [True, False])
def test_memory_of_the_processor_is_the_peak_within_the_block(linux, monkeypatch):
    if not linux:
        monkeypatch.setattr("benchmarks.device.RESET", Path("/not/there"))
    elif not RESET.exists():
        pytest.skip("the system keeps no peak that can begin anew")
    torch.ones(2**26)  # a larger one before it, which does not count
    with CPU.memory() as memory:
        held = torch.ones(2**24)
        time.sleep(0.5)  # a hundred looks, where it is looked at
        del held
    assert 0.9 * 2**26 < memory.peak_bytes - memory.baseline_bytes < 1.5 * 2**26


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.of() == CPU
    with pytest.raises(InputError, match="no CUDA device"):
        Device.of("cuda")


def test_a_gpu_that_is_there_is_taken_unless_the_processor_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Device.of().name == "cuda"
    assert Device.of("cpu") == CPU
