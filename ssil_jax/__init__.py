"""Class-incremental learning with separated softmax (SS-IL), in JAX and Flax.

`__init__.pyi` lists the public names; everything else may change. They are imported when
they are first used, for jax takes seconds, and errors and flags need none of it.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
