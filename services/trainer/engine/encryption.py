"""Encryption of a checkpoint's files with age, for those who hold the keys and nobody else. Needs the extra `age`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.core.errors import FailedPreconditionError, InvalidArgumentError, quoted
from services.core.installation import install_command
from services.core.storage.checkpoint_store import AGE_SUFFIX


class AgeEncryption:
    """Encrypts to some recipients.

    Args:
        recipients: public keys of age (`age1...`), at least one; whoever has the secret key of any of them can decrypt.

    Raises:
        FailedPreconditionError: pyrage is not installed here; names the extra.
        InvalidArgumentError: a recipient is not a public key.
    """

    def __init__(self, recipients: Sequence[str]) -> None:
        self._age = _age()
        self._recipients = []
        for i, text in enumerate(recipients):
            try:
                self._recipients.append(self._age.x25519.Recipient.from_str(text))
            except self._age.RecipientError:
                field, rule = f"age_encryption_recipients[{i}]", "a public key of age, as age-keygen prints it: age1..."
                raise InvalidArgumentError.must_be(field, rule, quoted(text)) from None

    def encrypt(self, directory: Path) -> None:
        """Replaces every file of a directory by its encrypted form, whose name ends in .age."""
        for path in sorted(directory.iterdir()):
            self._age.encrypt_file(str(path), f"{path}{AGE_SUFFIX}", self._recipients)
            path.unlink()


def _age() -> Any:
    try:
        import pyrage
    except ImportError:
        command = install_command("age")
        message = f"encrypted weights need pyrage where the trainer runs, and it is not installed: {command}"
        raise FailedPreconditionError(message, reason="AGE_NOT_INSTALLED") from None
    return pyrage
