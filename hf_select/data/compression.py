"""Compressed files, recognised by their first bytes when read and by their name when written."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast


SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
# What the readers raise for a file that is damaged or cut off. bz2 and gzip also raise an OSError without errno.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def open_to_read(path: str | Path) -> BinaryIO:
    """The bytes of a file, decompressed if it is compressed, whatever its name.

    Raises: ImportError where zstandard is needed and missing; while reading, one of DAMAGED or OSError.
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
    """A file to write bytes to, compressed as the suffix says (any other: as they are)."""
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
    """Zstandard's own reader ends a file that was cut off without a word, as if it ended there."""

    def __init__(self, file: BinaryIO, path: str):
        self._file, self._zstandard = file, _zstandard(path)
        self._frame, self._held, self._began = self._new_frame(), b"", False

    def _new_frame(self):  # noqa: ANN202
        return self._zstandard.ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._held:
            block = self._file.read(1 << 17)
            if not block:
                if self._began:
                    raise EOFError("the compressed data ends before its end mark")
                return 0
            self._decompress(block)
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _decompress(self, block: bytes) -> None:
        parts = []
        try:
            while block:
                self._began = True
                parts.append(self._frame.decompress(block))
                block = b""
                if self._frame.eof:
                    block, self._frame, self._began = self._frame.unused_data, self._new_frame(), False
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self._held = b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()
