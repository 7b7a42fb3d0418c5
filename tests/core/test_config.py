"""Stacking, expressions, types, the command line and its help."""

import copy

import pytest

from veorl_tf.core.config import Config, load_blocks, resolve
from veorl_tf.core.errors import UserError
from veorl_tf.core.flags import parse_flags, parse_options, split_flags
from veorl_tf.core.values import NOTHING, convert

TEXT = """
# A comment of its own line is no trailing comment.
defaults:
  seed: 0  # the run's seed
  name: ''  # text with # inside
  rate: 1e-4  # learning rate
  flag: false  # a switch
  rssm:  # the recurrent model
    deter: 200  # size of the GRU
    units: [400, 300]  # widths
    scales: [1, 0.5]
  empty: []  # nothing
  stages:
    model:
      updates: 10  # of the world model
      rate: 0.1
    behavior:
      updates: 20  # of the actor and critic
big:  # larger
  rssm:
    deter: 600
  stages.model.updates: 1e3
fast:  # shorter
  stages:
    .*\\.updates: 5
late: {seed: 7, 'rssm\\.(deter)': 9}
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "configs.yaml"
    path.write_text(TEXT)
    return load_blocks(path)


@pytest.fixture(scope="module")
def blocks(loaded):
    return loaded[0]


def test_comments(loaded):
    _, comments = loaded
    assert comments["seed"] == "the run's seed"
    assert comments["name"] == "text with # inside"
    assert comments["rssm"] == "the recurrent model"
    assert comments["rssm.units"] == "widths"
    assert comments["rssm.scales"] == ""
    assert comments["stages.behavior.updates"] == "of the actor and critic"
    assert comments["block:big"] == "larger"
    assert comments["block:late"] == ""


def test_config_reads_like_attributes_and_never_changes(blocks):
    config = resolve(blocks, [])
    assert config.rssm.deter == config["rssm"]["deter"] == config["rssm.deter"] == 200
    assert config.rssm.units == (400, 300) and config.rate == 1e-4
    assert list(config.flat)[:4] == ["seed", "name", "rate", "flag"]
    with pytest.raises(TypeError):
        config.seed = 1
    with pytest.raises(TypeError):
        config.rssm.deter = 1
    with pytest.raises(TypeError):
        config["seed"] = 1
    with pytest.raises(AttributeError, match="rssm"):
        _ = config.rsm
    with pytest.raises(KeyError):
        config["rssm.nothing"]
    assert "rssm.deter" in config and "rssm.detre" not in config
    other = config.update({"rssm.deter": 3})
    assert config.rssm.deter == 200 and other.rssm.deter == 3
    assert hash(config) != hash(other) and config != other
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize(
    "names, expected",
    [
        ([], (200, 10, 20, 0)),
        (["big"], (600, 1000, 20, 0)),
        (["big", "fast"], (600, 5, 5, 0)),
        (["fast", "big"], (600, 1000, 5, 0)),
        (["big", "late", "fast"], (9, 5, 5, 7)),
    ],
)
def test_blocks_stack_in_order(blocks, names, expected):
    c = resolve(blocks, names)
    assert (c.rssm.deter, c.stages.model.updates, c.stages.behavior.updates, c.seed) == expected


def test_overrides_come_last_and_reach_many(blocks):
    c = resolve(blocks, ["big"], [("stages.*.updates", "3"), ("stages.model.updates", "4")])
    assert c.stages.model.updates == 4 and c.stages.behavior.updates == 3
    c = resolve(blocks, [], [("stages.model.updates", "4"), (r"stages\..*updates", "3")])
    assert c.stages.model.updates == c.stages.behavior.updates == 3
    assert c.stages.model.rate == 0.1  # fullmatch: not reached


@pytest.mark.parametrize(
    "value, default, expected",
    [
        ("5", 0, 5),
        ("1e5", 0, 100000),
        (1e5, 0, 100000),
        ("-3", 0, -3),
        (3.0, 1, 3),
        ("5", 0.1, 5.0),
        (5, 0.1, 5.0),
        ("1e-8", 0.1, 1e-8),
        ("inf", 0.1, float("inf")),
        ("true", False, True),
        ("No", True, False),
        (True, False, True),
        ("5", "", "5"),
        ("", "x", ""),
        ("none", "", "none"),
        ("1,2", (0,), (1, 2)),
        ("[1, 2]", (0,), (1, 2)),
        ([1, 2], (0.5,), (1.0, 2.0)),
        ("", (1,), ()),
        ("a,b", ("x",), ("a", "b")),
        ("7", (0,), (7,)),
        ("1,2.5", (1, 0.5), (1.0, 2.5)),
        ("a, b", (), ("a", "b")),
    ],
)
def test_types_accepted(value, default, expected):
    got = convert(value, default, "here")
    assert got == expected and type(got) is type(expected)
    if isinstance(got, tuple):
        assert [type(v) for v in got] == [type(v) for v in expected]


@pytest.mark.parametrize(
    "value, default",
    [
        ("0.5", 0),
        (0.5, 0),
        (True, 0),
        ("x", 0),
        ("inf", 0),
        ("1e999", 0),
        ([1], 0),
        ("", 0),
        (True, 0.1),
        ("x", 0.1),
        ("nan", 0.1),
        ("1", True),
        (1, True),
        ("maybe", True),
        (5, ""),
        (True, ""),
        (["a"], ""),
        ("1,x", (0,)),
        (5, (0,)),
        ([1, [2]], (0,)),
        ([0.5], (1,)),
        ('__import__("os")', 0),
        ("2*3", 0),
    ],
)
def test_types_refused(value, default):
    with pytest.raises(UserError, match="here.* expected"):
        convert(value, default, "here")


@pytest.mark.parametrize(
    "names, overrides, parts",
    [
        (["bgi"], [], ["'bgi'", "big", "fast", "late"]),
        (["defaults"], [], ["defaults", "the blocks are"]),
        ([], [("rssm.detre", "1")], ["--rssm.detre", "rssm.deter"]),
        ([], [("deter", "1")], ["--deter", "rssm.deter"]),
        ([], [("rssm", "1")], ["--rssm", "group", "rssm.units"]),
        ([], [("zz.*", "1")], ["--zz.*", "matches no key"]),
        ([], [("zz(", "1")], ["--zz(", "regular expression"]),
        ([], [("seed", "x")], ["--seed", "whole number", "'x'"]),
        ([], [("st.*", "x")], ["whole number"]),
    ],
)
def test_errors_name_place_and_remedy(blocks, names, overrides, parts):
    with pytest.raises(UserError) as caught:
        resolve(blocks, names, overrides)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_in_a_block_names_the_block(blocks):
    with pytest.raises(UserError, match=r"block wrong, key 'rssm.deter'.*whole number"):
        resolve({**blocks, "wrong": {"rssm": {"deter": 0.5}}}, ["wrong"])
    with pytest.raises(UserError, match=r"block wrong, key 'rssm.dter'.*rssm.deter"):
        resolve({**blocks, "wrong": {"rssm": {"dter": 5}}}, ["wrong"])


@pytest.mark.parametrize(
    "text, part",
    [
        ("a: 1", "defaults"),
        ("- 1", "mapping"),
        ("defaults: 3", "mapping"),
        ("defaults: {a: }", "'' for none"),
        ("defaults: {a: 1, a: 2}", "duplicate"),
        ("defaults: {a: [1, }", "line 1"),
        ("defaults: {update: 1}", "method"),
        ("defaults: {a.b: 1, a: 2}", "'a'"),
        ("defaults: {a: no}", "true or false"),
        ("defaults: {a: !!python/object:os.system x}", "python/object"),
        ("defaults: {a b: 1}", "name"),
    ],
)
def test_bad_files(tmp_path, text, part):
    path = tmp_path / "configs.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=part) as caught:
        load_blocks(path)
    assert str(path) in str(caught.value)


def test_yaml_round_trip(blocks):
    config = resolve(
        blocks, ["big"], {"rate": 3e-8, "name": "1e5", "empty": "a,yes", "flag": "yes"}
    )
    again = Config.from_yaml(config.to_yaml())
    assert again == config and again.flat == config.flat
    assert {k: type(v) for k, v in again.flat.items()} == {
        k: type(v) for k, v in config.flat.items()
    }


def test_a_path_that_is_no_text(loaded):
    """A byte that is not UTF-8 comes back from the file as it was."""
    config = resolve(loaded[0], ["big"], {"name": "a\udcff\udc80/\u00fc"})
    text = config.to_yaml().encode().decode()
    assert Config.from_yaml(text) == config


def test_flags():
    flags = split_flags("LOG --configs a b --x.y -1.5 --z=--odd --on --seed -3".split())
    assert flags.positional == ("LOG",) and flags.configs == ("a", "b") and not flags.help
    assert flags.overrides == (("x.y", "-1.5"), ("z", "--odd"), ("on", NOTHING), ("seed", "-3"))
    assert split_flags(["--configs", "a", "--seed", "1", "--configs=b,c"]).configs == (
        "a",
        "b",
        "c",
    )
    assert split_flags(["-h"]).help
    for line in ("LOG --on -- -out --help --", "--configs a -- LOG -out --help --"):
        flags = split_flags(line.split())
        assert flags.positional == ("LOG", "-out", "--help", "--") and not flags.help
    for bad in (["--a", "1", "2"], ["-x"]):
        with pytest.raises(UserError, match="unexpected"):
            split_flags(bad)


def test_parse_flags(loaded, capsys):
    request = parse_flags("--configs big fast --seed -4 --flag".split(), *loaded)
    assert (
        request.names == ("big", "fast")
        and request.config.seed == -4
        and request.config.flag is True
    )
    with pytest.raises(UserError, match="--configs is missing.*big, fast, late"):
        parse_flags(["--seed", "1"], *loaded)
    with pytest.raises(UserError, match="unexpected.*big"):
        parse_flags(["big"], *loaded)
    with pytest.raises(SystemExit) as left:
        parse_flags(["--help"], *loaded)
    assert not left.value.code
    text = capsys.readouterr().out
    for key in resolve(loaded[0], []).flat:
        assert f"--{key} " in text
    for part in ("big ", "larger", "size of the GRU", "400,300", "0.0001"):
        assert part in text


def test_parse_options(loaded, capsys):
    defaults = Config({"episodes": 10, "seed": 0})
    arguments, config = parse_options(
        ["LOG", "--episodes", "3"], defaults, {}, "evaluate LOGDIR", ["LOGDIR"]
    )
    assert arguments == {"LOGDIR": "LOG"} and config.episodes == 3 and config.seed == 0
    with pytest.raises(UserError, match="LOGDIR is missing"):
        parse_options([], defaults, {}, "evaluate LOGDIR", ["LOGDIR"])
    with pytest.raises(UserError, match="unexpected argument 'b'"):
        parse_options(["a", "b"], defaults, {}, "evaluate LOGDIR", ["LOGDIR"])
    with pytest.raises(UserError, match="--epsodes.*episodes"):
        parse_options(["a", "--epsodes", "3"], defaults, {}, "evaluate LOGDIR", ["LOGDIR"])
    with pytest.raises(SystemExit):
        parse_options(["--help"], defaults, {"episodes": "how many"}, "evaluate LOGDIR")
    assert "how many" in capsys.readouterr().out
