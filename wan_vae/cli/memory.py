"""Errors that are about memory, told from others."""


def shortage(error: Exception) -> str | None:
    """Return what an error says of memory that was not there, in one line; None where it is about something else."""
    text = str(error)
    # Of all that torch raises, only what CUDA lacks has a class of its own.
    if not isinstance(error, MemoryError) and "memory" not in text:
        return None
    return text.partition("\n")[0] or type(error).__name__
