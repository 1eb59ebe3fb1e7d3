"""Schedules against tables worked out by hand from the formulas, PyTorch's and timm's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.torch_peers import timm
from covpool.config import Config, ConfigError
from covpool.training.recipe import recipe_rates
from covpool.training.schedules import PER_EPOCH, PER_STEP, learning_rates


def per_epoch(mode: str, epochs: int, **arguments: object) -> np.ndarray:
    return learning_rates(mode, lr_max=arguments.pop("lr_max", 0.1), epochs=epochs, steps_per_epoch=1, **arguments)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("poly", [0.8, 0.45, 0.2, 0.05]),
        ("cosine", [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]),
    ],
)
def test_decay_from_lr_max_to_zero(mode: str, expected: list[float]) -> None:
    np.testing.assert_allclose(per_epoch(mode, 4, lr_max=0.8), expected, rtol=1e-6)


def test_cosine_decays_from_lr_max_after_the_warm_up() -> None:
    rates = learning_rates("cosine", lr_max=0.8, lr_init=0.2, epochs=4, steps_per_epoch=3, warmup_epochs=2)
    assert rates[6] == np.float32(0.8) and (np.diff(rates[6:]) < 0).all()


def test_linear_and_cosine_end_towards_lr_end() -> None:
    for mode in ("linear", "cosine"):
        rates = learning_rates(mode, lr_max=0.8, lr_end=0.1, epochs=100, steps_per_epoch=10)
        assert 0.1 < rates[-1] < 0.102


def test_cosine_with_warm_up_and_cool_down_is_that_of_timm() -> None:
    """timm's rate of the step after in the warm-up, which therefore ends at lr_max; then its rate of the same step."""
    rates = learning_rates(
        "cosine",
        lr_max=0.8,
        lr_init=0.2,
        lr_end=0.05,
        epochs=9,
        steps_per_epoch=4,
        warmup_epochs=2,
        cooldown_epochs=3,
    )
    group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler = timm.scheduler.CosineLRScheduler(
        group, t_initial=16, lr_min=0.05, warmup_t=8, warmup_lr_init=0.2, warmup_prefix=True, t_in_epochs=False
    )
    theirs = []
    for step in range(1, 37):
        theirs.append(group.param_groups[0]["lr"])
        scheduler.step_update(step)
    np.testing.assert_allclose(rates[:7], theirs[1:8], rtol=1e-6)
    np.testing.assert_allclose(rates[8:], theirs[8:], rtol=1e-6)
    assert rates[7] == rates[8] == np.float32(0.8) and (rates[24:] == np.float32(0.05)).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 77])
def test_one_cycle_is_that_of_pytorch(steps: int) -> None:
    for given, factors in (({}, {}), ({"lr_init": 0.2, "lr_end": 0.001}, {"div_factor": 4, "final_div_factor": 200})):
        group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(group, 0.8, steps, cycle_momentum=False, **factors)
        theirs = []
        for step in range(steps):
            theirs.append(group.param_groups[0]["lr"])
            group.step()
            if step < steps - 1:
                scheduler.step()
        ours = learning_rates("one_cycle", lr_max=0.8, epochs=1, steps_per_epoch=steps, **given)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("mode", [*PER_STEP, *PER_EPOCH["resnet"]])
def test_the_last_epochs_stay_at_lr_end(mode: str) -> None:
    arguments = {"lr_max": 0.8, "lr_end": 0.01, "steps_per_epoch": 3}
    rates = learning_rates(mode, epochs=8, cooldown_epochs=2, **arguments)
    assert (rates[18:] == np.float32(0.01)).all()
    whole = mode in ("step", "steps", *PER_EPOCH["resnet"])  # those count from the start
    np.testing.assert_array_equal(rates[:18], learning_rates(mode, epochs=8 if whole else 6, **arguments)[:18])


def test_power_of_poly() -> None:
    np.testing.assert_allclose(per_epoch("poly", 4, lr_max=0.8, power=0.5), 0.8 * np.sqrt([1, 0.75, 0.5, 0.25]))


def test_the_configured_rates() -> None:
    config = Config(lr_base=0.4, lr_base_size=256, lr_decay_mode="poly", lr_power=1.0, epoch_size=4, lr_end=0.01)
    np.testing.assert_allclose(recipe_rates(config, 1, 512), [0.8, 0.6, 0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(recipe_rates(config, 1, 128), [0.2, 0.15, 0.1, 0.05], rtol=1e-6)
    cooled = config.replace(cooldown_epochs=2, warmup_epochs=1, lr_factor=10.0, lr_decay_mode="linear")
    np.testing.assert_allclose(recipe_rates(cooled, 1, 256), [4, 4, 0.1, 0.1], rtol=1e-6)
    trial = cooled.replace(epoch_size=1)
    np.testing.assert_allclose(recipe_rates(trial, 2, 256), [4, 2.05], rtol=1e-6)


def test_ports_steps_and_step() -> None:
    steps, step = per_epoch("steps", 10, lr_max=1.0), per_epoch("step", 10, lr_max=1.0)
    np.testing.assert_allclose(steps, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    np.testing.assert_allclose(step, [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 5e-5], rtol=1e-6)


def test_milestones_replace_the_ports_points() -> None:
    rates = per_epoch("steps", 6, lr_max=1.0, milestones=(2, 5), gamma=0.5)
    np.testing.assert_allclose(rates, [1, 1, 0.5, 0.5, 0.5, 0.25])


def test_cvpr_2020_for_resnet() -> None:
    norm, fast, adju = (per_epoch(mode, n) for mode, n in (("lr_norm", 100), ("lr_fast", 30), ("lr_adju", 50)))
    np.testing.assert_allclose(norm[[0, 29, 30, 60, 90]], [0.1, 0.1, 0.01, 0.001, 0.0001], rtol=1e-5)
    np.testing.assert_allclose(fast[[0, 1, 29]], [0.1 * (53 / 52) ** 11, 0.1, 0.1 * (24 / 52) ** 11], rtol=1e-5)
    np.testing.assert_allclose(adju[[0, 1, 49]], [0.1 * (50 / 49) ** 2, 0.1, 0.1 / 49**2], rtol=1e-5)


def test_cvpr_2020_for_mobilenetv2() -> None:
    norm = per_epoch("lr_norm", 100, lr_max=0.045, family="mobilenetv2")
    fast = per_epoch("lr_fast", 100, lr_max=0.06, family="mobilenetv2")
    adju = per_epoch("lr_adju", 150, lr_max=0.06, family="mobilenetv2")
    np.testing.assert_allclose(norm[[0, 1, 50]], [0.045, 0.0441, 0.045 * 0.98**50], rtol=1e-5)
    np.testing.assert_allclose(fast[[0, 10]], [0.06, 0.06 * 0.92**10], rtol=1e-5)
    np.testing.assert_allclose(adju[[0, 25, 50, 100, 149]], [0.06, 0.035, 0.01, 0.001, 2.98e-5], rtol=1e-3)


def test_the_ports_cosine_is_a_line_times_a_cosine() -> None:
    arguments = {"lr_max": 0.8, "epochs": 100, "steps_per_epoch": 10}
    np.testing.assert_allclose(learning_rates("port_cosine", **arguments)[0], 0.8 * (1 + 1e-5), rtol=1e-6)
    for mode, middle in (("port_cosine", 0.214), ("cosine", 0.433)):
        assert learning_rates(mode, warmup_epochs=5, **arguments)[500] == pytest.approx(middle, abs=5e-4)
    # After a warm-up the released code counts the line and the cosine from step 0 over the steps that are left.
    rates = learning_rates("port_cosine", lr_max=0.8, lr_init=0.2, epochs=4, steps_per_epoch=1, warmup_epochs=1)
    expected = [0.8, *(0.8 * ((4 - i) / 3 * 0.5 * (1 + math.cos(0.94 * math.pi * i / 3)) + 1e-5) for i in (1, 2, 3))]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize(("mode", "last"), [("lr_fast", 53), ("lr_adju", 50)])
def test_a_course_that_would_reach_zero_is_refused_and_can_be_stretched(mode: str, last: int) -> None:
    assert per_epoch(mode, last)[-1] > 0
    with pytest.raises(ValueError, match=f"{mode} is 0 from epoch {last} on"):
        per_epoch(mode, last + 1)
    with pytest.raises(ValueError, match=f"{mode} is 0"):
        per_epoch(mode, 10, designed_epochs=last + 10)
    stretched = per_epoch(mode, 300, designed_epochs=last)
    assert (stretched > 0).all() and (np.diff(stretched) <= 0).all()
    # The configuration says so before anything is opened, for the same lengths.
    assert Config(lr_decay_mode=mode, epoch_size=last).epoch_size == last
    assert Config(lr_decay_mode=mode, epoch_size=300, lr_designed_epochs=last)
    for changes in ({"epoch_size": last + 1}, {"lr_designed_epochs": last + 1}):
        with pytest.raises(ConfigError, match=f"lr_decay_mode = {mode}: its rate is 0 from epoch {last} on"):
            Config(lr_decay_mode=mode).replace(**changes)
    assert Config(lr_decay_mode=mode, epoch_size=300, lr_family="mobilenetv2")


@pytest.mark.parametrize("designed", [30, 50, 100, 150])
def test_stretched_milestones_are_where_exact_arithmetic_puts_them(designed: int) -> None:
    for epochs in range(1, 201):
        rates = per_epoch("lr_norm", epochs, lr_max=1.0, designed_epochs=designed)
        decays = np.arange(epochs) * designed // (epochs * 30)
        np.testing.assert_allclose(rates, 0.1**decays, rtol=1e-6, err_msg=f"{designed} -> {epochs}")


@pytest.mark.parametrize("mode", [mode for mode in (*PER_STEP, *PER_EPOCH["resnet"]) if mode != "one_cycle"])
def test_every_schedule_begins_with_the_warm_up(mode: str) -> None:
    arguments = {"lr_max": 0.8, "epochs": 8, "steps_per_epoch": 3}
    rates = learning_rates(mode, lr_init=0.2, warmup_epochs=2, **arguments)
    np.testing.assert_allclose(rates[:6], [0.3, 0.4, 0.5, 0.6, 0.7, 0.8], rtol=1e-6)
    if mode not in ("linear", "poly", "cosine", "port_cosine"):  # those decay over the steps that are left
        np.testing.assert_array_equal(rates[6:], learning_rates(mode, **arguments)[6:])


def test_epoch_schedules_stretch_to_another_length() -> None:
    short = per_epoch("lr_norm", 10, designed_epochs=100)
    np.testing.assert_allclose(short, [0.1] * 3 + [0.01] * 3 + [0.001] * 3 + [0.0001], rtol=1e-5)


@pytest.mark.parametrize("mode", PER_STEP)
def test_length_and_type(mode: str) -> None:
    rates = learning_rates(mode, lr_max=0.1, epochs=7, steps_per_epoch=11, warmup_epochs=int(mode != "one_cycle"))
    assert rates.shape == (77,) and rates.dtype == np.float32 and np.isfinite(rates).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "cosin"}, "unknown schedule 'cosin'"),
        ({"family": "vgg"}, "unknown family 'vgg'"),
        ({"epochs": 0}, "at least 1"),
        ({"warmup_epochs": 5}, r"warmup_epochs must be in \[0, 5\)"),
        ({"warmup_epochs": 3, "cooldown_epochs": 2}, r"cooldown_epochs must be in \[0, 2\)"),
        ({"mode": "one_cycle", "warmup_epochs": 1}, "one_cycle has its own warm-up"),
    ],
)
def test_errors_say_what_is_allowed(arguments: dict[str, object], message: str) -> None:
    defaults: dict[str, object] = {"mode": "linear", "lr_max": 0.1, "epochs": 5, "steps_per_epoch": 1}
    with pytest.raises(ValueError, match=message):
        learning_rates(**{**defaults, **arguments})
