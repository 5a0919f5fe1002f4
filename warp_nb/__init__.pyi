from .algorithm.objective import Sampling as Sampling
from .config import ExperimentConfig as ExperimentConfig
from .config import WarpConfig as WarpConfig
from .measure.checks import check_result as check_result
from .measure.estimates import Estimate as Estimate
from .measure.evaluation import Evaluation as Evaluation
from .measure.evaluation import evaluate as evaluate
from .measure.evaluation import trajectory as trajectory
from .measure.front import pareto_front as pareto_front
from .runs.warp import WarpResult as WarpResult
from .runs.warp import warp as warp
from .studies.experiment import ExperimentResult as ExperimentResult
from .studies.experiment import run_experiment as run_experiment
from .tasks.classifier import SequenceClassifier as SequenceClassifier
from .tasks.prepared import load_task as load_task
from .tasks.reward_interface import WeightedSum as WeightedSum
from .tasks.rewards import LengthPenalty as LengthPenalty
from .tasks.task import Task as Task

__version__: str
