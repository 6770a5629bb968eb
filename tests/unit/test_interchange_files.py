"""Files somebody else wrote: what readers take, what they refuse and name, and that a pickle runs nothing."""

from __future__ import annotations

import collections
import json
import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutbuilder.lut.interchange import source as files
from lutbuilder.lut.interchange.keys import bare_key_of, key_of, parse_bare_key, parse_key
from lutbuilder.lut.interchange.source import Invalid, Malformed, Number, Source, json_object, located, npy, yaml_items
from lutbuilder.lut.interchange.unpickle import pickled, unpickled, unpickled_npy
from lutbuilder.op import OpSpec
from lutbuilder_agent.errors import BadTable, SpecError
from tests.published_tables import as_yaml, mbv3_rows, object_npy, proxyless_rows


def of(raw: bytes | str, name: str = "table.yaml") -> Source:
    return Source.of(name, raw.encode() if isinstance(raw, str) else raw)


# --- YAML


def test_yaml_rows_keep_their_text_and_their_lines():
    rows = yaml_items(of("b:\n  count: 982\n  mean: 4.0837\na: {mean: 1e-05}\n"))
    assert {key: (item.line, dict(item.fields)) for key, item in rows.items()} == {
        "b": (1, {"count": "982", "mean": "4.0837"}),
        "a": (4, {"mean": "1e-05"}),
    }
    assert all(type(text) is Number for item in rows.values() for text in item.fields.values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:\n  mean: 1.0\na:\n  mean: 2.0\n", "line 3: key 'a' is there twice, first in line 1"),
        ("a:\n  mean: 1.0\n  mean: 2.0\n", "line 3: field 'mean' is there twice"),
        ("a: 1.0\n", "line 1: key 'a' has no fields but '1.0'"),
        ("a: [1.0]\n", "line 1: a list"),
        ("- a\n", "line 1: a list"),
        ("a:\n  mean:\n    deep: 1\n", "line 3: a mapping inside a row"),
        ("? {a: 1}\n: {mean: 1}\n", "line 1: a mapping inside a row"),
        ("just text\n", "line 1: 'just text', not a mapping"),
        ("a: &x {mean: 1.0}\n", "line 1: anchors and aliases are not read"),
        ("a: *x\n", "line 1: anchors and aliases are not read"),
        ("a: {mean: !!python/object/apply:os.system ['true']}\n", "line 1: tag 'tag:yaml.org,2002:python/object/apply"),
        ("a: {mean: !!float 1.0}\n", "line 1: tag 'tag:yaml.org,2002:float' is not read"),
        ("--- {a: {mean: 1}}\n--- {b: {mean: 1}}\n", "line 2: a second document"),
        ("a: {mean: 1.0\n", "not YAML"),
        ('a: {mean: "\\UFFFFFFFF"}\n', "not YAML"),
        ("a: {mean: \x07}\n", "not YAML"),
        (b"a: {mean: \xff}\n", "byte 10 is no UTF-8"),
        ("[" * 100_000, "line 1: a list"),
        ("{a: " + "{b: " * 100_000, "line 1: a mapping inside a row"),
    ],
    ids=range(19),
)
def test_yaml_that_is_no_table_is_refused_where_it_stops_being_one(text: str | bytes, told: str):
    with pytest.raises(Malformed, match=r"(?s).*") as error:
        yaml_items(of(text))
    assert told in str(error.value)


def test_quoted_numbers_are_texts():
    fields = yaml_items(of("a: {mean: '1.0'}\n"))["a"].fields
    with pytest.raises(Invalid, match=r"mean must be a number, got '1\.0'"):
        files.positive(fields["mean"], "mean")


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_table_or_refused(text: str | bytes):
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for read in (yaml_items, json_object):
        with suppress(Malformed):
            read(of(raw))


# --- JSON


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
        ('{"a": {"mean": 1, "mean": 2}}', "key 'mean' is there twice"),
        ('{"a": 1,\n}', "line 2: not JSON"),
        ("[1]", "not an object"),
        ("[" * 100_000, "nests too deeply"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_json_that_is_no_table_is_refused(text: str | bytes, told: str):
    with pytest.raises(Malformed) as error:
        json_object(of(text))
    assert told in str(error.value)


def test_json_numbers_are_not_parsed_before_they_are_asked_for():
    value = json_object(of('{"a": NaN, "b": 1e999, "c": 12, "d": true}'))
    for name, told in (("a", "must be a finite number, got 'NaN'"), ("b", "must be finite"), ("d", "must be a number")):
        with pytest.raises(Invalid, match=told):
            files.number(value[name], name)
    assert files.count(value["c"], "c") == 12


# --- Numbers


@pytest.mark.parametrize(
    "text",
    ["6.0329findstr04639175257", "", "-", ".", "1e", "nan", ".inf", "0x10", "1_000", "1:30", "٣", "1 2", "1e999"],
)
def test_a_number_is_its_whole_text_and_never_a_prefix(text: str):
    with pytest.raises(Invalid, match="mean must be"):
        files.number(Number(text), "mean")


@pytest.mark.parametrize("value", [0.0, -1e-9, float("nan"), float("inf"), True, None, "1", 10**400])
def test_what_is_no_positive_number_is_invalid(value: object):
    with pytest.raises(Invalid, match="ms"):
        files.positive(value, "ms")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "99999999999999999999", True, None, 0, -3])
def test_a_count_is_an_integer_from_one(text: object):
    with pytest.raises(Invalid, match="count must be an integer from 1"):
        files.count(Number(text) if isinstance(text, str) else text, "count")


def test_no_spread_is_no_record_of_it():
    assert files.spread(Number("0.0"), "std") is None
    assert files.spread(Number("0.5"), "std") == 0.5
    with pytest.raises(Invalid):
        files.spread(Number("-0.5"), "std")


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_a_written_float_is_a_float_to_yaml_and_reads_back(value: float):
    import yaml

    assert yaml.safe_load(files.plain(value)) == value
    assert isinstance(yaml.safe_load(files.plain(value)), float)


# --- Where something is wrong


def test_an_error_names_file_and_place_and_only_values_may_be_left_out():
    dropped: list[str] = []
    with located(of(""), "key 'a'", dropped=dropped):
        raise Invalid("mean must be positive, got -0.2331")
    assert dropped == ["table.yaml, key 'a': mean must be positive, got -0.2331"]
    advice = r"key 'a': .*Nothing was imported; --drop-invalid leaves such rows out"
    with pytest.raises(BadTable, match=advice), located(of(""), "key 'a'"):
        raise Invalid("mean must be positive, got -0.2331")
    for error in (Malformed("unknown layer type"), SpecError("kernel must be odd")):
        told = r"table.yaml, key 'a': (unknown|kernel).*\. Nothing was imported$"
        with pytest.raises(BadTable, match=told), located(of(""), "key 'a'", dropped=dropped):
            raise error


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    with pytest.raises(BadTable, match="has 11 bytes"):
        of(b"x" * 11)


# --- Keys


@pytest.mark.parametrize(
    ("key", "form", "op"),
    [
        (
            "Conv-input:224x224x3-output:112x112x32",
            "ratio",
            OpSpec(kind="conv", in_channels=3, out_channels=32, height=224, width=224, kernel=3, stride=2, act="relu6"),
        ),
        (
            "expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:3-stride:2-idskip:0",
            "ratio",
            OpSpec(kind="mbconv", in_channels=16, mid_channels=48, out_channels=24, height=112, width=112, kernel=3,
                   stride=2, act="relu6"),
        ),
        (
            "expanded_conv-input:10x10x136-output:10x10x136-expand:408-kernel:3-stride:1-idskip:1-se:1-hs:1",
            "mid",
            OpSpec(kind="mbconv", in_channels=136, mid_channels=408, out_channels=136, height=10, width=10, kernel=3,
                   se=True, act="hswish", residual=True),
        ),
        (
            "AvgPool2D-input:5x5x1152-output:1x1x1152",
            "mid",
            OpSpec(kind="global_pool", in_channels=1152, out_channels=1152, height=5, width=5),
        ),
        (
            "Conv_2-input:1x1x1152-output:1x1x1536",
            "mid",
            OpSpec(kind="conv", in_channels=1152, out_channels=1536, height=1, width=1, act="hswish"),
        ),
        (
            "Logits-input:7x7x1280-output:1000",
            "ratio",
            OpSpec(kind="logits", in_channels=1280, out_channels=1000, height=7, width=7),
        ),
    ],
)  # fmt: skip  # an op in two lines
def test_a_key_says_an_op_and_an_op_its_key(key: str, form: Any, op: OpSpec):
    assert parse_key(key, form) == op
    assert key_of(op, form) == key


def test_the_ratio_form_does_not_round_the_channels_in_the_middle():
    key = "expanded_conv-input:28x28x30-output:28x28x30-expand:3-kernel:3-stride:1-idskip:1"
    assert parse_key(key, "ratio").mid_channels == 90


BLOCK = "expanded_conv-input:56x56x24-output:{out}-expand:{expand}-kernel:3-stride:{stride}-idskip:{skip}"
MID = BLOCK + "-se:0-hs:0"


@pytest.mark.parametrize(
    ("key", "form", "told"),
    [
        (BLOCK.format(out="28x28x40", expand=72, stride=2, skip=0), "ratio", "expand 72 is no ratio up to 16"),
        (MID.format(out="28x28x40", expand=3, stride=2, skip=0), "mid", "is it a ratio?"),
        (MID.format(out="28x28x40", expand=76, stride=2, skip=0), "mid", "1 to 8 times 24 channels"),
        (MID.format(out="28x28x40", expand=72, stride=2, skip=0), "ratio", "is it of another format?"),
        (BLOCK.format(out="28x28x40", expand=3, stride=2, skip=0), "mid", "is it of another format?"),
        (
            BLOCK.format(out="27x27x40", expand=3, stride=2, skip=0),
            "ratio",
            "stride 2 leaves 28x28 of 56x56, not 27x27",
        ),
        (BLOCK.format(out="28x28x24", expand=3, stride=2, skip=1), "ratio", "a residual needs stride 1"),
        (BLOCK.format(out="56x56x40", expand=3, stride=1, skip=1), "ratio", "a residual needs stride 1"),
        (BLOCK.format(out="56x56x24", expand=3, stride=1, skip=2), "ratio", "not TYPE-input"),
        (BLOCK.format(out="56x56", expand=3, stride=1, skip=1), "ratio", "not TYPE-input"),
        (BLOCK.format(out="24", expand=3, stride=1, skip=0), "ratio", "only Logits gives channels alone"),
        (BLOCK.format(out="56x56x24", expand=3.5, stride=1, skip=1), "ratio", "not TYPE-input"),
        (BLOCK.format(out="56x56x24", expand="03", stride=1, skip=1), "ratio", "not TYPE-input"),
        (BLOCK.format(out="56x56x24", expand=3, stride=1, skip=1) + "-more:1", "ratio", "not TYPE-input"),
        ("Conv3-input:56x56x24-output:56x56x24", "ratio", "unknown layer type 'Conv3'"),
        ("AvgPool2D-input:7x7x8-output:1x1x8", "ratio", "unknown layer type 'AvgPool2D'"),
        ("AvgPool2D-input:7x7x8-output:1x1x16", "mid", "leaves 1x1x8"),
        ("Conv-input:224x224x3-output:224x224x16", "mid", "leaves 112x112 of 224x224"),
        ("Conv_1-input:7x7x8-output:4x4x8", "mid", "keeps its map"),
        ("Conv_2-input:7x7x8-output:7x7x8", "mid", "follows the pool"),
        ("Logits-input:7x7x8-output:10", "mid", "follows the pool"),
        ("Logits-input:7x7x8-output:1x1x10", "ratio", "gives channels alone"),
        ("Conv-input:8x8x3-output:4x4x8-expand:3-kernel:3-stride:2-idskip:0", "ratio", "go with expanded_conv"),
        ("expanded_conv-input:56x56x24-output:56x56x24", "ratio", "ends in -expand"),
        (
            BLOCK.format(out="56x56x24", expand=3, stride=1, skip=1).replace("kernel:3", "kernel:4"),
            "ratio",
            "must be odd",
        ),
    ],
)
def test_a_key_that_contradicts_its_form_or_itself_is_refused(key: str, form: Any, told: str):
    with pytest.raises((Malformed, SpecError)) as error:
        parse_key(key, form)
    assert told in str(error.value)


@pytest.mark.parametrize("form", ["ratio", "mid"])
def test_every_key_of_a_table_goes_there_and_back(form: Any):
    rows = proxyless_rows(172) if form == "ratio" else mbv3_rows(172, "w1.2")
    for key in rows:
        assert key_of(parse_key(key, form), form) == key


def test_a_key_without_type_says_what_the_ratio_form_has_of_its_shapes():
    for key in proxyless_rows():
        op = parse_key(key, "ratio")
        bare = bare_key_of(op)
        assert parse_bare_key(bare) == op
        assert "input" not in bare
    with pytest.raises(Malformed):
        parse_bare_key("112x112x16-56x56x24-expand:3")


@pytest.mark.parametrize(
    "op",
    [
        OpSpec(kind="linear", in_channels=8, out_channels=8, height=1, width=1),
        OpSpec(kind="conv", in_channels=8, out_channels=8, height=7, width=7, act="relu"),
        OpSpec(kind="conv", in_channels=8, out_channels=8, height=7, width=7, act="relu6", batch=2),
        OpSpec(kind="conv", in_channels=8, out_channels=8, height=7, width=7, act="relu6", w_bits=8),
        OpSpec(kind="mbconv", in_channels=8, mid_channels=20, out_channels=8, height=7, width=7, act="relu6"),
        OpSpec(kind="mbconv", in_channels=8, mid_channels=16, out_channels=8, height=7, width=7, act="relu6", groups=2),
    ],
    ids=lambda op: op.label(),
)
def test_an_op_that_no_key_says_is_refused(op: OpSpec):
    for form in ("ratio", "mid"):
        with pytest.raises(Malformed, match="cannot be said by a key"):
            key_of(op, form)  # type: ignore[arg-type]  # pytest knows


# --- Pickles


class Runs:
    """Pickles as a call of `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo run > /dev/null",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_calls_a_program_is_refused_by_name(protocol: int, monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []
    monkeypatch.setattr(os, "system", called.append)
    raw = pickle.dumps({"base": Runs()}, protocol=protocol).replace(b"builtins\nappend", b"builtins\nprint")
    raw = raw if b"system" in raw else b"cposix\nsystem\n(S'true'\ntR."
    with pytest.raises(Malformed, match=r"refused global (posix|nt|os)\.system in bad\.pkl"):
        unpickled(of(raw, "bad.pkl"))
    assert called == []


@pytest.mark.parametrize(
    "value",
    [
        collections.Counter("ab"),
        collections.defaultdict(list),
        np.float64(1.5),
        {1, 2},
        frozenset((1,)),
        bytearray(b"x"),
        1j,
        print,
        OpSpec,
        Malformed("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_plain_data_comes_out_of_a_pickle(value: object):
    for protocol in (2, 5):
        with pytest.raises(Malformed, match=r"refused global|opcode \w+ is not read"):
            unpickled(of(pickle.dumps([value], protocol=protocol)))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.tuples(st.integers(), st.integers()), inner, max_size=4)
        | st.builds(OrderedDict, st.lists(st.tuples(st.text(max_size=3), inner), max_size=4))
    ),
    max_leaves=12,
)


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_survives_a_pickle_of_any_protocol(value: object, protocol: int):
    if protocol > 2 or not contains_bytes(value):  # protocol 2 writes bytes as a call of _codecs.encode
        assert unpickled(of(pickle.dumps(value, protocol=protocol))) == value


def contains_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(contains_bytes, value.values()))
    return isinstance(value, bytes) or (isinstance(value, list) and any(map(contains_bytes, value)))


def test_a_written_pickle_is_of_protocol_2_and_plain():
    raw = pickled(OrderedDict(a={(1, 2): 0.5}))
    assert raw[:2] == b"\x80\x02"
    assert unpickled(of(raw)) == OrderedDict(a={(1, 2): 0.5})


@given(st.binary(max_size=80), st.integers(0, 200))
def test_bytes_that_are_no_pickle_are_refused_whatever_they_do(raw: bytes, place: int):
    good = pickle.dumps(OrderedDict(a={(1, 2): 0.5}, b=[1.0, "x"]), protocol=2)
    for text in (raw, good[: place % len(good)] + raw[:3] + good[place % len(good) + 1 :]):
        with suppress(Malformed):
            unpickled(of(text))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memo number 2147483647"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.", "opcode BYTEARRAY8"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.", "only 1 remain"),
        (b"\x80\x02" + b"(" * 40 + b"t" * 40 + b".", "nested more than 16 deep"),
        (
            b"\x80\x02)q\x00" + b"".join(b"h%c\x85q%c" % (n, n + 1) for n in range(30)) + b".",
            "nested more than 16 deep",
        ),
        (b"\x80\x02cos\nsystem\n.", "refused global os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "refused global os.system"),
        (b"Pxyz\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"", "not a pickle"),
        (b"\x80\x02K\x01", "not a pickle"),
        (b"e.", "not a pickle"),
        (b"(e.", "not a pickle"),
        (b"h\x07.", "not a pickle"),
    ],
)
def test_a_pickle_that_costs_more_than_it_holds_is_refused_before_it_runs(raw: bytes, told: str):
    with pytest.raises(Malformed) as error:
        unpickled(of(raw))
    assert told in str(error.value)


# --- .npy


def test_an_array_of_one_object_is_read_without_numpy_unpickling_it():
    value = {224: {"a": [1.5, np.float64(2.5), np.float32(0.5), np.int64(3)], (3, 1): "x"}}
    assert unpickled_npy(of(object_npy(value))) == {224: {"a": [1.5, 2.5, 0.5, 3.0], (3, 1): "x"}}


def test_old_and_new_names_of_numpy_are_read():
    raw = object_npy({1: np.float64(2.5)})
    other = raw.replace(b"numpy._core", b"numpy.core") if b"numpy._core" in raw else raw
    if other != raw:  # texts of protocol 4 carry their length
        other = other.replace(b"\x8c\x16numpy.core.multiarray", b"\x8c\x15numpy.core.multiarray")
        frame = other.index(b"\x95") + 1
        length = int.from_bytes(other[frame : frame + 8], "little") - raw.count(b"numpy._core")
        other = other[:frame] + length.to_bytes(8, "little") + other[frame + 8 :]
    assert unpickled_npy(of(other)) == unpickled_npy(of(raw)) == {1: 2.5}


@pytest.mark.parametrize(
    "value",
    [Runs(), {"a": Runs()}, np.datetime64("2020"), np.zeros(3), {"a": np.zeros(2)}, np.array([1, "x"], dtype=object)],
    ids=range(6),
)
def test_an_array_that_holds_more_than_plain_data_is_refused(value: object):
    with pytest.raises(Malformed):
        unpickled_npy(of(object_npy(value)))


def test_headers_of_arrays_are_read_by_hand():
    found = npy(of(object_npy({})))
    assert (found.descr, found.shape) == ("|O", ())
    array = np.arange(6, dtype=np.int64).reshape(1, 2, 3)
    found = npy(of(npy_bytes(array)))
    assert (found.descr, found.shape, found.fortran_order, len(found.body)) == ("<i8", (1, 2, 3), False, 48)
    assert npy(of(npy_bytes(np.asfortranarray(array.reshape(2, 3))))).fortran_order


def npy_bytes(array: Any) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@given(st.binary(max_size=12), st.integers(0, 140))
def test_a_damaged_array_is_refused(raw: bytes, place: int):
    good = npy_bytes(np.zeros((1, 8, 8), dtype=np.int64))
    for text in (raw, good[:place], good[:place] + raw + good[place + len(raw) :]):
        with suppress(Malformed):
            npy(of(text))


def test_a_file_that_is_json_to_the_letter_reads_the_same():
    rows = mbv3_rows(160)
    assert json.loads(json.dumps(rows)) == {
        key: {name: (int if name == "count" else float)(text) for name, text in item.fields.items()}
        for key, item in yaml_items(of(as_yaml(rows))).items()
    }
