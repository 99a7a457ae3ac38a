# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _cluster_plan


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"cluster_topology": _cluster_plan.topology}
