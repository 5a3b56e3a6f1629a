"""Whether a W&B run can go online, asked once and before training."""

import netrc
import os
import threading
import urllib.parse

from kvision._keras import print_message

SECONDS = 5  # for the whole of the question


def choose_mode(mode=None):
    """The mode to start a W&B run in; one line says why, where it had to be offline.

    Args:
        mode: `"online"`, `"offline"`, `"disabled"` or None; the environment variable `WANDB_MODE` wins over it.

    Returns:
        The mode that was asked for, or `"offline"` where it was to go online and cannot.
    """
    mode = os.environ.get("WANDB_MODE") or mode or "online"
    if mode != "online":
        return mode
    import wandb

    settings = wandb.setup().settings
    server = (os.environ.get("WANDB_BASE_URL") or settings.base_url).rstrip("/")
    if not _has_key(settings, server):
        print_message("W&B: no API key (`wandb login` stores one); recording offline.")
        return "offline"
    answer = _ask(server)
    if answer != 200:
        print_message(f"W&B: {server} answered {answer}; recording offline.")
        return "offline"
    return mode


def _has_key(settings, server):
    """Whether W&B would find a key for the server. Its presence is tested, its text is not used."""
    if "WANDB_API_KEY" in os.environ or settings.api_key or settings.identity_token_file:
        return True
    try:  # where `wandb login` stores it
        stored = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return stored.authenticators(urllib.parse.urlsplit(server).netloc) is not None


def _ask(server):
    """The status code of one anonymous request to the server, or in words why there is none."""
    import requests  # a dependency of wandb

    answer = f"nothing within {SECONDS} seconds"

    def request():
        nonlocal answer
        try:
            body = {"query": "query Viewer { viewer { id } }", "operationName": "Viewer"}
            answer = requests.post(f"{server}/graphql", json=body, timeout=SECONDS).status_code
        except requests.Timeout:
            pass
        except requests.RequestException as error:
            answer = f"with {type(error).__name__}"

    # A thread, since the timeout of requests bounds neither the look-up of the name nor the sum of several tries.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answer
