"""Spaces described in TOML: the document's example, the OFA-MBv3 preset once more, refusals by key, any text at all."""

from __future__ import annotations

import itertools
import math
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutbuilder import spaces
from lutbuilder.lower import lower_network
from lutbuilder.nas.compiled import compile_space
from lutbuilder.op import make_divisible
from lutbuilder.spaces.expressions import Expression
from lutbuilder.spaces.toml_file import parse
from lutbuilder_agent.errors import SpecError, UnknownName
from tests.synthetic import SYNTHETIC

DOCUMENT = Path(__file__).parents[2] / "docs" / "spaces.md"
TINY = """
input = { resolution = "r" }

[variables]
r = [32, 48]
d = [1, 2]
w = [8, 16]
k2 = { values = [3, 5], active_when = "d == 2" }

[[sites]]
name = "stem"
kind = "conv"
out_channels = "w"
kernel = 3
stride = 2

[[sites]]
name = "second"
kind = "conv"
when = "d == 2"
kernel = "k2"
groups = "in_channels"

[[sites]]
name = "logits"
kind = "logits"
out_channels = 10
"""


def ofa_mbv3_text() -> str:
    """OFA-MBv3 at width 1.0, its five published resolutions, as a person would write it."""
    lines = ['input = { resolution = "r" }', "[variables]", "r = [160, 176, 192, 208, 224]"]
    lines += [f"d{stage} = [2, 3, 4]" for stage in range(1, 6)]
    for name, values in (("k", [3, 5, 7]), ("e", [3, 4, 6])):
        for stage in range(1, 6):
            gate = f'"{{i}} <= d{stage}"'
            lines.append(f'"{name}{stage}_{{i}}" = {{ repeat = 4, values = {values}, active_when = {gate} }}')

    def site(**fields: Any) -> None:
        lines.append("[[sites]]")
        lines.extend(f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for key, v in fields.items())

    site(name="stem", kind="conv", out_channels=16, kernel=3, stride=2, act="hswish")
    site(name="first", kind="mbconv", expand=1, kernel=3, act="relu")
    for stage, (width, stride, se) in enumerate(
        ((24, 2, False), (40, 2, True), (80, 2, False), (112, 1, True), (160, 2, True)), start=1
    ):
        site(
            name=f"s{stage}.{{i}}", repeat=4, when=f"{{i}} <= d{stage}", kind="mbconv", out_channels=width,
            expand=f"e{stage}_{{i}}", kernel=f"k{stage}_{{i}}", stride=f"{stride} if {{i}} == 1 else 1",
            act="relu" if stage < 3 else "hswish", se=se,
        )  # fmt: skip  # one stage, three lines
    site(name="head", kind="conv", out_channels="6 * in_channels", act="hswish")
    site(name="pool", kind="global_pool")
    site(name="features", kind="conv", out_channels=1280, act="hswish")
    site(name="logits", kind="logits", out_channels=1000)
    return "\n".join(lines)


# --- What a file says


def test_the_example_of_the_document_is_a_space_of_whole_networks() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), flags=re.M | re.S)
    space = parse(text, name="document")
    assert len(space.ops()) == 3 + 3 * (9 + 9) + 3
    assert space.n_archs() == sum(3 * 9**d - 9 ** (d - 1) * 3 for d in (2, 3, 4))
    for arch in space.sample(np.random.default_rng(0), 5):
        assert lower_network(space.arch_ops(arch)).shapes[-1] == (1, 1000)


def test_the_table_of_the_document_names_every_preset_and_variant() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, entry in spaces.SPACES.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        plain = row.replace("each also `-lean`", "`h1504-lean` `h1984-lean`")
        assert all(f"`{word}`" in plain for word in (*entry.variants, *filter(None, entry.grids)))


def test_a_file_can_say_all_that_a_preset_says() -> None:
    told, preset = parse(ofa_mbv3_text(), name="mine"), spaces.get("ofa_mbv3")
    assert set(told.ops()) == set(preset.ops())
    assert told.n_archs() == preset.n_archs()
    assert [len(site.scope) for site in told.sites] == [len(site.scope) for site in preset.sites]
    mine, theirs = compile_space(told, SYNTHETIC), compile_space(preset, SYNTHETIC)
    assert (mine.min_over(), mine.max_over()) == pytest.approx((theirs.min_over(), theirs.max_over()), abs=1e-12)
    even = [np.full(size, 1 / size) for size in told.sizes]
    assert mine.expected(even) == pytest.approx(theirs.expected([np.full(s, 1 / s) for s in preset.sizes]), abs=1e-12)


def test_shapes_follow_and_a_scope_is_what_an_op_depends_on() -> None:
    space = parse(TINY, name="tiny", batch=4)
    assert [site.scope for site in space.sites] == [("r", "w"), ("r", "d", "w", "k2"), ("r", "w")]
    ops = space.arch_ops(space.encode({"r": 48, "d": 2, "w": 16, "k2": 5}))
    assert [op.label() for op in ops] == [
        "conv 3x48x48 k3 s2 -> 16 bs4", "conv 16x24x24 k5 s1 g16 -> 16 bs4", "logits 16x24x24 -> 10 bs4",
    ]  # fmt: skip  # one network
    assert space.n_archs() == 2 * 2 * (1 + 2)


def test_blocks_add_their_input_where_they_can_unless_told_otherwise() -> None:
    block = '[[sites]]\nname = "b"\nkind = "bottleneck"\nout_channels = "w"\nexpand = 0.25\nkernel = 3\n'
    start = "input = { channels = 16, height = 8, width = 6 }\n[variables]\nw = [16, 32]\n"
    kept, changed = parse(start + block, name="x").ops()
    assert (kept.residual, kept.shortcut, changed.residual, changed.shortcut) == (True, False, False, True)
    assert (kept.mid_channels, changed.mid_channels, kept.width) == (make_divisible(4), 8, 6)
    plain, _ = parse(start + block + "residual = false\nshortcut = false\n", name="x").ops()
    assert not plain.residual


def test_a_variable_of_one_value_is_no_choice_and_no_mistake() -> None:
    space = parse(TINY.replace("[32, 48]", "[32]"), name="x")
    assert [site.scope for site in space.sites] == [("w",), ("d", "w", "k2"), ("w",)]
    assert space.encode({"d": 1, "w": 8}).tolist() == [0, 0, 0, 0]


def test_constraints_of_a_file_are_kept() -> None:
    space = parse('constraints = ["not (r == 48 and k2 == 5)"]' + TINY, name="x")
    assert space.n_archs() == 2 * (2 * (1 + 2)) - 2
    assert not [op for op in space.ops() if (op.height, op.kernel) == (24, 5)]


def test_a_space_of_a_file_survives_pickling() -> None:
    space = parse('constraints = ["not (r == 48 and k2 == 5)"]' + TINY, name="x")
    again = pickle.loads(pickle.dumps(space))
    assert (again.key, again.n_archs()) == (space.key, space.n_archs())


def test_get_takes_the_path_of_a_file_and_names_the_space_by_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    space = spaces.get(str(path), batch=8)
    assert space.name == str(path)
    assert {op.batch for op in space.ops()} == {8}


# --- Mistakes


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('kernel = "k2"', 'kernel = "k3"', "number 2: 'second': kernel = 'k3': no 'k3' here; there are: r, d, w, k2"),
        ('kernel = "k2"', 'kernel = "k2 // 0"', "'second': kernel = 'k2 // 0': .* has no value where k2 = 3: .*zero"),
        ('kernel = "k2"', 'kernel = "k2 / 2"', "kernel = 'k2 / 2': it must be a whole number, got 1.5"),
        ('kernel = "k2"', 'kernel = "k2 + 1"', r"kernel must be odd, got 4 \(where r = 32, d = 2, w = 8, k2 = 3\)"),
        ('kernel = "k2"', 'kernel = "k2 +"', r"kernel = 'k2 \+': .* is no expression"),
        ('kernel = "k2"', "kernel = 3.0", "kernel = 3.0: it must be a whole number, got 3.0"),
        ('kernel = "k2"', "kernel = true", "kernel = True: it must be a whole number, got True"),
        ('kernel = "k2"', 'kernel = "open(1)"', "no function 'open'; there are: min, max"),
        ('kernel = "k2"', 'kernel = "r.real"', "'r.real' is not allowed here"),
        ('kernel = "k2"', 'kernel = "[k2 for k2 in (3,)]"', "is not allowed here"),
        ('kernel = "k2"', 'kernel = "k2"\nse = 1', "se = 1: it must be true or false, got 1"),
        ('kernel = "k2"', 'kernel = "k2"\nexpand = 3', "expand goes with mbconv and bottleneck"),
        ('kernel = "k2"', 'kernal = "k2"', "unknown key 'kernal' = 'k2'; known: name, stage"),
        ('\nwhen = "d == 2"', '\nwhen = "d"', "when = 'd': it must be true or false, got 1"),
        ('\nwhen = "d == 2"', '\nwhen = "d < \'a\'"', "has no value where d = 1: .*not supported"),
        ('kind = "logits"', 'kind = "logit"', "unknown op kind 'logit'; known: conv"),
        ('kind = "logits"\n', "", "'logits': kind is missing"),
        ('name = "logits"\n', "", "sites, number 3: name is missing"),
        ('name = "logits"', 'name = "l{i}"', "name = 'l{i}': {i} needs a repeat"),
        ('name = "logits"', 'name = "logits"\nrepeat = 0', "repeat must be a whole number from 1 to 1000, got 0"),
        ('name = "logits"', 'name = "logits"\nrepeat = 2', "at least one, each once; got stem, second, logits"),
        ('name = "logits"', "name = 3", "name must be a text, got 3"),
        ('active_when = "d == 2"', 'active_when = "k2 == 2"', "variables.k2: active_when = .* no 'k2' here"),
        ('active_when = "d == 2"', "active_when = true", "active_when must be an expression in quotes, got True"),
        ("r = [32, 48]", "r = []", r"variables.r: values must be a list of numbers or texts, at least one, got \[\]"),
        ("r = [32, 48]", "r = [[32]]", "values must be a list of numbers or texts"),
        ("r = [32, 48]", "r = [32, inf]", "values must be finite"),
        ("r = [32, 48]", "r = [32, 32]", r"variables.r: values must differ, got \[32, 32\]"),
        ("r = [32, 48]", "r = 32", "variables.r: values must be a list, got 32"),
        ("r = [32, 48]", "r = [32, -48]", "input: channels and sides must be positive"),
        ("r = [32, 48]", "r = [32, 48]\nkernel = [3]", "variables.kernel: 'kernel' cannot name a variable"),
        ("r = [32, 48]", "r = [32, 48]\n\"a b\" = [3]", "'a b' cannot name a variable"),
        ("r = [32, 48]", "r = [32, 48]\nq = [3]", "variables.q: no site reads it"),
        ("r = [32, 48]", 'r = [32, 48]\n"d{i}" = {repeat = 2, values = [1]}\nd1 = [2]', "a second variable 'd1'"),
        ('input = { resolution = "r" }', "", "input is missing"),
        ('input = { resolution = "r" }', "input = { height = 3 }", "input: it has a resolution, or else a height"),
        ('input = { resolution = "r" }', "input = 3", "input must be a table, got 3"),
        ('input = { resolution = "r" }', 'input = { resolution = "x" }', "input: resolution = 'x': no 'x' here"),
        ('input = { resolution = "r" }', 'inputs = { resolution = "r" }', "unknown key 'inputs'"),
        ('input = { resolution = "r" }', 'constraints = [3]\ninput = { resolution = "r" }', "constraints, number 1"),
        ("[variables]", "[variables", "not TOML"),
    ],
)  # fmt: skip  # a table reads as one
def test_a_mistake_is_named_by_file_key_and_value(old: str, new: str, told: str) -> None:
    assert TINY.count(old) == 1
    with pytest.raises(SpecError, match=told) as error:
        parse(TINY.replace(old, new), name="tiny.toml")
    assert str(error.value).startswith(("tiny.toml: ", "space 'tiny.toml': ")) or "tiny.toml" in str(error.value)


def test_sites_that_depend_on_too_much_are_refused() -> None:
    names = [f"v{n}" for n in range(20)]
    text = "input = { resolution = 8 }\n[variables]\n" + "\n".join(f"{name} = [1, 2]" for name in names)
    text += f'\n[[sites]]\nname = "s"\nkind = "conv"\nout_channels = "{" + ".join(names)}"\n'
    with pytest.raises(
        SpecError, match=r"'s': depends on v0, .*, which have 1,048,576 combinations; 200,000 are the most"
    ):
        parse(text, name="x")


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no file .*missing\.toml; `lutbuilder spaces` lists"):
        spaces.get(str(tmp_path / "missing.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(SpecError, match=r"folder\.toml cannot be read"):
        spaces.get(str(tmp_path / "folder.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.toml cannot be read"):
        spaces.get(str(tmp_path / "binary.toml"))


# --- Properties


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, list[list[tuple[int, int, int]]]]:
    """A file of pointwise and strided convolutions, and for every assignment the shapes that should come out."""
    count = draw(st.integers(1, 3))
    values = [draw(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True)) for _ in range(count)]
    lines = ["input = { channels = 5, height = 9, width = 7 }", "[variables]"]
    lines += [f"v{n} = {found}" for n, found in enumerate(values)]
    layers = []
    for number in range(draw(st.integers(1, 4))):
        variable = number if number < count else draw(st.integers(0, count - 1))
        least, stride = draw(st.integers(0, 9)), draw(st.integers(1, 3))
        layers.append((variable, least, stride))
    layers += [(variable, 0, 1) for variable in range(len(layers), count)]
    for number, (variable, least, stride) in enumerate(layers):
        lines += [
            "[[sites]]", f'name = "s{number}"', 'kind = "conv"', f'out_channels = "v{variable} + in_channels"',
            f'when = "v{variable} >= {least}"', "kernel = 3", f"stride = {stride}",
        ]  # fmt: skip  # one site, two lines
    shapes = []
    for cell in itertools.product(*values):
        flow, told = (5, 9, 7), []
        for variable, least, stride in layers:
            if cell[variable] >= least:
                flow = (flow[0] + cell[variable], *(math.ceil(side / stride) for side in flow[1:]))
                told.append(flow)
        shapes.append(told)
    return "\n".join(lines), shapes


@given(chains())
@settings(max_examples=60, deadline=None)
def test_any_chain_gives_the_ops_that_walking_through_it_gives(
    chain: tuple[str, list[list[tuple[int, int, int]]]],
) -> None:
    text, shapes = chain
    space = parse(text, name="chain")
    cells = itertools.product(*map(range, space.sizes))
    for cell, told in zip(cells, shapes, strict=True):
        ops = space.arch_ops(list(cell))
        assert [(op.out_channels, op.out_height, op.out_width) for op in ops] == told


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_to_a_file_is_a_space_or_a_clear_error(data: st.DataObject) -> None:
    text = TINY
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        put = data.draw(
            st.one_of(
                st.sampled_from(['"', "[", "{i}", " = ", "-1", "0", "d", "k2", "\n", "true"]), st.text(max_size=4)
            )
        )
        text = text[:start] + put + text[end:]
    told = "damaged"
    try:
        assert parse(text, name="damaged").ops()
    except SpecError as error:
        told = str(error)
    assert "damaged" in told


@given(st.text(alphabet="abk2 +-*/%()<>=!,.'\"[]{}:@0123456789andorif_elsnt\\\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_expression_or_a_clear_error(text: str) -> None:
    with suppress(SpecError):  # any other exception is a failure
        expression = Expression(text)
        expression.value(dict.fromkeys(expression.names, 2))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * a", 5), ("-a // 3", -1), ("a % 2 == 0 and b != 'x'", True), ("not a", False), ("0 < a < 3", True),
        ("3 if b in ('k3', 'k5') else 5", 5), ("b not in ['x']", True), ("max(a, 7) - min(1, a)", 6),
        ("divisible(19.2, 8)", 24), ("round(a / 3)", 1), ("ceil(a / 4) + floor(a / 4)", 1), ("1 or 1 // 0", True),
    ],
)  # fmt: skip  # a table reads as one
def test_expressions_mean_what_they_mean_in_python(text: str, value: object) -> None:
    assert Expression(text).value({"a": 2, "b": "k7"}) == value
    assert pickle.loads(pickle.dumps(Expression(text))) == Expression(text)


def test_an_expression_that_would_exhaust_the_stack_is_refused() -> None:
    with pytest.raises(SpecError, match="200 characters at most"):
        Expression("-" * 5000 + "1")
    assert Expression("-" * 198 + "1").value({}) == 1
