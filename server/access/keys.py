"""API keys: made here, shown once, kept as hashes.

A key is 256 random bits. No one can try so many, however fast the hash: SHA-256 will do, without salt or stretching.
"""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

PREFIX = "relay_"  # by which the redaction, and scanners for lost secrets, know a key
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
ENTRY = re.compile(rf"(?P<name>{NAME.pattern}):(?P<hash>[0-9a-fA-F]{{64}})")
LOOK_INTERVAL = 1.0  # seconds between two looks at the file
MAX_FILE = 1024 * 1024  # bytes; some ten thousand keys


class NewKey(NamedTuple):
    key: str  # for the client alone
    entry: str  # for the server's settings


def make_key(name: str) -> NewKey:
    """A fresh key. Raises ValueError for a name that cannot be."""
    if not NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 letters, digits, dots, hyphens or underscores")
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    return NewKey(key, f"{name}:{hash_of(key)}")


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(text: str) -> dict[str, str]:
    """Names by hash, from NAME:HASH entries that commas or white space separate; # begins a comment.

    One name may have several keys: that is how a key is replaced. Raises ValueError, without a part of the text.
    """
    without_comments = re.sub("#.*", "", text)
    names: dict[str, str] = {}
    for number, entry in enumerate(re.findall(r"[^\s,]+", without_comments), 1):
        found = ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(f"entry {number} is not NAME:HASH, as `relay keys new NAME` prints it")
        if names.setdefault(found["hash"].lower(), found["name"]) != found["name"]:
            raise ValueError(f"entry {number} gives another name to a key that stands there before")
    return names


def read_file(path: Path) -> dict[str, str]:
    """The keys of a file. Raises OSError or ValueError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"it is larger than {MAX_FILE} bytes")
    try:
        return read_keys(data.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None


class Keyring:
    """The keys that are good now. A file of them is looked at again and again; what is wrong there changes nothing."""

    def __init__(
        self, fixed: Mapping[str, str], path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`fixed` are names by hash; `clock` is in seconds."""
        self._fixed = fixed
        self._path = path
        self._clock = clock
        self._from_file: Mapping[str, str] = {}
        self._seen: tuple[int, ...] = ()  # the file's marks when it was read
        self._looked_at = clock() - LOOK_INTERVAL
        self._complained = False

    def name_of(self, key: str) -> str | None:
        """Whose key this is.

        How long the look-up takes depends on the hash of what was presented. Whoever learns something of it that way
        has learned nothing of a key: no one can choose a text by its hash.
        """
        self._look()
        presented = hash_of(key)
        return self._fixed.get(presented) or self._from_file.get(presented)

    def _look(self) -> None:
        """Reads the file again when it is another; one small file, once a second at most, will not hold anyone up."""
        if self._path is None or self._clock() - self._looked_at < LOOK_INTERVAL:
            return
        self._looked_at = self._clock()
        try:
            state = self._path.stat()
            marks = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            if marks == self._seen:
                return
            self._from_file = read_file(self._path)
            self._seen = marks
            self._complained = False
            log.info("API keys read", extra={"file": self._path, "keys": len(self._from_file)})
        except (OSError, ValueError) as error:
            self._complain(error)

    def _complain(self, error: OSError | ValueError) -> None:
        if not self._complained:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.error("RELAY_API_KEYS_FILE cannot be used, the keys before stay", extra={"detail": reason})
        self._complained = True
