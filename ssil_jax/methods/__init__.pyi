from .base import Method as Method
from .base import SeenClasses as SeenClasses
from .registry import METHODS as METHODS
from .registry import get_method as get_method
from .source import source_hash as source_hash
