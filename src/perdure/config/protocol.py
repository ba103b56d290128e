"""What a suite's protocol sets in a configuration."""

from __future__ import annotations

from typing import Any

from perdure.tasks.protocols import OWN, protocols, under_protocol
from perdure.tasks.suites import describe, suite_names


def with_protocol(data: dict[str, Any]) -> dict[str, Any]:
    """The settings with the suite's protocol, and with what that sets of the backbone where nothing else is said.

    Raises:
        UnknownName: the suite has no such protocol.
    """
    suite, wanted = data.get("suite"), data.get("protocol")
    if not isinstance(suite, str) or (wanted is None and suite not in suite_names()) or wanted == OWN:
        return data
    about = describe(suite)
    if (protocol := wanted or protocols(about)[0]) == OWN:
        return data
    under_protocol(about, protocol)
    backbone = data.get("backbone", {})
    backbone = {"model": backbone} if isinstance(backbone, str) else backbone
    return {**data, "protocol": protocol, "backbone": {**about["protocols"][protocol].get("backbone", {}), **backbone}}
