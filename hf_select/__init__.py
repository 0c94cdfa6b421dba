"""hf_select: score, select and train on instruction data by published methods, inside the Hugging Face ecosystem.

Public names load on first use, so that importing the package costs nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hf_select._version import __version__ as __version__


_HOME = {
    "CausalLM": "hf_select.models.causal_lm",
    "DEITA": "hf_select.scoring.deita",
    "DSIR": "hf_select.scoring.lexical",
    "DataSelectionCallback": "hf_select.training.callback",
    "Decontaminate": "hf_select.selection.decontaminate",
    "Dedup": "hf_select.selection.dedup",
    "DemonstrationReward": "hf_select.training.reward_learning.demonstration_reward",
    "Embedding": "hf_select.scoring.embedding",
    "FacilityLocation": "hf_select.selection.diversity",
    "FarthestFirst": "hf_select.selection.diversity",
    "GLAN": "hf_select.generation.glan.run",
    "IFD": "hf_select.scoring.ifd",
    "IRFTConfig": "hf_select.training.reward_learning.irft_config",
    "IRFTTrainer": "hf_select.training.reward_learning.irft_trainer",
    "KMeansBuckets": "hf_select.selection.diversity",
    "LESS": "hf_select.scoring.less",
    "Length": "hf_select.scoring.length",
    "Longest": "hf_select.selection.baselines",
    "Mixture": "hf_select.mixtures.mixture",
    "Perplexity": "hf_select.scoring.perplexity",
    "PoolIndex": "hf_select.features.store",
    "RDSPlus": "hf_select.scoring.rds",
    "RFTConfig": "hf_select.training.reward_learning.rft_config",
    "RFTTrainer": "hf_select.training.reward_learning.rft_trainer",
    "Random": "hf_select.selection.baselines",
    "Responses": "hf_select.generation.responses",
    "Reward": "hf_select.scoring.reward",
    "RoundRobin": "hf_select.selection.round_robin",
    "Sample": "hf_select.selection.baselines",
    "ScoreThenThreshold": "hf_select.selection.diversity",
    "SelectIT": "hf_select.scoring.selectit",
    "Selection": "hf_select.selection.selection",
    "ServerGenerator": "hf_select.generation.server",
    "Source": "hf_select.mixtures.source",
    "TFIDF": "hf_select.scoring.lexical",
    "TopK": "hf_select.selection.top_k",
    "TransformersGenerator": "hf_select.generation.local",
    "VLLMGenerator": "hf_select.generation.local",
    "WeightedRanks": "hf_select.selection.combine",
    "load_scores": "hf_select.data.scores",
    "load_selection": "hf_select.hub.load",
    "push_index": "hf_select.hub.push",
    "push_output": "hf_select.hub.output",
    "push_selected": "hf_select.hub.push",
    "report": "hf_select.reports.report",
    "score": "hf_select.scoring.score",
}

__all__ = [
    "DEITA",
    "DSIR",
    "GLAN",
    "IFD",
    "LESS",
    "TFIDF",
    "CausalLM",
    "DataSelectionCallback",
    "Decontaminate",
    "Dedup",
    "DemonstrationReward",
    "Embedding",
    "FacilityLocation",
    "FarthestFirst",
    "IRFTConfig",
    "IRFTTrainer",
    "KMeansBuckets",
    "Length",
    "Longest",
    "Mixture",
    "Perplexity",
    "PoolIndex",
    "RDSPlus",
    "RFTConfig",
    "RFTTrainer",
    "Random",
    "Responses",
    "Reward",
    "RoundRobin",
    "Sample",
    "ScoreThenThreshold",
    "SelectIT",
    "Selection",
    "ServerGenerator",
    "Source",
    "TopK",
    "TransformersGenerator",
    "VLLMGenerator",
    "WeightedRanks",
    "load_scores",
    "load_selection",
    "push_index",
    "push_output",
    "push_selected",
    "report",
    "score",
]

if TYPE_CHECKING:
    from hf_select.data.scores import load_scores
    from hf_select.features.store import PoolIndex
    from hf_select.generation.glan.run import GLAN
    from hf_select.generation.local import TransformersGenerator, VLLMGenerator
    from hf_select.generation.responses import Responses
    from hf_select.generation.server import ServerGenerator
    from hf_select.hub.load import load_selection
    from hf_select.hub.output import push_output
    from hf_select.hub.push import push_index, push_selected
    from hf_select.mixtures.mixture import Mixture
    from hf_select.mixtures.source import Source
    from hf_select.models.causal_lm import CausalLM
    from hf_select.reports.report import report
    from hf_select.scoring.deita import DEITA
    from hf_select.scoring.embedding import Embedding
    from hf_select.scoring.ifd import IFD
    from hf_select.scoring.length import Length
    from hf_select.scoring.less import LESS
    from hf_select.scoring.lexical import DSIR, TFIDF
    from hf_select.scoring.perplexity import Perplexity
    from hf_select.scoring.rds import RDSPlus
    from hf_select.scoring.reward import Reward
    from hf_select.scoring.score import score
    from hf_select.scoring.selectit import SelectIT
    from hf_select.selection.baselines import Longest, Random, Sample
    from hf_select.selection.combine import WeightedRanks
    from hf_select.selection.decontaminate import Decontaminate
    from hf_select.selection.dedup import Dedup
    from hf_select.selection.diversity import FacilityLocation, FarthestFirst, KMeansBuckets, ScoreThenThreshold
    from hf_select.selection.round_robin import RoundRobin
    from hf_select.selection.selection import Selection
    from hf_select.selection.top_k import TopK
    from hf_select.training.callback import DataSelectionCallback
    from hf_select.training.reward_learning.demonstration_reward import DemonstrationReward
    from hf_select.training.reward_learning.irft_config import IRFTConfig
    from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
    from hf_select.training.reward_learning.rft_config import RFTConfig
    from hf_select.training.reward_learning.rft_trainer import RFTTrainer


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_select' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
