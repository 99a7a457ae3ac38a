# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection importable under its real name, from this very checkout, for every test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Read by ansible.constants at import: before the first import of Ansible, whatever the caller's directory is.
os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
# Modules are tested in Python processes of their own, and those find the collection the same way.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "collections"), *filter(None, [os.environ.get("PYTHONPATH")])])
sys.path.insert(0, str(ROOT / "collections"))

from ansible.plugins.loader import init_plugin_loader  # noqa: E402 - the lines above must come first
from ansible.utils.collection_loader import AnsibleCollectionConfig  # noqa: E402 - as above

if AnsibleCollectionConfig.collection_finder is None:
    init_plugin_loader([str(ROOT / "collections")])
