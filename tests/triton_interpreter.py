"""Triton's interpreter without what takes a third of its time.

That is to look, at every call of a function within a kernel, for members of the language that are not patched yet; all
of them were when the kernel began.
"""

import inspect

from triton.language.core import is_builtin
from triton.runtime import interpreter


def patch_once() -> None:
    """Look through a module or a class of the language only where one of its builtins is as it was before."""
    patch, known = interpreter._patch_builtin, {}

    def look(package, *rest):
        if package not in known:
            known[package] = next((name for name, member in inspect.getmembers(package) if is_builtin(member)), None)
        name = known[package]
        if name is not None and is_builtin(getattr(package, name)):
            patch(package, *rest)

    interpreter._patch_builtin = look
