"""Compressed files: detected by their first bytes on reading, selected by the file name on writing."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast


SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
# Errors that the readers raise for a damaged or truncated file. bz2 and gzip also raise an OSError without errno.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def open_to_read(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes. A compressed file is decompressed, whatever its name.

    Raises: ImportError if zstandard is needed and not installed. Reading raises one of DAMAGED or OSError.
    """
    file = open(path, "rb")
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(file))
    if head.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.LZMAFile(file))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(file, str(path)), 1 << 20))
    return file


def open_to_write(path: Path, suffix: str) -> BinaryIO:
    """Open a file for writing bytes, compressed according to the suffix; not compressed for any other suffix."""
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(path, "wb", mtime=0))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(path, "wb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(path, "wb"))
    if suffix == ".zst":
        return cast(BinaryIO, _zstandard(str(path)).open(path, "wb"))
    return open(path, "wb")


def _zstandard(path: str):  # noqa: ANN202
    try:
        import zstandard
    except ImportError:
        raise ImportError(
            f'"{path}" is compressed with Zstandard, which needs the package zstandard: pip install zstandard'
        ) from None
    return zstandard


class _ZstdReader(io.RawIOBase):
    """A reader that raises EOFError for a truncated file; the reader of zstandard ends there without an error."""

    def __init__(self, file: BinaryIO, path: str):
        self._file, self._zstandard = file, _zstandard(path)
        self._frame, self._unread, self._in_frame = self._new_frame(), b"", False

    def _new_frame(self):  # noqa: ANN202
        return self._zstandard.ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._unread:
            block = self._file.read(1 << 17)
            if not block:
                if self._in_frame:
                    raise EOFError("the compressed data ends before its end mark")
                return 0
            self._decompress(block)
        size = min(len(buffer), len(self._unread))
        buffer[:size], self._unread = self._unread[:size], self._unread[size:]
        return size

    def _decompress(self, block: bytes) -> None:
        parts = []
        try:
            while block:
                self._in_frame = True
                parts.append(self._frame.decompress(block))
                block = b""
                if self._frame.eof:
                    block, self._frame, self._in_frame = self._frame.unused_data, self._new_frame(), False
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self._unread = b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()
