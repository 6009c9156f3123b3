"""Methods of class-incremental learning: the contract, and one small file for each.

What `__init__.pyi` lists is imported when it is first used, as of the package as a whole.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
