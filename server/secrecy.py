"""Secrets that came by the command line or the environment, kept out of the list of processes and of other processes.

Whoever may list processes sees their arguments, so a token is better given by YOLOV9_TOKEN or in a file. Where one
stands in the arguments all the same, it is masked as soon as the arguments have been read.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import sys
from collections.abc import Iterable, Sequence

from server.addresses import MASK, masked_url

_SECRET_VARIABLE = re.compile(r"^YOLOV9_\w*(TOKEN|PASSWORD|SECRET|KEY|MQTT_URL|WEBHOOKS)", re.I)


def child_environment() -> dict[str, str]:
    """For processes that read what cameras send, or run a model: they need none of the server's secrets."""
    return {name: value for name, value in os.environ.items() if not _SECRET_VARIABLE.match(name)}


def no_core_dumps() -> None:
    """Of this process and those that it starts: the memory holds passwords. Whoever needs one raises the soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def hide_arguments(secrets: Sequence[str | None], urls: Iterable[str]) -> None:
    """Mask `secrets` and what is secret in `urls` in what other processes see of this one's arguments."""
    title = masked_arguments(sys.orig_argv, [s for s in secrets if s], urls)
    if title != sys.orig_argv:
        from setproctitle import setproctitle  # not for the processes that only `child_environment` is for

        setproctitle(shlex.join(title))


def masked_arguments(arguments: Sequence[str], secrets: Iterable[str], urls: Iterable[str]) -> list[str]:
    """The arguments with all secrets masked, whichever way an option was joined to its value."""
    replacements = {url: masked_url(url) for url in urls} | dict.fromkeys(secrets, MASK)
    masked = []
    for argument in arguments:
        for secret, shown in replacements.items():
            argument = argument.replace(secret, shown)
        masked.append(argument)
    return masked
