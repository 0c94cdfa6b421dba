"""hf_select: score, select and train on instruction data by published methods, inside the Hugging Face ecosystem.

The public names are the imports below. Editors and type checkers read them; at run time each name is imported when it
is first used, so `import hf_select` is fast and loads no torch.
"""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from hf_select._version import __version__ as __version__
from hf_select.extras import explained
from hf_select.scoring import SCORERS
from hf_select.selection import SELECTORS


if TYPE_CHECKING:
    from hf_select.cli.score import build_scorer as build_scorer
    from hf_select.data.bad_rows import BadRow as BadRow
    from hf_select.data.conversation import Conversation as Conversation
    from hf_select.data.loading import read_dataset as read_dataset
    from hf_select.data.scores import load_scores as load_scores
    from hf_select.data.scores import read_scored as read_scored
    from hf_select.evaluation.advise import advise as advise
    from hf_select.evaluation.advise_target import advise_target as advise_target
    from hf_select.evaluation.checkable_answers import CheckableAnswers as CheckableAnswers
    from hf_select.evaluation.compare import compare as compare
    from hf_select.evaluation.held_out_loss import HeldOutLoss as HeldOutLoss
    from hf_select.evaluation.join import join as join
    from hf_select.evaluation.lm_eval_task import LMEvalTask as LMEvalTask
    from hf_select.evaluation.measure import Measure as Measure
    from hf_select.evaluation.mixture_search import search_mixture as search_mixture
    from hf_select.evaluation.validate_scores import validate_scores as validate_scores
    from hf_select.export.jsonl import export_subset as export_subset
    from hf_select.features.featurizer import Feature as Feature
    from hf_select.features.featurizer import Featurizer as Featurizer
    from hf_select.features.store import PoolIndex as PoolIndex
    from hf_select.generation.generator import Generator as Generator
    from hf_select.generation.glan.run import GLAN as GLAN
    from hf_select.generation.local import TransformersGenerator as TransformersGenerator
    from hf_select.generation.local import VLLMGenerator as VLLMGenerator
    from hf_select.generation.responses import Responses as Responses
    from hf_select.generation.server import ServerGenerator as ServerGenerator
    from hf_select.hub.load import load_selection as load_selection
    from hf_select.hub.output import push_output as push_output
    from hf_select.hub.push import push_selected as push_selected
    from hf_select.hub.push_index import push_index as push_index
    from hf_select.jobs.status import JobStatus as JobStatus
    from hf_select.jobs.status import job_status as job_status
    from hf_select.mixtures.mixture import Mixture as Mixture
    from hf_select.mixtures.rewild import rewild as rewild
    from hf_select.mixtures.source import Source as Source
    from hf_select.models.causal_lm import CausalLM as CausalLM
    from hf_select.models.sampling import Sampling as Sampling
    from hf_select.paper import Paper as Paper
    from hf_select.reports.finished_selection import read_finished as read_finished
    from hf_select.reports.report import report as report
    from hf_select.scoring.deita import DEITA as DEITA
    from hf_select.scoring.embedding import Embedding as Embedding
    from hf_select.scoring.ifd import IFD as IFD
    from hf_select.scoring.imported import import_scores as import_scores
    from hf_select.scoring.length import Length as Length
    from hf_select.scoring.less import LESS as LESS
    from hf_select.scoring.lexical import DSIR as DSIR
    from hf_select.scoring.lexical import TFIDF as TFIDF
    from hf_select.scoring.perplexity import Perplexity as Perplexity
    from hf_select.scoring.rds import RDSPlus as RDSPlus
    from hf_select.scoring.reward import Reward as Reward
    from hf_select.scoring.score import score as score
    from hf_select.scoring.scorer import LMScorer as LMScorer
    from hf_select.scoring.scorer import Scorer as Scorer
    from hf_select.scoring.selectit import SelectIT as SelectIT
    from hf_select.selection.baselines import Longest as Longest
    from hf_select.selection.baselines import Random as Random
    from hf_select.selection.baselines import Sample as Sample
    from hf_select.selection.budget import Budget as Budget
    from hf_select.selection.decontaminate import Decontaminate as Decontaminate
    from hf_select.selection.dedup import Dedup as Dedup
    from hf_select.selection.facility_location import FacilityLocation as FacilityLocation
    from hf_select.selection.farthest_first import FarthestFirst as FarthestFirst
    from hf_select.selection.filter import Filter as Filter
    from hf_select.selection.filter import Removal as Removal
    from hf_select.selection.kmeans_buckets import KMeansBuckets as KMeansBuckets
    from hf_select.selection.learned_weights import fit_weights as fit_weights
    from hf_select.selection.matching_pursuit import MatchingPursuit as MatchingPursuit
    from hf_select.selection.ranking import Ranking as Ranking
    from hf_select.selection.round_robin import RoundRobin as RoundRobin
    from hf_select.selection.score_then_threshold import ScoreThenThreshold as ScoreThenThreshold
    from hf_select.selection.selection import Selection as Selection
    from hf_select.selection.selector import Choice as Choice
    from hf_select.selection.selector import Selector as Selector
    from hf_select.selection.top_k import TopK as TopK
    from hf_select.selection.vectors import VectorSelector as VectorSelector
    from hf_select.selection.weighted_ranks import WeightedRanks as WeightedRanks
    from hf_select.training import online_scores as online_scores
    from hf_select.training.callback import DataSelectionCallback as DataSelectionCallback
    from hf_select.training.equal_tokens import Recipe as Recipe
    from hf_select.training.online_score import OnlineScore as OnlineScore
    from hf_select.training.online_scores import GradientSimilarity as GradientSimilarity
    from hf_select.training.online_scores import LossChange as LossChange
    from hf_select.training.reward_learning.demonstration_reward import DemonstrationReward as DemonstrationReward
    from hf_select.training.reward_learning.irft_config import IRFTConfig as IRFTConfig
    from hf_select.training.reward_learning.irft_trainer import IRFTTrainer as IRFTTrainer
    from hf_select.training.reward_learning.rft_config import RFTConfig as RFTConfig
    from hf_select.training.reward_learning.rft_trainer import RFTTrainer as RFTTrainer
    from hf_select.training.warmup import WarmUp as WarmUp
else:  # hidden from type checkers, which would take every name for a public one

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'hf_select' has no attribute {name!r}; it offers {', '.join(__all__)}")
        try:
            return getattr(__import__(_MODULE_OF[name], fromlist=[name]), name)
        except ModuleNotFoundError as error:
            raise explained(f"hf_select.{name}", error) from None


def _public_names() -> dict[str, str]:
    """Name -> module: the imports above, and every scorer and selector of the two tables."""
    modules = {}
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.col_offset:
            modules |= {alias.name: node.module for alias in node.names}
    for home in (*SCORERS.values(), *SELECTORS.values()):
        module, _, name = home.partition(":")
        modules.setdefault(name, module)
    return modules


_MODULE_OF = _public_names()
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
