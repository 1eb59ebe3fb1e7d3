"""Whatever the input: a valid configuration or one ConfigError in one line, and no code is run."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covpool.config import Config, ConfigError, load_config
from covpool.config.command_line import Program, parse_args
from covpool.config.legacy import IGNORED, SYNONYMS
from covpool.config.schema import options

PROPERTY = settings(deadline=None, max_examples=150)

KEYS = st.sampled_from([*options(), *SYNONYMS, *sorted(IGNORED), "base", "<<"]) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates()
PLAIN = st.recursive(
    SCALARS,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=4), items, max_size=3),
    max_leaves=6,
)
FRAGMENTS = st.sampled_from(
    [
        "!!python/object/apply:os.system ['touch MARKER']",
        "!!python/name:os.system",
        "!!python/object/new:type [x, [], {}]",
        "__import__('os').system('touch MARKER')",
        "!!int x",
        "!!bool x",
        "!!timestamp x",
        "!!binary '*'",
        "! x",
        "2001-99-99",
        "9" * 5000,
        "&a [*a]",
        "&a {<<: *a}",
        "*a",
        "[" * 3000,
        "? [a]\n: b",
        "? ",
        "{",
        "}",
        "---\n",
        "...\n",
        "%YAML 9.9\n---\n",
        "%TAG ! x\n",
        "|\n x",
        ">",
        '"\\ud800"',
        "'",
        '"',
        "\t",
        "\n",
        ": ",
        "- ",
        "#",
        "base: .",
        "base: fuzz.yaml",
        "base: /dev/null",
        "base: 'a\n\n  b'",
        "seed: ",
        "pooling_args: ",
        "lr_epochs: ",
        "run_eval: ",
        ".inf",
        ".nan",
        "null",
        "1e999",
        "\x85",
        "\ufeff",
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def _no_traces(folder, monkeypatch):
    monkeypatch.chdir(folder)
    yield
    assert {item.name for item in folder.iterdir()} <= {"fuzz.yaml"}


def load_bytes(folder, content, overrides=()):
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    return outcome(lambda: load_config(path, overrides))


def outcome(call):
    """Returns the configuration or None for a ConfigError; any other exception fails the test."""
    try:
        config = call()
    except ConfigError as error:
        assert str(error)
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1500
        return None
    assert isinstance(config, Config)
    assert Config(**config.to_dict()) == config
    return config


@PROPERTY
@given(st.binary(max_size=60))
def test_any_bytes(folder, content):
    load_bytes(folder, content)


@PROPERTY
@given(st.text(max_size=60))
def test_any_text(folder, text):
    load_bytes(folder, text.encode("utf-8", "surrogatepass"))


@PROPERTY
@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=6).map("".join))
@example("pooling_args: {a: &a [1], b: *a}")
def test_hostile_fragments(folder, text):
    load_bytes(folder, text.encode("utf-8", "surrogatepass"))


@PROPERTY
@given(st.lists(st.dictionaries(KEYS, PLAIN, max_size=4), max_size=4))
def test_any_yaml_documents(folder, documents):
    load_bytes(folder, yaml.safe_dump_all(documents).encode())


@PROPERTY
@given(st.lists(st.tuples(KEYS, FRAGMENTS | st.text(max_size=20) | PLAIN.map(repr)), max_size=3), st.booleans())
@example([("pooling_args.a", "!!python/object/apply:os.system ['touch MARKER']")], True)
@example([("seed", "__import__('os').system('touch MARKER')")], True)
@example([("lr_epochs", "__import__('os').system('touch MARKER')")], False)
def test_any_overrides(folder, pairs, dashes):
    load_bytes(folder, b"", [f"{'--' if dashes else ''}{key}={value}" for key, value in pairs])


@PROPERTY
@given(st.lists(FRAGMENTS | KEYS | KEYS.map("--{}".format) | st.text(max_size=9) | st.just("--help"), max_size=4))
def test_any_command_line(folder, argv):
    (folder / "fuzz.yaml").write_text("", encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        try:
            outcome(lambda: parse_args(["--config_path=fuzz.yaml", *argv], Program("Train.")))
        except SystemExit as leaving:
            assert leaving.code == 0


def values_of(option):
    """Values that a key accepts by type; bounds and combinations may still reject them."""
    texts = st.text(st.characters(exclude_characters="\0"), max_size=12)
    plain = {
        "str": texts,
        "int": st.integers(0, 2**32 - 1) | st.integers(0, 9),
        "float": st.floats(0, allow_nan=False, allow_infinity=False) | st.floats(0, 1),
    }
    if option.choices:
        return st.sampled_from(option.choices)
    if option.kind.startswith("list of "):
        size = {"min_size": option.length, "max_size": option.length} if option.length else {"max_size": 4}
        return st.lists(plain[option.kind.rpartition(" ")[2]], **size)
    scalars = st.none() | st.booleans() | plain["int"] | plain["float"] | texts
    return {
        "bool": st.booleans(),
        "dict": st.dictionaries(st.from_regex("[a-z_]{1,6}", fullmatch=True), scalars | st.lists(scalars, max_size=2)),
        **plain,
    }[option.kind]


@PROPERTY
@given(st.data())
def test_a_valid_configuration_survives_dump_and_load(folder, data):
    names = data.draw(st.lists(st.sampled_from(sorted(options())), max_size=6, unique=True))
    config = Config()
    for name in names:
        try:
            config = config.replace(**{name: data.draw(values_of(options()[name]))})
        except ConfigError:
            continue
    config.dump(folder / "fuzz.yaml")
    assert load_config(folder / "fuzz.yaml") == config
