# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: Contributors to the flotilla.django collection
"""The filter of rejoin.yml."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.flotilla.django.plugins.module_utils import _postgresql_rejoin_plan as rejoin_plan


def postgresql_rejoin_plan(
    members: Sequence[str], member: str, inspected: Mapping[str, Mapping[str, Any]], stop_primary: bool = False
) -> dict[str, Any]:
    """Decide whether and how a member is brought back."""
    return rejoin_plan.rejoin(members, member, inspected, stop_primary).as_dict()


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {"postgresql_rejoin_plan": postgresql_rejoin_plan}
