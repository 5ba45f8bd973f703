"""Reasoning that a client keeps for the server: encrypted, and refused if it was changed."""

from __future__ import annotations

import base64
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ossia.errors import OssiaError

_VERSION = "ossia1."
_NONCE = 12  # bytes, random: AES-GCM takes 2**32 texts under one key


class Seal:
    """Encrypts and authenticates texts with AES-GCM. key: 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, text: str) -> str:
        """The text as only a seal of the same key opens it."""
        nonce = secrets.token_bytes(_NONCE)
        data = self._cipher.encrypt(nonce, text.encode("utf-8", "surrogatepass"), None)
        return _written(nonce + data)

    def open(self, sealed: str) -> str:
        """The text that was closed. Raises OssiaError for anything else."""
        try:
            data = base64.urlsafe_b64decode(sealed.removeprefix(_VERSION).encode())
            if sealed != _written(data):  # there is one way to write the bytes
                raise InvalidTag
            text = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], None)
        except (InvalidTag, ValueError) as error:
            raise OssiaError(
                "it was changed, or another server or an earlier run of this one made it; leave "
                "the item out"
            ) from error
        return text.decode("utf-8", "surrogatepass")


def _written(data: bytes) -> str:
    return _VERSION + base64.urlsafe_b64encode(data).decode()
