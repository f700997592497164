"""`wan-vae`, and `python -m wan_vae`."""

import signal

# Until there are handlers, Ctrl-C ends the process: Python's own would print a traceback of whatever is imported.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from wan_vae.cli import main

if __name__ == "__main__":
    main()
