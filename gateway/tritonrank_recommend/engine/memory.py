"""What the garbage collector need not walk over while pages wait. For processes that do nothing but serve."""

import gc


def set_aside_what_is_open() -> None:
    """Exempt everything that lives now from garbage collection, when all is open.

    Some hundred thousand objects of such a process stay: at 27 pages/s the collector walked over them every ten
    seconds, 60 to 110 ms each time, in which every page waited.
    """
    gc.collect()
    gc.freeze()


def set_aside_what_replaced_it() -> None:
    """The same, anew, when something large was replaced; nothing in a process that set nothing aside."""
    if gc.get_freeze_count():
        gc.unfreeze()
        set_aside_what_is_open()
