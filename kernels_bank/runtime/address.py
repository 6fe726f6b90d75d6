"""Checks that a Ray cluster answers at `RAY_ADDRESS`, since Ray itself would wait forever for one."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from kernels_bank.runtime.errors import BadRequestError

_WANTED = "HOST:PORT of the head, the --port of `ray start --head` (6379 by default)"
_PATIENCE_S = 10.0


def check_address(address: str) -> None:
    """Check that the head of a Ray cluster answers at `address` and accepts our token.

    Args:
        address: the value of `RAY_ADDRESS`.

    Raises:
        BadRequestError: it does not; the message describes the given address and the expected form.
    """
    host, port = _parsed(address)
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadRequestError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason}); start it or unset the variable"
        ) from error
    if not address.startswith("ray://"):
        _ask_head(address, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def address_here() -> str:
    """Return the address of a Ray cluster on this machine that accepts us, the meaning of `auto`.

    Ray itself may choose the private Ray of another job, and would wait forever for it. The cluster that `ray start`
    has started or joined last is tried first.

    Raises:
        BadRequestError: there is none; the message says why each Ray on this machine does not qualify.
    """
    from ray._private import services

    recorded, running = services.find_bootstrap_address(None), services.find_gcs_addresses()
    refusals = []
    for address in dict.fromkeys([*([recorded] if recorded else []), *sorted(running)]):
        try:
            check_address(address)
        except BadRequestError as error:
            refusals.append(str(error))
        else:
            return address
    raise BadRequestError(
        f"RAY_ADDRESS auto: no Ray cluster on this machine takes this job ({'; '.join(refusals) or 'none runs'}); "
        "start one with `ray start --head`, or unset the variable"
    )


def _parsed(address: str) -> tuple[str, int]:
    if re.match(r"https?://", address):
        raise BadRequestError(
            f"RAY_ADDRESS {address}: this is the dashboard's address, for `ray job submit --address`; "
            f"RAY_ADDRESS is {_WANTED}"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536 or "/" in host:
        raise BadRequestError(f"RAY_ADDRESS {address!r}: not an address of a Ray cluster; it is {_WANTED}")
    return host, int(port)


def _ask_head(address: str, target: str) -> None:
    """Check that a head is alive in the way of Ray's own clients."""
    import grpc

    token = _token()
    metadata = [("authorization", f"Bearer {token}")] if token else []
    # Without the environment's proxy, as in Ray's own clients.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=_PATIENCE_S, metadata=metadata)
        except grpc.RpcError as error:
            status = error.code()
            if status == grpc.StatusCode.UNAUTHENTICATED:
                raise BadRequestError(
                    f"RAY_ADDRESS {address}: the cluster asks for its token; "
                    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it"
                ) from None
            raise BadRequestError(
                f"RAY_ADDRESS {address}: what answers there is not the head of a Ray cluster ({status.name}); "
                f"RAY_ADDRESS is {_WANTED}; the dashboard (8265) is for `ray job submit --address`"
            ) from None


def _token() -> str:
    """Return the token that Ray would send; empty without one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text().strip()
    except OSError:
        return ""
