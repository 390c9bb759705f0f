"""An S3 that keeps up: ``python -m benchmarks.scale.store HOST PORT FOLDER``.

Objects are files, and ranges are read by seeking, which moto does not: it reads the whole object
for each. Of the protocol it has what bronze and deltalake use; signatures are not checked.
"""

from __future__ import annotations

import http.server
import shutil
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_MOST_KEYS = 1000
_lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests for one bucket, whose objects are in ``folder``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path

    def do_PUT(self) -> None:
        """Creates an object, or a part of one."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "partNumber" in self._query:
            path = self.folder / "uploads" / self._query["uploadId"][0]
            (path / self._query["partNumber"][0].zfill(6)).write_bytes(body)
            return self._send(200, {"ETag": '"part"'})
        if not self._key:
            return self._send(200)
        fresh = self.folder / "uploads" / uuid4().hex
        fresh.write_bytes(body)
        with _lock:
            path = self._path
            if "If-None-Match" in self.headers and path.exists():
                fresh.unlink()
                return self._error(412, "PreconditionFailed")
            fresh.rename(path)
        return self._send(200, {"ETag": self._etag(path)})

    def do_GET(self) -> None:
        """Reads an object, or a part of it, or lists the bucket."""
        if "list-type" in self._query:
            return self._list()
        path = self._path
        if not path.exists():
            return self._error(404, "NoSuchKey")
        size, asked = path.stat().st_size, self.headers.get("Range", "")
        start, end = 0, size
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            start = int(low) if low else max(0, size - int(high))
            end = min(int(high) + 1, size) if low and high else size
        headers = {"ETag": self._etag(path), "Accept-Ranges": "bytes"}
        headers["Last-Modified"] = formatdate(path.stat().st_mtime, usegmt=True)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with path.open("rb") as file:
            file.seek(start)
            body = b"" if self.command == "HEAD" else file.read(end - start)
        return self._send(206 if asked else 200, headers, body, end - start)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        """Deletes an object."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._send(204)

    def do_POST(self) -> None:
        """Deletes many objects, or begins or ends an upload in parts."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        uploads = self.folder / "uploads"
        if "delete" in self._query:
            deleted = []
            for element in ElementTree.fromstring(body).iter():  # noqa: S314 - of ourselves
                if element.tag.endswith("Key"):
                    with suppress(FileNotFoundError):
                        (self.folder / "objects" / quote(element.text or "", safe="")).unlink()
                    deleted.append(f"<Deleted><Key>{escape(element.text or '')}</Key></Deleted>")
            return self._xml(f"<DeleteResult>{''.join(deleted)}</DeleteResult>")
        if "uploads" in self._query:
            name = uuid4().hex
            (uploads / name).mkdir()
            result = (
                f"<Bucket>lake</Bucket><Key>{escape(self._key)}</Key><UploadId>{name}</UploadId>"
            )
            return self._xml(
                f"<InitiateMultipartUploadResult>{result}</InitiateMultipartUploadResult>"
            )
        parts = uploads / self._query["uploadId"][0]
        whole = uploads / uuid4().hex
        with whole.open("wb") as out:
            for part in sorted(parts.iterdir()):
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out)
        shutil.rmtree(parts)
        whole.rename(self._path)
        result = f"<Key>{escape(self._key)}</Key><ETag>{escape(self._etag(self._path))}</ETag>"
        return self._xml(f"<CompleteMultipartUploadResult>{result}</CompleteMultipartUploadResult>")

    def _list(self) -> None:
        prefix = self._query.get("prefix", [""])[0]
        delimiter = self._query.get("delimiter", [""])[0]
        after = self._query.get("continuation-token", self._query.get("start-after", [""]))[0]
        names = sorted(unquote(path.name) for path in (self.folder / "objects").iterdir())
        found = [name for name in names if name.startswith(prefix) and name > after]
        folders: dict[str, None] = {}
        items = []
        for name in found[:_MOST_KEYS]:
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            stat = (self.folder / "objects" / quote(name, safe="")).stat()
            when = datetime.fromtimestamp(stat.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            items.append(
                f"<Contents><Key>{escape(name)}</Key><Size>{stat.st_size}</Size>"
                f'<LastModified>{when}</LastModified><ETag>"{stat.st_mtime_ns}"</ETag></Contents>'
            )
        more = len(found) > _MOST_KEYS
        token = ""
        if more:
            last = escape(found[_MOST_KEYS - 1])
            token = f"<NextContinuationToken>{last}</NextContinuationToken>"
        self._xml(
            f"<ListBucketResult><Name>lake</Name><KeyCount>{len(items)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            + "".join(items)
            + "".join(
                f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
                for folder in folders
            )
            + "</ListBucketResult>"
        )

    @property
    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.removeprefix("/lake").removeprefix("/"))

    @property
    def _path(self) -> Path:
        return self.folder / "objects" / quote(self._key, safe="")

    def _etag(self, path: Path) -> str:
        return f'"{path.stat().st_mtime_ns}"'

    def _error(self, status: int, code: str) -> None:
        self._send(status, {}, f"<Error><Code>{code}</Code></Error>".encode())

    def _xml(self, text: str) -> None:
        self._send(200, {"Content-Type": "application/xml"}, text.encode())

    def _send(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        length: int | None = None,
    ) -> None:
        self.log_request(status)
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """The command line."""
    Handler.folder = Path(sys.argv[3])
    for name in ("objects", "uploads"):
        (Handler.folder / name).mkdir(exist_ok=True)
    server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
