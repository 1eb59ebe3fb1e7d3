"""Signals: noted where they are deferred, fatal elsewhere, whatever holds Python's lock."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Callable

import pytest

from covpool.runtime.signals import SIGNALS

START = """
import ctypes, os, signal, sys, time
from covpool.runtime.distributed import _interruptible
from covpool.runtime.signals import StopRequest

def wait_with_the_lock():
    print("ready", flush=True)
    ctypes.PyDLL(None).sleep(60)  # as MindSpore waits for its scheduler: the lock of Python is not given back

def wait_for(condition):
    print("ready", flush=True)
    while not condition():
        time.sleep(0.01)

stop = StopRequest()
"""
TILL_CTRL_C = "\ntry:\n    wait_for(bool)\nexcept KeyboardInterrupt:\n    sys.exit(7)"
DEFER = START + "with stop.listening(), stop.deferring():\n"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run code until it says that it is ready."""
    started = []

    def start(code: str, *before: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_process_that_waits_in_a_call_before_its_training(start: Start, number: signal.Signals) -> None:
    process = start(START + "with stop.listening():\n    wait_with_the_lock()")
    process.send_signal(number)
    assert process.wait(5) == -number


def test_ctrl_c_ends_a_rank_that_listens_to_nothing_but_waits_for_others(start: Start) -> None:
    process = start(START + "with _interruptible():\n    wait_with_the_lock()")
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == -signal.SIGINT
    process = start(
        START + "with _interruptible():\n    pass\ntry:\n    wait_for(bool)\nexcept KeyboardInterrupt:\n    sys.exit(7)"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 7


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_noted_and_a_second_one_ends_the_process(start: Start, number: signal.Signals) -> None:
    process = start(DEFER + "    wait_for(lambda: stop.received)\n    print(stop.received)\n    wait_for(bool)")
    assert process.stdout is not None
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.value}\n" and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM


def test_an_ignored_hangup_stays_ignored(start: Start) -> None:
    process = start(DEFER + "    wait_for(lambda: stop.received)\n    print(stop.received)", "nohup")
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == f"{signal.SIGUSR1.value}\n" and process.wait(5) == 0


def test_after_its_block_a_signal_has_its_usual_effect(start: Start) -> None:
    process = start(DEFER + "    pass" + TILL_CTRL_C)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(5) in (-signal.SIGUSR1, 128 + signal.SIGUSR1)
