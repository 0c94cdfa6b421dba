"""Scorers, one method per file. `SCORERS` maps the name of each to its module and class."""

SCORERS = {
    "deita": "hf_select.scoring.deita:DEITA",
    "dsir": "hf_select.scoring.lexical:DSIR",
    "embedding": "hf_select.scoring.embedding:Embedding",
    "ifd": "hf_select.scoring.ifd:IFD",
    "length": "hf_select.scoring.length:Length",
    "less": "hf_select.scoring.less:LESS",
    "perplexity": "hf_select.scoring.perplexity:Perplexity",
    "rds": "hf_select.scoring.rds:RDSPlus",
    "reward": "hf_select.scoring.reward:Reward",
    "selectit": "hf_select.scoring.selectit:SelectIT",
    "tfidf": "hf_select.scoring.lexical:TFIDF",
}
