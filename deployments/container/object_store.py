"""The object store in a container: SeaweedFS with TLS, for the identities whose secret keys the environment holds.

Run as ``python -m deployments.container.object_store``. ``deployments/compose/certificate.sh`` makes the certificate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmseg_core.errors import InputError
from deployments.object_store import EVERYTHING, OWNER, close_servers, options_of, weed_program
from deployments.private import write_private
from deployments.stack import MAY_DO

FOLDER, TLS = Path("/var/lib/cmseg/objects"), Path("/etc/cmseg/store")
PORTS = (8333, 18333, 9333, 19333, 9340, 19340, 8888, 18888, 23646, 33646)
"""Of S3, and of the servers behind it."""
_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client", "msg_broker")


def configure(folder: Path, tls: Path, environment: Mapping[str, str], ports: Sequence[int] = PORTS) -> list[str]:
    """Write the settings anew, and return the command that starts the store.

    Parameters
    ----------
    folder : path
        Of its data and its settings.
    tls : path
        Folder with ``ca.crt``, ``store.crt`` and ``store.key``.
    environment : mapping
        ``SECRET_STORE_<IDENTITY>`` is the secret key of an identity, whose name is also its access key.
    ports : sequence of int
    """
    (folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / "s3.json", json.dumps({"identities": _identities(environment)}))
    security = folder / "security.toml"
    security.unlink(missing_ok=True)
    close_servers(security)
    write_private(security, security.read_text(encoding="utf-8") + _mutual(tls))
    options = options_of(folder, list(ports))
    # The network of the containers reaches it; the servers behind S3 ask for a token or a certificate.
    options += f"ip.bind=0.0.0.0\ns3.cert.file={tls / 'store.crt'}\ns3.key.file={tls / 'store.key'}\n"
    write_private(folder / "weed.options", options)
    return [str(weed_program()), "-logtostderr=true", f"-config_dir={folder}", "mini",
            f"-options={folder / 'weed.options'}"]  # fmt: skip


def _identities(environment: Mapping[str, str]) -> list[dict[str, object]]:
    actions = {OWNER: EVERYTHING, **MAY_DO}
    keys = {name: environment.get(f"SECRET_STORE_{name.upper()}") for name in actions}
    if not keys[OWNER]:
        raise InputError("the object store", "has no owner", f"set SECRET_STORE_{OWNER.upper()}")
    return [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": key}], "actions": list(actions[name])}
        for name, key in keys.items()
        if key
    ]


def _mutual(tls: Path) -> str:
    pair = f'cert = "{tls / "store.crt"}"\nkey = "{tls / "store.key"}"\n'
    return f'[grpc]\nca = "{tls / "ca.crt"}"\n' + "".join(f"[grpc.{part}]\n{pair}" for part in _PARTS)


def main() -> None:
    """Become the store."""
    command = configure(FOLDER, TLS, os.environ)
    os.chdir(FOLDER)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
