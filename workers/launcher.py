"""A worker's connection to the launcher of its instance: kept open from job to job, made anew when it broke."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sandboxd.catalogue import Catalogue
from sandboxd.jail.client import LauncherClient

_CONNECT_TIMEOUT_S = 1.0


class Launcher:
    """One connection, and what the launcher at its other end offers."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._client: LauncherClient | None = None
        self._catalogue: Catalogue | None = None
        self.published = b""
        """The offer as JSON, as it is published."""

    def connect(self) -> tuple[LauncherClient, Catalogue]:
        """The connection and the offer. Raises LauncherUnavailable, ProtocolError."""
        if self._client is None or self._catalogue is None:
            self.close()
            self._client = LauncherClient(self._socket_path, connect_timeout_s=_CONNECT_TIMEOUT_S)
            self._catalogue = self._ask(self._client)
        return self._client, self._catalogue

    def refresh(self) -> None:
        """Ask the launcher again what it offers; this also tells whether it still lives. Raises as `connect`."""
        client, _ = self.connect()
        self._catalogue = self._ask(client)

    def _ask(self, client: LauncherClient) -> Catalogue:
        catalogue = client.catalogue()
        self.published = msgspec.json.encode(catalogue)
        return catalogue

    def forget(self) -> None:
        """Nothing of the last job stays here."""
        if self._client is not None:
            self._client.forget()

    def close(self) -> None:
        """Close the connection; the next `connect` makes a new one. What still ran on it is killed by the launcher."""
        client, self._client, self._catalogue = self._client, None, None
        if client is not None:
            client.close()
