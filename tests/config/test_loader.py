"""Files, inheritance and overrides."""

from __future__ import annotations

import stat

import pytest

from covpool.config import Config, ConfigError, load_config
from covpool.config.legacy import IGNORED, SYNONYMS
from covpool.config.schema import options


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def error_of(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_values_of_a_file_replace_defaults(write):
    config = load_config(write("net_name: resnet50\nweight_decay: 1e-4\nlr_epochs: [5, 10]\nmean: ~\n"))
    assert config == Config(net_name="resnet50", weight_decay=1e-4, lr_epochs=(5, 10))


@pytest.mark.parametrize("text", ["", "---\n---\n---\n", "# nothing\n", "\ufeff"])
def test_empty_documents_give_the_defaults(write, text):
    assert load_config(write(text)) == Config()


def test_overrides_are_typed_by_the_schema(write):
    config = load_config(
        write("batch_size: 2\n"),
        [
            "--batch_size=3",
            "run_eval=False",
            "--use_label_smooth=false",
            "--weight_decay=1e-4",
            "--lr_max=1",
            "--lr_epochs=[1, 2]",
            "--num_workers=null",
            "--data_path=a=b: c",
            "--file_name=123",
            "--pooling_args={iterations: 3}",
            "--pooling_args.gate=sigmoid",
            "--batch_size=4",
        ],
    )
    assert config == Config(
        batch_size=4,
        run_eval=False,
        use_label_smooth=False,
        weight_decay=1e-4,
        lr_max=1.0,
        lr_epochs=(1, 2),
        data_path="a=b: c",
        file_name="123",
        pooling_args={"iterations": 3, "gate": "sigmoid"},
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--batch_size=0", ["command line: batch_size = 0", "1 <= batch_size <= 65536"]),
        ("--run_eval=yes", ["run_eval = 'yes'", "True or False"]),
        ("--run_eval=", ["run_eval = None", "True or False"]),
        ("--batch_sise=2", ["'batch_sise'", "closest: batch_size"]),
        ("--lr_epochs=[1", ["lr_epochs"]),
        ("--lr_epochs=30", ["lr_epochs = 30", "a list"]),
        ("--mean=!!python/name:os.system", ["mean", "tag"]),
        ("--momentum.x=1", ["momentum.x", "not a mapping"]),
        ("--pooling_args.a b=1", ["pooling_args"]),
        ("batch_size", ["'batch_size'", "--key=value"]),
        (5, ["5", "--key=value"]),
    ],
)
def test_a_bad_override_is_one_line(write, override, words):
    message = error_of(write(""), [override])
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nbatch_size: 0\n", ["config.yaml:1", "unknown key 'a'"]),
        ("seed: 1\nbatch_size: 0\n", ["config.yaml:2: batch_size = 0"]),
        ("batch_sise: 2\n", ["config.yaml:1", "closest: batch_size"]),
        ("seed: 1\nseed: 2\n", ["config.yaml:2", "'seed' is given twice: 2 here, 1 in line 1"]),
        ("run_eval: 1\nrun_eval: True\n", ["'run_eval' is given twice"]),
        ("pooling_args: {a: 1, a: 2}\n", ["'a' is given twice"]),
        ('run_eval: "False"\n', ["run_eval = 'False'", "without quotes"]),
        ("run_eval: yes\n", ["run_eval = 'yes'", "True or False"]),
        ("file_name: 12\n", ["file_name = 12", "a string"]),
        ("- 1\n", ["config.yaml:1", "mapping"]),
        ("text\n", ["config.yaml:1", "mapping"]),
        ("[a]: 1\n", ["config.yaml:1", "key"]),
        ("a: [1\n", ["config.yaml:"]),
        ("seed: &a 1\n", ["config.yaml:1", "anchors"]),
        ("seed: !!int 1\n", ["config.yaml:1", "tag"]),
        ("seed: !!python/object/apply:os.getpid []\n", ["config.yaml:1", "tag"]),
        ("pooling_args: {a: " + "[" * 50 + "]" * 50 + "}\n", ["nested too deeply"]),
        ("---\n---\n---\n---\n", ["4 documents"]),
        ("seed: 5\n---\n---\nseed: 5\n", ["config.yaml:4", "list"]),
        ("seed: 5\n---\n---\nsede: [5]\n", ["config.yaml:4", "closest: seed"]),
        ("base: 5\n", ["config.yaml:1", "base = 5"]),
        ("base: missing.yaml\n", ["missing.yaml", "no such file"]),
        ("warmup_epochs: 9\nepoch_size: 9\n", ["config.yaml: warmup_epochs = 9"]),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(write, text, words):
    message = error_of(write(text))
    assert all(word in message for word in words), message


def test_files_that_are_none(tmp_path):
    (tmp_path / "real.yaml").write_text("")
    assert "closest: " + str(tmp_path / "real.yaml") in error_of(tmp_path / "reel.yaml")
    assert "not a regular file" in error_of(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data_path: \xe9\n")
    assert "not UTF-8" in error_of(tmp_path / "latin.yaml")
    (tmp_path / "control.yaml").write_bytes(b"data_path: \x01\n")
    assert "control.yaml" in error_of(tmp_path / "control.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    assert "larger" in error_of(tmp_path / "large.yaml")
    assert "no such file" in error_of("a\nb.yaml")
    error_of("a\0b")
    error_of(None)


def test_a_base_is_inherited_key_by_key(write):
    write("seed: 1\nbatch_size: 8\npooling_args: {a: 1}\n---\nseed: base\n---\nseed: [1, 2]\n", "bases/root.yaml")
    write("base: root.yaml\nbatch_size: 16\n", "bases/middle.yaml")
    path = write("base: bases/middle.yaml\npooling_args: {b: 2}\n---\nbatch_size: own\n")
    assert load_config(path) == Config(seed=1, batch_size=16, pooling_args={"b": 2})
    message = error_of(path, ["--seed=3"])
    assert "command line: seed = 3: must be one of 1, 2" in message
    assert "root.yaml:7" in message


def test_bases_in_a_circle_are_named(write):
    write("base: b.yaml\n", "a.yaml")
    write("base: a.yaml\n", "b.yaml")
    path = write("base: a.yaml\n")
    message = error_of(path)
    assert message.count("a.yaml") == 2
    assert message.count("b.yaml") == 1


def test_choices_of_a_file_limit_values_in_any_spelling(write):
    path = write("mode_name: graph\n---\n---\nmode_name: [GRAPH_MODE]\nfile_format: [AIR, MINDIR]\n")
    assert load_config(path).mode_name == "GRAPH"
    assert "must be one of GRAPH (choices" in error_of(path, ["--mode_name=PYNATIVE"])


def test_a_dumped_configuration_loads_again(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    config = Config(
        data_path="True",
        file_name="1e-4",
        output_path="ü\n#: ",
        pooling_args={"a": "null", "b": [1e-7, None, True, ""]},
    )
    config.dump(path)
    assert load_config(path) == config
    config.replace(seed=2).dump(path)
    assert load_config(path).seed == 2
    assert [item.name for item in path.parent.iterdir()] == ["config.yaml"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_dump_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    Config().dump(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Config(seed=2).dump(path)
    assert load_config(path) == Config()
    assert [item.name for item in tmp_path.iterdir()] == ["config.yaml"]


def test_legacy_keys_are_named_in_one_warning(write, caplog):
    write("seed: 3\nparameter_server: False\nboost_mode: O1\n", "root.yaml")
    config = load_config(
        write(
            "base: root.yaml\noutput_dir: ../outputs\nlr: 0.8\nckpt_file: ''\nboost_mode: O0\n---\nnum_classes: x\n"
            "save_graphs: Whether to save graphs.\n"
        ),
        ["--num_classes=12"],
    )
    assert config == Config(seed=3, output_path="../outputs", lr_max=0.8, class_num=12)
    (record,) = caplog.records
    message = record.getMessage()
    for part in ("parameter_server (ignored)", "boost_mode (ignored)", "output_dir (read as output_path)"):
        assert message.count(part) == 1
    assert not any(key in message for key in ("ckpt_file", "num_classes", "save_graphs"))


def test_1001_classes_are_remarked(write, caplog):
    assert load_config(write("class_num: 1001\ndataset: imagenet\n")).class_num == 1001
    (record,) = caplog.records
    assert "1000 classes" in record.getMessage()


def test_a_file_without_legacy_keys_logs_nothing(write, caplog):
    load_config(write("class_num: 10\n"), ["--seed=2"])
    assert not caplog.records


def test_a_legacy_name_that_contradicts_the_proper_one_is_an_error(write):
    message = error_of(write("output_path: a\noutput_dir: b\n"))
    assert "config.yaml:2: output_dir = 'b' contradicts output_path = 'a'" in message
    assert load_config(write("output_path: a\noutput_dir: a\n")).output_path == "a"


def test_legacy_keys_are_distinct_from_ours():
    assert not IGNORED.keys() & set(options())
    assert not SYNONYMS.keys() & (set(options()) | IGNORED.keys())
    assert {*SYNONYMS.values(), *filter(None, IGNORED.values())} <= set(options())
