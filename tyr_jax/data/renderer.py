"""The process that renders chat templates. `tyr_jax.data.chat` runs this file as a program.

It reads requests and writes replies, each a line of JSON. It imports nothing from this package.
"""

import contextlib
import json
import os
import signal
import sys
from typing import Any


def limit_memory(size: int) -> None:
    """Let this process allocate `size` more bytes than it has now, if the system supports such limits."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text of a conversation, or an error that says why there is none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            conversations=[request["conversation"]], chat_template=request["template"], **request["options"]
        )
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template is a stranger's program and raises what it likes
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}
    if len(text) > request["most"]:
        return {"error": f"it writes more than {request['most']} characters"}
    return {"text": text}


def main(seconds: int, memory: int) -> None:
    """Answer requests until there are no more. One that takes more than `seconds` ends the process."""
    import transformers.utils.chat_template_utils  # noqa: F401 - before memory is limited

    limit_memory(memory)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The signal ends the process even during a call inside jinja or Python itself.
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        reply = json.dumps(answer(request))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
