"""Faults of what a user writes: command lines, YAML files."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import yaml

from benchmarks.fault_families.inventory import epochs_of
from benchmarks.fault_families.material import EPOCHS, config, images
from benchmarks.fault_families.trial import Trial

_VALUES = (
    *("", " ", "0", "-1", "1", "2", "3.5", "1e-30", "1e308", "1e400", "nan", "inf", "-inf", "abc", "None", "null"),
    *("true", "False", "[1,2]", "[0.5,0.5,0.5]", "[0.5, -1, nan]", "{a: 1}", "{}", "[[[[", "}", "1 2", "é", "\udcff"),
    *("a\nb", "4294967296", "99999999999999999999999", "-9223372036854775809", "0x10", "1_000", "'", '"', "--", "%s"),
    *("!!python/object/apply:os.system [touch pwned]", "!!python/name:os.system", "*a", "&a b", "<<", "~", "@"),
    *("`touch pwned`", "$(touch pwned)", "; touch pwned", "x" * 5000, "0.1.2", "１２", "٣", "\x1b[31m", "\u202e"),  # noqa: RUF001
    *(
        "/proc/self/fd/0",
        "/proc/self/mem",
        "/proc/1/x",
        "no/such/file",
        "auto",
        "[" * 3000,
        "1:30",
        "0o17",
        "12e03",
        "-0",
    ),
)
_PLAUSIBLE = {
    "pooling": ("gap", "gcp", "fast_mpn", "mpn", "sigme", "apn", "dropcov"),
    "net_name": ("resnet10", "resnet18", "resnet50", "resnet", "vgg16"),
    "lr_decay_mode": ("linear", "poly", "cosine", "step", "steps", "lr_norm", "lr_fast", "lr_adju"),
    "dataset": ("imagenet2012", "mindrecord", "fashion_mnist", "cifar10", "cifar100"),
    "device_target": ("CPU", "GPU", "Ascend", "TPU", "cpu"),
    "amp_level": ("O0", "O1", "O2", "O3", "auto", "O4"),
}
_OTHERS = (
    "learning_rate",
    "lr",
    "parameter_server",
    "use_thor",
    "epochs",
    "no_such_key",
    "",
    "pooling_args.iterations",
)


def command_lines(trial: Trial) -> None:
    """A random command line. It is refused in one line, or does what it says."""
    rng = trial.rng
    command = rng.choice(("train",) * 6 + ("eval",) * 6 + ("export",) * 3 + ("other",) * 5)
    if command == "other":
        _other_command(trial)
        return
    given = {}
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        key = rng.choice(_keys())
        given[key] = rng.choice(
            (*_PLAUSIBLE.get(key, ()), *rng.choices(_VALUES, k=max(3, len(_PLAUSIBLE.get(key, ())))))
        )
    words = [f"--{key}={value}" for key, value in given.items()]
    if rng.random() < 0.15:
        words.append(
            rng.choice(("--", "-x", "stray", "--epoch_size", "--=1", "=", "--debug=maybe", "\udcfe", "-h", "--é=1"))
        )
    base = [config(trial.material)]
    if rng.random() < 0.1:
        base = rng.choice(([], ["--config_path="], ["--config_path=/dev/null"], ["--config_path=."], base * 2))
    fixed = ["--mode_name=PYNATIVE", *(["--epoch_size=1"] if command == "train" else [])]
    if command != "train":
        last = trial.material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt"
        fixed += [f"--checkpoint_file_path={last}", f"--data_path={trial.material / 'data'}"]
    trial.fault = f"{command} {' '.join(words)}"[:200]
    before = set(trial.inventory())
    ended = trial.run(command, *base, *fixed, *words, codes=(0, 1, 2), writes=_made(given), spoils=True, timeout=180)
    _nothing_executed(trial)
    if ended.code == 0 and command == "train" and "-h" not in words:
        _trained_as_told(trial, given)
    elif ended.code == 0 and "-h" not in words:
        trial.check(
            ("result: " if command == "eval" else "exported: ") in ended.out, "wrong", "success without a result"
        )
    elif ended.code == 2:
        trial.check(set(trial.inventory()) == before, "lost", "wrong usage, but something was written")


def _keys() -> list[str]:
    from covpool.config.schema import options

    return [*options(), *_OTHERS]


def _made(given: dict[str, str]) -> list[str]:
    """First parts of the names that a command line asks for."""
    named = [
        given[key] for key in ("output_path", "file_name", "result_path", "load_path", "data_path") if key in given
    ]
    return ["run", "net.mindir", "net.onnx", *(p for n in named for p in (n.split("/")[0], f"{n}.mindir", f"{n}.onnx"))]


def _nothing_executed(trial: Trial) -> None:
    trial.check(not list(trial.folder.rglob("pwned*")), "code execution", "a value was executed")


def _trained_as_told(trial: Trial, given: dict[str, str]) -> None:
    """What a training that ended well says of itself, read with PyYAML, is what it was told."""
    found = [path.parent for path in trial.work.rglob("config.yaml")]
    trial.check(len(found) == 1, "wrong", f"success with {len(found)} run folders")
    for run in found[:1]:
        written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        for key, value in given.items():
            trial.check(
                _agrees(written.get(key, value), value), "wrong", f"{key}={value!r} became {written.get(key)!r}"
            )
        losses = [record["loss"] for record in epochs_of(run)]
        fine = bool(losses) and all(loss is not None and math.isfinite(loss) for loss in losses)
        trial.check(fine, "wrong", f"success with the losses {losses}")


def _agrees(written: Any, given: str) -> bool:
    """Whether a value is the number that was given; what is no plain number is not compared."""
    if isinstance(written, bool) or not isinstance(written, (int, float)):
        return True
    with suppress(ValueError):
        return float(given) == float(written)
    return True


def _other_command(trial: Trial) -> None:
    rng, material = trial.rng, trial.material
    data, last = str(material / "data"), str(material / "run" / "checkpoints" / "epoch_0001.ckpt")
    commands: dict[str, list[str]] = {
        "predict": ["--file", str(material / "net.onnx"), "--images", *images(material)],
        "check-data": ["--data_path", data],
        "convert": ["--source", last, "--to", "safetensors", "--output", "out.safetensors"],
        "pack": ["--data_path", data, "--output", "packed"],
        "corrupt": ["--images", data, "--output", "corrupted"],
        "complexity": [],
        "compare": [str(material / "run")],
    }
    name = rng.choice(list(commands))
    words = commands[name]
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(4)
        place = rng.randrange(len(words) + 1)
        if kind == 0 and words:
            words[place % len(words)] = rng.choice(_VALUES)
        elif kind == 1 and words:
            del words[place % len(words)]
        elif kind == 2:
            words.insert(place, rng.choice(("--no_such", "--top", "--batch_size", "--workers", "--json", "-h", "--to")))
        else:
            words.append(rng.choice(("--top=0", "--batch_size=4294967296", "--workers=-1", "--workers=2", "--notes")))
    if rng.random() < 0.1:
        name = rng.choice(("", "trian", "--version", "é", "predict;ls", "\udcff"))
    words = [word for word in words if "\0" not in word]
    trial.fault = f"{name} {' '.join(words)}"[:200]
    written = ("out.safetensors", "packed", "corrupted", *(word.split("/")[0] for word in words))
    trial.run(name, *words, writes=written, spoils=True, listed=True, silent=(2,) if name == "check-data" else ())
    _nothing_executed(trial)


def yaml_files(trial: Trial) -> None:
    """A damaged or hostile YAML file. What is accepted is what PyYAML reads in it; nothing is executed."""
    rng = trial.rng
    text = (trial.material / "small.yaml").read_text()
    content, trial.fault = _damaged_yaml(trial, text)
    path = trial.work / "file.yaml"
    if content is not None:
        path.write_bytes(content)

    def load() -> None:
        from covpool.config import load_config

        print(json.dumps(load_config("file.yaml", ["--seed=2"] if rng.random() < 0.2 else []).to_dict()))

    command = trial.spawn(load)
    command.wait(20)
    ended = trial.judge(command, codes=(0, 2), writes=())
    _nothing_executed(trial)
    if ended.code != 0 or content is None:
        return
    loaded = json.loads(ended.out)
    try:
        values = next(iter(yaml.safe_load_all(content)), None)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        trial.problem("wrong", f"accepted, but PyYAML says {error}")
        return
    for key, value in (values or {}).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key in loaded and key != "seed":
            trial.check(_agrees(loaded[key], str(value)), "wrong", f"{key}: {value!r} became {loaded[key]!r}")


def _damaged_yaml(trial: Trial, text: str) -> tuple[Any, str]:
    rng = trial.rng
    lines = text.splitlines()
    place = rng.randrange(1, len(lines))
    key = lines[place].split(":")[0]
    value = rng.choice(_VALUES)
    bomb = "a: &a [x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 10)}]\n" for i in range(9))
    kinds = {
        "value": "\n".join([*lines[:place], f"{key}: {value}", *lines[place + 1 :]]),
        "two values": "\n".join([*lines, f"{rng.choice(_keys())}: {value}", f"{rng.choice(_keys())}: {value}"]),
        "key": "\n".join([*lines, f"{value}: 1"]),
        "line away": "\n".join([*lines[:place], *lines[place + 1 :]]),
        "key twice": "\n".join([*lines, f"{key}: {value}"]),
        "indented": "\n".join(
            [*lines[:place], rng.choice(("  ", "\t", "\u00a0", "- ")) + lines[place], *lines[place + 1 :]]
        ),
        "bomb": text + bomb,
        "deep": text + "pooling_args: " + "{a: " * (depth := rng.choice((10, 200, 3000))) + "1" + "}" * depth,
        "tag": text
        + f"{key}: !!{rng.choice(('python/object/apply:os.system', 'binary', 'set', 'timestamp'))} touch pwned",
        "merge": text + "<<: {seed: 3}\n",
        "circle": text + "pooling_args: &a {x: *a}\n",
        "documents": text
        + "---\n" * rng.randrange(1, 6)
        + rng.choice(("", "seed: [1]\n", "x\n", "- 1\n", "{seed: {}}\n")),
        "base": text.replace(
            "base/small_images.yaml", rng.choice(("file.yaml", "/dev/zero", ".", "x", "[1]", "null", ""))
        ),
        "large": text + "# " + "x" * rng.choice((10**5, 10**7)),
        "comment only": "# nothing\n",
        "scalar": value,
        "long key": text + f"? [{'a, ' * 100}b]\n: 1\n",
        "directive": "%YAML 9.9\n%TAG ! tag:x\n---\n" + text,
    }
    name = rng.choice([*kinds, "value", "value", "two values", "bytes", "bytes", "encoding", "no file"])
    if name == "bytes":
        content = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content), "bytes changed"
    if name == "encoding":
        code = rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-16-be"))
        return (text + "# é\n").encode(code), f"encoding {code}"
    if name == "no file":
        kind = rng.choice(("fifo", "folder", "link to itself", "link to /dev/zero", "missing"))
        _irregular(trial, kind)
        return None, kind
    shown = f": {key} {value!r}"[:80] if name in ("value", "key", "two values", "key twice", "scalar") else ""
    return kinds[name].encode("utf-8", "surrogateescape"), name + shown


def _irregular(trial: Trial, kind: str) -> None:
    from benchmarks.fault_families.foreign import irregular

    irregular(trial.work / "file.yaml", kind)
