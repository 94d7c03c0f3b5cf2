"""The process in which chat templates are rendered; `tyr_jax.data.chat` starts it, as a file of its own.

It reads requests and writes answers, a line of JSON each. It imports nothing of this package.
"""

import contextlib
import json
import os
import signal
import sys
from typing import Any


def limit_memory(size: int) -> None:
    """Let this process allocate `size` more bytes than it has now, where the system knows such limits."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The text of a conversation, or why there is none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            conversations=[request["conversation"]], chat_template=request["template"], **request["options"]
        )
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # a template is a program of a stranger's and raises what it likes
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}
    if len(text) > request["most"]:
        return {"error": f"it writes more than {request['most']} characters"}
    return {"text": text}


def main(seconds: int, memory: int) -> None:
    """Answer requests until there are no more; one that takes more than so many seconds is the end."""
    import transformers.utils.chat_template_utils  # noqa: F401 - before memory is limited

    limit_memory(memory)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The signal ends the process even while it is within a call of jinja's or Python's own.
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        reply = json.dumps(answer(request))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
