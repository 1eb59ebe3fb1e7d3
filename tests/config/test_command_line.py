"""Arguments, help, and exit codes of entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from covpool.cli import main
from covpool.config import Config, ConfigError
from covpool.config.command_line import Program, parse_args, run_entry_point
from covpool.config.legacy import IGNORED, OTHER_NAMES, SYNONYMS
from covpool.config.schema import options
from covpool.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 5\n---\nseed: The seed of this file.\n---\nseed: [5, 6]\n", encoding="utf-8")
    return path


def test_both_forms_of_an_option(file):
    config = parse_args(
        [f"--config_path={file}", "--batch_size", "4", "--lr_max=0", "--run_eval", "False"], Program("Train.")
    )
    assert config == Config(seed=5, batch_size=4, lr_max=0, run_eval=False)
    assert parse_args(["--config_path", str(file), "--seed=6", "--lr_init", "0.5"], Program("Train.")).lr_init == 0.5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config_path=FILE is missing"]),
        (["--confg_path=x"], ["--confg_path", "closest: --config_path"]),
        (["--config_path=FILE", "--batchsize=4"], ["'--batchsize'", "closest: --batch_size"]),
        (["--config_path=FILE", "--epochs=4"], ["'--epochs'", "closest: --epoch_size"]),
        (["--config_path=FILE", "--initial-checkpoint=x"], ["closest: --pre_trained"]),
        (["--config_path=FILE", "--plateau=2"], ["unknown option '--plateau' (plateau is not there yet)"]),
        (["--config_path=FILE", "--device_target=cuda"], ["one of CPU, GPU, Ascend (closest: GPU)"]),
        (["--config_path=FILE", "--optimizer=RMSprop"], ["adamw, lamb, lion (RMSprop is not there yet)"]),
        (["--config_path=FILE", "--batch_size"], ["'--batch_size' has no value"]),
        (["--config_path=FILE", "--batch_size", "--seed=5"], ["'--batch_size' has no value"]),
        (["--config_path=FILE", "seed=5"], ["'seed=5'", "--key=value"]),
        (["--config_path=FILE", "-x"], ["'-x'"]),
        (["--config_path=FILE", "--"], ["'--'"]),
        (["--config_path=FILE", "--seed=7"], ["seed = 7", "must be one of 5, 6"]),
        (["--config_path="], ["not a regular file"]),
        (["--config_path=FILE", "--output_path=\udcff"], ["output_path = '\\udcff'", "UTF-8"]),
        (["--config_path=\udcff.yaml"], ["no such file"]),
        (["--config_path=FILE", "--base=x"], ["--base"]),
    ],
)
def test_bad_usage_is_one_line(file, argv, words):
    with pytest.raises(ConfigError) as caught:
        parse_args([text.replace("FILE", str(file)) for text in argv], Program("Train."))
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_other_libraries_call_things_is_up_to_date():
    """A name that is a key here needs no entry, and one that is meant must be there."""
    known = {*options(), *(str(choice) for option in options().values() for choice in option.choices)}
    assert not OTHER_NAMES.keys() & {*options(), *SYNONYMS, *IGNORED}
    assert {meant for meant in OTHER_NAMES.values() if meant} <= known


def test_required_keys(file):
    argv = [f"--config_path={file}", "--data_path=images"]
    with pytest.raises(ConfigError, match="--checkpoint_file_path is missing"):
        parse_args(argv, Program("Evaluate.", required=["data_path", "checkpoint_file_path"]))
    assert parse_args(argv, Program("Train.", required=["data_path"])).data_path == "images"


def test_help_shows_every_key_with_the_values_of_the_file(file, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help", f"--config_path={file}", "--batch_size=3"], Program("Trains a network.", ["data_path"]))
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--config_path=FILE --data_path=DATA_PATH" in text
    assert "Trains a network." in text
    for option in options().values():
        assert f"\n  --{option.name}=" in text
        assert f"\n{option.section}:" in text
    assert "The seed of this file." in text
    assert "allowed: 5, 6" in text
    assert f"default: 5 ({file}:1)" in text
    assert "default: 3 (command line)" in text
    assert "--mode_name=GRAPH|PYNATIVE" in text
    assert "--height=INT|null" in text


def test_help_without_a_file_shows_the_built_in_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_args(["-h", "--data_path=x"], Program("Trains a network."))
    assert "default: 64\n" in capsys.readouterr().out


def test_the_short_help_shows_the_usual_keys(capsys):
    program = Program("Trains.", required=["data_path"], usual=["pooling", "seed"], name="covpool train")
    for word, shown in (("--help", {"data_path", "pooling", "seed"}), ("--help=all", set(options()))):
        with pytest.raises(SystemExit):
            parse_args([word], program)
        text = capsys.readouterr().out
        assert text.startswith("usage: covpool train --config_path=FILE --data_path=DATA_PATH")
        assert {line[4:].partition("=")[0] for line in text.splitlines() if line.startswith("  --")} == shown


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("data_path: bad"), 2, "error: data_path: bad"),
        (UserError("disk is full"), 1, "error: disk is full"),
        (UserError("interrupted by SIGTERM", exit_code=143), 143, "error: interrupted by SIGTERM"),
        (
            RuntimeError("first\nsecond\n\nC++ calls\n"),
            1,
            "error: RuntimeError: first second (--debug=True shows where)",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(file, capsys, error, code, line):
    def main(config):
        raise error

    assert run_entry_point(main, [f"--config_path={file}"], Program("Train.")) == code
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_debug_shows_the_traceback(file, capsys):
    def main(config):
        raise ValueError("why")

    assert run_entry_point(main, [f"--config_path={file}", "--debug=True"], Program("Train.")) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("error: ValueError: why\n")


def test_success_and_own_exit_codes(file):
    argv = [f"--config_path={file}"]
    assert run_entry_point(lambda config: None, argv, Program("Train.")) == 0
    assert run_entry_point(lambda config: 3, argv, Program("Train.")) == 3
    assert run_entry_point(lambda config: None, ["--help_me"], Program("Train.")) == 2


def test_the_package_does_not_load_mindspore():
    code = "import sys, covpool.config.command_line, covpool.config.modelarts; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_file_may_be_optional_and_keys_know_whether_they_were_given(file):
    config = parse_args(["--batch_size=64"], Program("Evaluate.", config_optional=True))
    assert config == Config() and config.says("batch_size") and not config.says("seed")
    config = parse_args(
        [f"--config_path={file}", "--eval_crop_ratio=0.875"], Program("Evaluate.", config_optional=True)
    )
    assert [key for key in options() if config.says(key)] == ["eval_crop_ratio", "seed"]
    assert config.replace(batch_size=3).says("batch_size") and Config(seed=2).says("seed")
    with pytest.raises(ConfigError, match="no file and command line: nesterov"):
        parse_args(["--nesterov=True", "--momentum=0"], Program("Evaluate.", config_optional=True))


@pytest.mark.parametrize("command", [["predict", "--file=net.onnx", "--images=x"], ["scaling"]])
def test_options_of_other_commands_have_the_limits_of_the_keys(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--batch_size", "4294967296"])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "batch_size = 4294967296: must be an integer with 1 <= batch_size <= 65536" in line
