#!/usr/bin/env python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Django's command line for the lighthouse site."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lighthouse.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
