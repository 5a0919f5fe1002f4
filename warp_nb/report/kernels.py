"""Kernels that notebooks are executed in."""

from __future__ import annotations

import zmq
from jupyter_client import AsyncKernelManager
from traitlets import default


class EncryptedKernelManager(AsyncKernelManager):
    """A kernel manager that encrypts what it exchanges with its kernel, as far as both can.

    Otherwise other users of this machine can read along, and ipykernel warns of it. Older versions of jupyter_client
    and ipykernel know neither the encryption nor the warning; there the setting has no effect.
    """

    @default("transport_encryption")
    def _encrypted(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"
