"""One scoring method a file. `SCORERS` is the table that the command line reads: name -> where the class lives."""

SCORERS = {
    "embedding": "hf_select.scoring.embedding:Embedding",
    "length": "hf_select.scoring.length:Length",
    "rds": "hf_select.scoring.rds:RDSPlus",
    "selectit": "hf_select.scoring.selectit:SelectIT",
}
