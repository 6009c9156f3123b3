from .api import load as load
from .api import load_run as load_run
from .api import make_config as make_config
from .api import run as run
from .config import Config as Config
from .errors import UserError as UserError
from .losses import seen_softmax_cross_entropy as seen_softmax_cross_entropy
from .losses import separated_softmax_cross_entropy as separated_softmax_cross_entropy
from .losses import task_wise_distillation as task_wise_distillation
from .memory import Memory as Memory
from .methods import METHODS as METHODS
from .methods import Method as Method
from .reports.page import write_report as write_report
from .resnet import ResNet18 as ResNet18
from .sampling import RATIO_PRESERVING as RATIO_PRESERVING
from .settings import setting as setting

__version__: str
